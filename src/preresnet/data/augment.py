"""Normalisation, and the crops and mirrorings of images in memory, which can be replayed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from preresnet.recipe import ImagesInMemory


@dataclass(frozen=True)
class Normalisation:
    """x = (pixels / 255 - mean) / std.

    Paper: 2015 paper, Section 4.2 (per-pixel mean subtracted; std is then 1).

    Args:
        mean: (h, w, c) or (1, 1, c), float32.
        std: (c,), float32.
    """

    mean: Tensor
    std: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, h, w, c) uint8 -> (n, h, w, c) float32."""
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)

    def to(self, device: torch.device) -> "Normalisation":
        """The same on a device."""
        return Normalisation(self.mean.to(device), self.std.to(device))


def fit(pixels: Tensor, spec: ImagesInMemory) -> Normalisation:
    """The normalisation of a data set, from its training images alone.

    Args:
        pixels: (n, h, w, c) uint8.
        spec: says which kind.
    """
    channels = pixels.shape[-1]
    if spec.normalise == "per_pixel_mean":
        mean = pixels.double().mean(0) / 255
        return Normalisation(mean.float(), torch.ones(channels))
    values = pixels.reshape(-1, channels).double() / 255
    return Normalisation(values.mean(0).float().view(1, 1, channels), values.std(0).float())


@dataclass(frozen=True)
class Choices:
    """What chance decided for one batch.

    Args:
        top, left: (n,) int64, corner of the crop in the padded image.
        mirrored: (n,) bool.
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor

    def of(self, part: slice) -> "Choices":
        """Those of a part of the batch."""
        return Choices(self.top[part], self.left[part], self.mirrored[part])


def random_choices(num_images: int, spec: ImagesInMemory, generator: torch.Generator) -> Choices:
    """Draw crops and mirrorings for a batch, always on the CPU so that every device sees the same images."""
    top, left = torch.randint(0, 2 * spec.pad + 1, (2, num_images), generator=generator)
    mirrored = torch.rand(num_images, generator=generator) < (0.5 if spec.flip else 0.0)
    return Choices(top, left, mirrored)


def crop_and_mirror(x: Tensor, choices: Choices, pad: int) -> Tensor:
    """Pad with zeros, crop to the original size, mirror: (n, h, w, c) -> (n, h, w, c).

    Paper: 2015 paper, Section 4.2. Padding follows normalisation (as in fb.resnet.torch; the paper does not say), so
    that the border has the colour of the mean.
    """
    n, height, width, _ = x.shape
    top, left, mirrored = (c.to(x.device, non_blocking=True).view(n, 1) for c in vars(choices).values())
    column = torch.arange(width, device=x.device)
    rows = top + torch.arange(height, device=x.device)  # (n, h)
    columns = left + torch.where(mirrored, width - 1 - column, column)  # (n, w)
    padded = F.pad(x, (0, 0, pad, pad, pad, pad))
    image = torch.arange(n, device=x.device).view(n, 1, 1)
    return padded[image, rows[:, :, None], columns[:, None, :]]
