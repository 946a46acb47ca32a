"""Photographs as our own recipes train on them: crops, changed and partly erased; labels, smoothed and mixed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from preresnet.data import images
from preresnet.data.crops import aspect_box, centre
from preresnet.data.order import generator
from preresnet.recipe import Photographs

GREY = (124, 116, 104)  # the mean colour of ImageNet, which normalisation makes 0


@contextmanager
def deciding(chance: torch.Generator) -> Iterator[None]:
    """Let what asks for PyTorch's own random numbers have those of a generator; its own state stays as it was."""
    kept = torch.get_rng_state()
    torch.set_rng_state(chance.get_state())
    try:
        yield
    finally:
        torch.set_rng_state(kept)


@dataclass(frozen=True)
class Crops:
    """Training crops of image files.

    Args:
        spec: says how they are taken.
    """

    spec: Photographs

    @cached_property
    def _policy(self) -> v2.Transform:
        return v2.TrivialAugmentWide(fill=list(GREY))

    @cached_property
    def _erasing(self) -> v2.Transform:
        return v2.RandomErasing(p=1.0, value=list(map(float, GREY)))  # type: ignore[arg-type] - it takes three too

    def read(self, path: images.File, chance: torch.Generator) -> Tensor:
        """One crop: (size, size, 3) uint8.

        Args:
            path: of the file.
            chance: decides; the same chance gives the same crop.

        Raises:
            ValueError: the file is no whole image; it is named.
        """
        spec, size, same = self.spec, self.spec.image_size, chance.clone_state()

        def least(width: int, height: int) -> int:
            if min(width, height) < 2 * size:  # half of it would be too small for any crop
                return min(width, height)
            box = aspect_box(width, height, spec.area, same)
            inside = min(width, height) if box is None else min(box[2] - box[0], box[3] - box[1])
            return ceil(min(width, height) * size / inside)

        image, stored = images.inspect(path, least)
        box = aspect_box(*stored.upright, spec.area, chance)
        if box is None:
            image = centre(image, size, size)
        else:  # in the pixels that were decoded
            across, down = (length / whole for length, whole in zip(image.size, stored.upright, strict=True))
            place = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=place)  # half the time of bicubic
        with deciding(chance):
            if spec.flip and float(torch.rand(())) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if spec.policy == "trivial":
                image = self._policy(image)
            pixels = images.pixels(image)
            if float(torch.rand(())) < spec.erasing:
                pixels = self._erasing(pixels.permute(2, 0, 1)).permute(1, 2, 0)
        return pixels


@dataclass(frozen=True)
class Mixing:
    """What happens to a whole batch: images are mixed in pairs, and labels become shares of classes.

    Args:
        spec: says how.
        num_classes: of the network.
        seed: of the run.
        weights: (num_classes,) how much an image of a class counts; None: alike.
    """

    spec: Photographs
    num_classes: int
    seed: int
    weights: Tensor | None = None

    def __call__(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of a step: (n, c, h, w) and (n,) int64 -> (n, c, h, w) and (n, num_classes) float32.

        Without smoothing, mixing and weights the labels stay as they are.
        """
        spec = self.spec
        mixing: list[v2.Transform] = [v2.MixUp(alpha=spec.mixup, num_classes=self.num_classes)]
        mixing.append(v2.CutMix(alpha=spec.cutmix, num_classes=self.num_classes))
        chance = generator(self.seed, "mix", step)
        shares: Tensor | None = None
        if spec.mixed and len(y) > 1:
            with deciding(chance):
                if float(torch.rand(())) < spec.mixed:
                    x, shares = mixing[int(torch.randint(2, ()))](x, y)
                    x = x.contiguous(memory_format=torch.channels_last)
        if shares is None:
            if not spec.smoothing and self.weights is None and not spec.mixed:
                return x, y
            shares = F.one_hot(y, self.num_classes).float()
        if self.weights is not None:
            shares = shares * (shares @ self.weights.to(x.device)).unsqueeze(1)
        if spec.smoothing:
            shares = shares * (1 - spec.smoothing) + shares.sum(1, keepdim=True) * (spec.smoothing / self.num_classes)
        return x, shares
