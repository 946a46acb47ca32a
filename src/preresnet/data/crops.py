"""Crops of photographs: by chance and with changed colours for training, from the centre for tests."""

import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance

from preresnet.data import images
from preresnet.recipe import PaperPhotographs

# Principal components of the colours of ImageNet's training images, scaled to 0..1, for the noise of Krizhevsky et al.,
# 2012, with its deviation of 0.1: fb.resnet.torch, datasets/imagenet.lua.
COLOUR_VALUES = torch.tensor([0.2175, 0.0188, 0.0045])
COLOUR_VECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
COLOUR_NOISE = 0.1
JITTER = 0.4  # brightness, contrast and saturation are each multiplied by 0.6 to 1.4: fb.resnet.torch
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # fb.resnet.torch
ASPECT_TRIES = 10


@dataclass(frozen=True)
class PaperCrops:
    """Training crops of image files as the paper, or fb.resnet.torch, takes them.

    Args:
        spec: says how.
    """

    spec: PaperPhotographs

    def read(self, path: images.File, chance: torch.Generator) -> torch.Tensor:
        """One crop: (size, size, 3) uint8; the same chance gives the same crop.

        Raises:
            ValueError: the file is no whole image; it is named.
        """
        least = shorter_side(self.spec, chance.clone_state())  # `augmented` will draw the same
        return images.pixels(augmented(images.open_image(path, least), self.spec, chance))


def shorter_side(spec: PaperPhotographs, chance: torch.Generator) -> int | None:
    """The shorter side that `augmented` brings an image to, its first draw; None where it takes the image as it is."""
    low, high = spec.shorter_side
    return int(torch.randint(low, high + 1, (), generator=chance)) if spec.augment == "scale" else None


def augmented(image: Image.Image, spec: PaperPhotographs, chance: torch.Generator) -> Image.Image:
    """A training crop of ``spec.image_size``, perhaps mirrored, with its colours changed.

    Paper: appendix, with Section 3.4 of the 2015 paper (``scale``); fb.resnet.torch (``aspect``).

    Args:
        image: RGB, of any size; one that was decoded smaller has at least the `shorter_side` of the same chance.
        spec: says which augmentation.
        chance: decides.
    """
    size = spec.image_size
    side = shorter_side(spec, chance)
    if side is not None:
        resized = _resized(image, side)
        left, top = (int(torch.randint(0, length - size + 1, (), generator=chance)) for length in resized)
        image = _cut(image, resized, left, top, size)
    else:
        image = _aspect_crop(image, size, chance)
        for change in torch.randperm(3, generator=chance).tolist():
            factor = 1 - JITTER + 2 * JITTER * float(torch.rand((), generator=chance))
            image = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change](image).enhance(factor)
    if spec.flip and float(torch.rand((), generator=chance)) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = torch.randn(3, generator=chance) * COLOUR_NOISE
    shift = (255 * COLOUR_VECTORS @ (alpha * COLOUR_VALUES)).round().int().tolist()  # the same for every pixel
    table = [min(255, max(0, value + added)) for added in shift for value in range(256)]
    return image.point(table)


def test_crop(path: images.File, side: int, crop: int) -> torch.Tensor:
    """The centre crop of a file, the same wherever a network answers for it: (crop, crop, 3) uint8.

    Args:
        path: of the file.
        side: that its shorter side is brought to first.
        crop: height and width.

    Raises:
        ValueError: the file is no whole image; it is named.
    """
    return images.pixels(centre(images.open_image(path, side), side, crop))


def _aspect_crop(image: Image.Image, size: int, chance: torch.Generator) -> Image.Image:
    """A part of random area and aspect ratio; where none fits in several tries, the centre of the whole."""
    box = aspect_box(*image.size, AREA, chance)
    return centre(image, size, size) if box is None else image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def aspect_box(
    width: int, height: int, areas: tuple[float, float], chance: torch.Generator
) -> tuple[int, int, int, int] | None:
    """Corners (left, top, right, bottom) of a part of random area and aspect ratio; None where none fits."""
    for _ in range(ASPECT_TRIES):
        area = width * height * _uniform(*areas, chance)
        ratio = math.exp(_uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), chance))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(torch.randint(0, width - wide + 1, (), generator=chance))
            top = int(torch.randint(0, height - high + 1, (), generator=chance))
            return left, top, left + wide, top + high
    return None


def _uniform(low: float, high: float, chance: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=chance))


def _resized(image: Image.Image, side: int) -> tuple[int, int]:
    """Width and height of the image when its shorter side is ``side``."""
    short = min(image.size)
    width, height = (max(side, round(length * side / short)) for length in image.size)
    return width, height


def _cut(image: Image.Image, resized: tuple[int, int], left: int, top: int, size: int) -> Image.Image:
    """The square at ``left`` and ``top`` of the image resized (bicubic), of which nothing else is computed.

    An image of 10,000x1 would take gigabytes if it were resized as a whole.
    """
    across, down = (length / new for length, new in zip(image.size, resized, strict=True))
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))  # rounding may pass the edge
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def centre(image: Image.Image, side: int, crop: int) -> Image.Image:
    """The centre crop of an image whose shorter side was brought to ``side``."""
    resized = _resized(image, side)
    left, top = ((length - crop) // 2 for length in resized)
    return _cut(image, resized, left, top, crop)
