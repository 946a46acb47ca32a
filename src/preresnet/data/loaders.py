"""The batch of a training step, and one pass through a whole set, for images in memory or in files."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from preresnet.data import augment, streaming
from preresnet.data.augment import Normalisation, crop_and_mirror, random_choices
from preresnet.data.balance import choose
from preresnet.data.crops import PaperCrops
from preresnet.data.files import ImageFiles
from preresnet.data.image_set import Images
from preresnet.data.order import ImageOrder, generator, slice_of
from preresnet.data.streaming import FileBatches
from preresnet.recipe import DataSpec, ImagesInFiles, ImagesInMemory, Photographs


class Batches(Protocol):
    """Augmented batches as a pure function of the step.

    Attributes:
        broken: what was wrong with images that were skipped.
    """

    broken: set[str]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """A batch on the device that trains.

        Returns:
            (batch, c, h, w) float32 in channels_last; (batch,) int64 labels, or (batch, num_classes) float32, how much
            of each class an image is.
        """
        ...


class TrainingBatches:
    """Augmented batches of images that lie on the device that trains.

    Args:
        images: training images, on that device.
        spec: augmentation.
        normalisation: of the training set, on the same device.
        batch: images a step.
        seed: of the run.
        small_steps: how many first steps get images of ``spec.small_size``.
        rank: which part of each batch is given.
        world_size: how many parts there are.
    """

    def __init__(
        self,
        images: Images,
        spec: ImagesInMemory,
        normalisation: Normalisation,
        batch: int,
        seed: int,
        small_steps: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.mine = slice_of(rank, world_size, batch)
        self.images = images
        self.spec = spec
        self.normalisation = normalisation
        self.order = ImageOrder(len(images), batch, seed)
        self.small_steps = small_steps
        self.broken: set[str] = set()

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step.

        Returns:
            (batch, c, h, w) float32 in channels_last, smaller in the first ``small_steps``; (batch,) int64 labels.
        """
        taken = self.images.take(self.order.indices(step)[self.mine].to(self.images.pixels.device, non_blocking=True))
        x = self.normalisation(taken.pixels)
        if self.spec.pad or self.spec.flip:
            choices = random_choices(self.order.batch, self.spec, generator(self.order.seed, "augment", step))
            x = crop_and_mirror(x, choices.of(self.mine), self.spec.pad)
        x = x.permute(0, 3, 1, 2)
        if step < self.small_steps:
            x = F.interpolate(x, size=(self.spec.small_size,) * 2, mode="bilinear", antialias=True)
        return x, taken.labels


def training_batches(
    images: Images | ImageFiles,
    spec: DataSpec,
    normalisation: Normalisation,
    batch: int,
    seed: int,
    small_steps: int = 0,
    workers: int | None = None,
    classes: Sequence[str] = (),
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """What training sees, for images in memory or in files.

    Args:
        images: training images.
        spec: augmentation.
        normalisation: on the device that trains.
        batch: images a step.
        seed: of the run.
        small_steps: how many first steps get small images, of those in memory.
        workers: processes that read files.
        classes: names by label; `Photographs` needs them.
        rank: which part of each batch is given: place and chance of an image are those that it has in the whole.
        world_size: how many parts there are.
    """
    if isinstance(spec, ImagesInMemory):
        assert isinstance(images, Images)
        return TrainingBatches(images, spec, normalisation, batch, seed, small_steps, rank, world_size)
    assert isinstance(images, ImageFiles)
    if not isinstance(spec, Photographs):
        order = ImageOrder(len(images), batch, seed)
        mine = slice_of(rank, world_size, batch)
        return FileBatches(images, PaperCrops(spec), normalisation, order, workers, mine=mine)
    from preresnet.data.photographs import Crops, Mixing  # torchvision takes a second to import

    balance = choose(spec, images.labels, classes)
    order = ImageOrder(len(images), batch, seed, balance.repeats)
    mixing = Mixing(spec, len(classes), seed, balance.weights)
    mine = slice_of(rank, world_size, batch)
    return FileBatches(
        images, Crops(spec), normalisation, order, workers, mixing, spec.broken == "skip", mine, paired=spec.mixed > 0
    )


def fit(images: Images | ImageFiles, spec: DataSpec) -> Normalisation:
    """The normalisation of a set: from its training images, or, for files, the numbers of ImageNet."""
    if isinstance(images, ImageFiles):
        return streaming.normalisation()
    assert isinstance(spec, ImagesInMemory)
    return augment.fit(images.pixels, spec)


def fixed_batch(
    images: Images | ImageFiles, spec: DataSpec, normalisation: Normalisation, count: int
) -> tuple[Tensor, Tensor]:
    """So many images, always the same, without augmentation, spread over the set: files are sorted by class."""
    count = min(count, len(images))
    chosen = torch.arange(count) * len(images) // count
    if isinstance(images, ImageFiles):
        assert isinstance(spec, ImagesInFiles)
        side = max(spec.image_size, spec.test_sides[0] * spec.image_size // spec.test_crops[0])
        passes = streaming.centre_batches(
            images.take(chosen), side, spec.image_size, normalisation, workers=0, batch=count
        )
    else:
        passes = evaluation_batches(images.take(chosen.to(images.pixels.device)), normalisation, batch=count)
    return next(passes)


def plain_batches(
    images: Images | ImageFiles, spec: DataSpec, normalisation: Normalisation, count: int, workers: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """So many training images as they are tested, always the same, spread over the set."""
    count = min(count, len(images))
    chosen = torch.arange(count) * len(images) // count
    if isinstance(images, Images):
        chosen = chosen.to(images.pixels.device)
    return next(iter(evaluations(images.take(chosen), spec, normalisation, workers).values()))


def evaluation_batches(
    images: Images, normalisation: Normalisation, batch: int = 500
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, without augmentation; the last batch may be smaller."""
    for start in range(0, len(images), batch):
        pixels = images.pixels[start : start + batch]
        yield normalisation(pixels).permute(0, 3, 1, 2), images.labels[start : start + batch]


def evaluations(
    images: Images | ImageFiles, spec: DataSpec, normalisation: Normalisation, workers: int | None = None
) -> dict[int, Iterator[tuple[Tensor, Tensor]]]:
    """Every pass over the evaluated images, by the size of its crop; the first gives the error.

    Images in memory have one, whole.
    """
    if not isinstance(images, ImageFiles):
        return {spec.image_size: evaluation_batches(images, normalisation)}
    assert isinstance(spec, ImagesInFiles)
    skip = isinstance(spec, Photographs) and spec.broken == "skip"
    return {
        crop: streaming.centre_batches(images, side, crop, normalisation, workers, skip=skip)
        for crop, side in zip(spec.test_crops, spec.test_sides, strict=True)
    }
