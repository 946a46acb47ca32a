"""Batches of image files that are too many to lie in memory: worker processes read them ahead of the training.

Worker processes read, crop and colour the images of the next batches while the network trains. What chance decides for
an image depends on the run's seed, the step and the image's place in the batch alone: a run can be resumed or one batch
replayed, and the number of workers changes nothing.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from preresnet import signals
from preresnet.data.augment import Normalisation
from preresnet.data.crops import test_crop
from preresnet.data.files import ImageFiles
from preresnet.data.images import File
from preresnet.data.order import ImageOrder, generator
from preresnet.spec import UserError

MOST_WORKERS = 16
MOST_BROKEN = 20  # images in a row, after which the run ends all the same

# Of ImageNet's training images, scaled to 0..1: fb.resnet.torch, datasets/imagenet.lua.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalisation() -> Normalisation:
    """(pixels / 255 - mean) / std with the numbers of ImageNet, also for other photographs."""
    return Normalisation(torch.tensor(MEAN).view(1, 1, 3), torch.tensor(STD))


class Crops(Protocol):
    """How a training crop is taken of a file."""

    def read(self, path: File, chance: torch.Generator) -> Tensor:
        """(size, size, 3) uint8, a function of the file and of the chance."""
        ...


@dataclass(frozen=True)
class _Training(Dataset[Any]):
    """One augmented image, by its index, step and place in the batch."""

    files: ImageFiles
    crops: Crops
    batch: int
    seed: int

    skip: bool

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int, list[str]] | str:
        index, step, place = key
        broken: list[str] = []
        for further in range(MOST_BROKEN):  # another image takes the place of one that is broken
            index = (index + (further > 0)) % len(self.files)
            chance = generator(self.seed, "augment", step * self.batch + place)
            try:
                return self.crops.read(self.files.file(index), chance), int(self.files.labels[index]), broken
            except ValueError as error:
                broken.append(str(error))
                if not self.skip:
                    break
        return broken[0]


def _collate(items: list[Any]) -> tuple[Tensor, Tensor, list[str]] | str:
    """A batch; or, for the process that can tell the user, what is wrong with one of its files."""
    failed = next((item for item in items if isinstance(item, str)), None)
    if failed is not None:
        return failed
    pixels, labels, broken = zip(*items, strict=True)
    return torch.stack(pixels), torch.tensor(labels), [one for ones in broken for one in ones]


def num_workers(asked: int | None) -> int:
    """How many processes read images: as asked, or one for each core but one."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 2) - 1)) if asked is None else asked


def _loading(dataset: Dataset[Any], workers: int, **order: Any) -> Iterator[Any]:
    """What `_collate` makes, read by other processes; a signal that ends the run leaves them to it, for it may still
    need its next batch.
    """
    # spawned, not forked: a fork inherits locks of threads that it does not
    context = {"multiprocessing_context": "spawn", "worker_init_fn": _obey_run_alone} if workers else {}
    pinned = torch.cuda.is_available()
    loader = DataLoader(dataset, collate_fn=_collate, num_workers=workers, pin_memory=pinned, **context, **order)
    with signals.held_back() if workers else nullcontext():
        return iter(loader)


def _obey_run_alone(_: int) -> None:
    signals.obey_parent_alone()


class FileBatches:
    """Augmented batches of image files as a pure function of the step; as `preresnet.data.loaders.TrainingBatches`.

    Steps that follow each other are read ahead.

    Args:
        files: training images.
        crops: how they are cropped and changed.
        normalisation: on the device that trains.
        order: which images make up a batch.
        workers: processes that read; None chooses, 0 reads in this process.
        mixing: what is done with a whole batch of a step.
        skip: let another image take the place of one that is broken.
        mine: places of the batch that are given.
        paired: whether mixing takes in the image before each, so that of a part of a batch one more is read.

    Attributes:
        broken: what was wrong with those that were skipped, by image.
    """

    def __init__(
        self,
        files: ImageFiles,
        crops: Crops,
        normalisation: Normalisation,
        order: ImageOrder,
        workers: int | None = None,
        mixing: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        skip: bool = False,
        mine: slice = slice(None),
        *,
        paired: bool = False,
    ) -> None:
        self.dataset = _Training(files, crops, order.batch, order.seed, skip)
        self.broken: set[str] = set()
        self.order = order
        self.mixing = mixing
        self.normalisation = normalisation
        self.workers = num_workers(workers)
        self._ahead: Iterator[tuple[Tensor, Tensor, list[str]] | str] = iter(())
        self._next = -1
        places = range(order.batch)
        self._places = list(places[mine])
        self._leading = paired and len(self._places) < order.batch
        if self._leading:
            self._places.insert(0, (self._places[0] - 1) % order.batch)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: (batch, 3, size, size) float32 in channels_last; (batch,) int64, or what mixing makes.

        Raises:
            ValueError: a file is not a whole image; it is named.
        """
        if step != self._next:
            keys = _Keys(self.order, self._places, step)
            self._ahead = _loading(self.dataset, self.workers, batch_sampler=keys)
        found = next(self._ahead)
        if isinstance(found, str):
            raise _broken(found)
        pixels, labels, broken = found
        self.broken.update(broken)
        self._next = step + 1
        x, y = _on_device(pixels, labels, self.normalisation)
        if self.mixing is None:
            return x, y
        x, y = self.mixing(step, x, y)
        return (x[1:], y[1:]) if self._leading else (x, y)


@dataclass(frozen=True)
class _Keys:
    """For each step from one on, the keys of its images."""

    order: ImageOrder
    places: Sequence[int]
    start: int

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        step = self.start
        while True:
            indices = self.order.indices(step).tolist()
            yield [(indices[place], step, place) for place in self.places]
            step += 1


def centre_batches(
    files: ImageFiles,
    side: int,
    crop: int,
    normalisation: Normalisation,
    workers: int | None = None,
    batch: int = 100,
    skip: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The centre crop of every image once, in order; the last batch may be smaller.

    Larger crops than those of training pass through the same network: its head averages over whatever map remains,
    which is the fully convolutional test of the paper (appendix). With ``skip`` broken ones are left out.

    Raises:
        ValueError: a file is not a whole image; it is named.
    """
    # Threads do, and start at once: decoding and resizing release Python's lock.
    starts, ahead = iter(range(0, len(files), batch)), deque[list[Future[Tensor | None]]]()
    pool = ThreadPoolExecutor(num_workers(workers) or 1)

    def read(index: int) -> Tensor | None:
        try:
            return test_crop(files.file(index), side, crop)
        except ValueError:
            if skip:
                return None
            raise

    def submit() -> None:
        if (start := next(starts, None)) is not None:
            ahead.append([pool.submit(read, index) for index in range(start, min(start + batch, len(files)))])

    try:
        for _ in range(2):
            submit()
        done = 0
        while ahead:
            try:
                read_now = [future.result() for future in ahead.popleft()]
            except ValueError as error:
                raise _broken(error) from None
            submit()
            whole = [place for place, pixels in enumerate(read_now) if pixels is not None]
            labels = files.labels[done : done + len(read_now)][whole]
            done += len(read_now)
            if whole:
                yield _on_device(torch.stack([read_now[place] for place in whole]), labels, normalisation)  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


def _broken(said: object) -> UserError:
    return UserError(f"{said}. Replace the file, or take it away")


def _on_device(pixels: Tensor, labels: Tensor, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    device = normalisation.mean.device
    pixels, labels = (tensor.to(device, non_blocking=True) for tensor in (pixels, labels))
    return normalisation(pixels).permute(0, 3, 1, 2), labels
