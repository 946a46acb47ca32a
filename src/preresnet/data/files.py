"""How do image files become batches in time, when they are too many to lie in memory?

Worker processes read, crop and colour the images of the next batches while the network trains. What chance decides for
an image depends on the run's seed, the step and the image's place in the batch alone: a run can be resumed or one batch
replayed, and the number of workers changes nothing.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from preresnet import signals
from preresnet.data import images
from preresnet.data.augment import Normalisation
from preresnet.data.crops import augmented, centre
from preresnet.data.order import Order, generator
from preresnet.recipe import DataSpec
from preresnet.spec import UserError

CLASSES = {"imagenet": 1000}  # of sets whose number of classes is known without looking
FOLDERS = ("train", "val")
MOST_WORKERS = 16

# Of ImageNet's training images, scaled to 0..1: fb.resnet.torch, datasets/imagenet.lua.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels.

    Args:
        root: folder that the names start from.
        names: (n,) file names as bytes: an array takes a tenth of the memory of n paths.
        labels: (n,) int64.
    """

    root: Path
    names: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageFiles":
        """Themselves: files are read where they lie, and batches are moved."""
        del device
        return self

    def take(self, index: Tensor) -> "ImageFiles":
        """Some of the files, in the order of ``index`` (m,) int64."""
        return ImageFiles(self.root, self.names[index.numpy()], self.labels[index])

    def path(self, index: int) -> Path:
        """Of one file."""
        return self.root / os.fsdecode(self.names[index])


def classes(name: str, root: Path | None) -> tuple[str, ...]:
    """Names of the classes of a set: the folders in ``train``, sorted.

    Raises:
        ValueError: no such folder, no class in it, or another number than the set has.
    """
    if root is None:
        raise UserError(f"{name} is not downloaded; give the folder that holds train/ and val/ as --data-root")
    found = _folders(root / "train")
    expected = CLASSES.get(name, len(found))
    if len(found) != expected:
        words = "; --data.name folder trains on any number of classes" if name == "imagenet" else ""
        raise UserError(f"{root / 'train'} has {len(found)} folders of classes, {name} has {expected}{words}")
    return found


def read(name: str, root: Path | None) -> tuple[tuple[str, ...], ImageFiles, ImageFiles]:
    """Classes, training images and test images of a set: ``root/train/CLASS/*`` and ``root/val/CLASS/*``.

    Files that Pillow has no name for are left out (lists, notes); labels count the classes in sorted order, as
    torchvision's ``ImageFolder`` does.

    Args:
        name: ``imagenet`` (1,000 classes), or ``folder``.
        root: folder with both.

    Raises:
        ValueError: a folder or a class is missing, or one holds no image; it is named.
    """
    found = classes(name, root)
    assert root is not None
    known = Image.registered_extensions()
    _check_alike(root, found)
    train, test = (_split(root / folder, found, known) for folder in FOLDERS)
    return found, train, test


def _folders(place: Path) -> tuple[str, ...]:
    if not place.is_dir():
        raise UserError(
            f"{place} is not there; --data-root takes a folder with train/CLASS/ and val/CLASS/, full of image files"
        )
    found = tuple(sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and entry.name[0] != "."))
    if not found:
        raise UserError(f"{place} has no folder in it; put the images of each class into one, named like the class")
    return found


def _check_alike(root: Path, expected: tuple[str, ...]) -> None:
    found = _folders(root / "val")
    if wrong := sorted(set(found) ^ set(expected)):
        place = root / ("train" if wrong[0] in found else "val")
        raise UserError(
            f"class {wrong[0]!r} has no folder in {place}; train/ and val/ hold a folder for each class, named alike"
        )


def _split(place: Path, expected: tuple[str, ...], known: dict[str, str]) -> ImageFiles:
    names, labels = [], []
    for label, name in enumerate(expected):
        files = sorted(file for file in os.listdir(place / name) if os.path.splitext(file)[1].lower() in known)
        if not files:
            raise UserError(f"{place / name} holds no image; add some, or remove the folder from train/ and val/")
        names += [os.fsencode(f"{name}/{file}") for file in files]
        labels += [label] * len(files)
    return ImageFiles(place, np.array(names), torch.tensor(labels))


def normalisation() -> Normalisation:
    """(pixels / 255 - mean) / std with the numbers of ImageNet, also for other photographs."""
    return Normalisation(torch.tensor(MEAN).view(1, 1, 3), torch.tensor(STD))


@dataclass(frozen=True)
class _Training(Dataset[Any]):
    """One augmented image, by its index, step and place in the batch."""

    files: ImageFiles
    spec: DataSpec
    batch: int
    seed: int

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[np.ndarray, int] | str:
        index, step, place = key
        chance = generator(self.seed, "augment", step * self.batch + place)
        least = self.spec.shorter_side[0] if self.spec.augment == "scale" else None
        try:
            image = images.open_image(self.files.path(index), least)
        except ValueError as error:
            return str(error)
        return np.asarray(augmented(image, self.spec, chance)), int(self.files.labels[index])


@dataclass(frozen=True)
class _Test(Dataset[Any]):
    """One centre crop, by its index."""

    files: ImageFiles
    side: int
    crop: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int] | str:
        try:
            image = images.open_image(self.files.path(index), self.side)
        except ValueError as error:
            return str(error)
        return np.asarray(centre(image, self.side, self.crop)), int(self.files.labels[index])


def _collate(items: list[Any]) -> tuple[Tensor, Tensor] | str:
    """A batch; or, for the process that can tell the user, what is wrong with one of its files."""
    broken = next((item for item in items if isinstance(item, str)), None)
    if broken is not None:
        return broken
    pixels, labels = zip(*items, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


def _whole(found: tuple[Tensor, Tensor] | str) -> tuple[Tensor, Tensor]:
    if isinstance(found, str):
        raise UserError(f"{found}. Replace the file, or take it away")
    return found


def num_workers(asked: int | None) -> int:
    """How many processes read images: as asked, or one for each core but one."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 2) - 1)) if asked is None else asked


def _loading(dataset: Dataset[Any], workers: int, **order: Any) -> Iterator[Any]:
    """Batches as `_collate` makes them, read by other processes, which outlive a signal to end: the run still needs
    its next batch to end in order.
    """
    # spawned, not forked: a fork inherits locks of threads that it does not
    context = {"multiprocessing_context": "spawn", "worker_init_fn": _outlive_signals} if workers else {}
    loader = DataLoader(
        dataset,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        **context,  # type: ignore[arg-type]
        **order,
    )
    with signals.held_back() if workers else nullcontext():
        return iter(loader)


def _outlive_signals(_: int) -> None:
    signals.obey_parent_alone()


class FileBatches:
    """Augmented batches of image files as a pure function of the step; as `preresnet.data.loaders.TrainingBatches`.

    Steps that follow each other are read ahead.

    Args:
        files: training images.
        spec: augmentation.
        normalisation: on the device that trains.
        batch: images a step.
        seed: of the run.
        workers: processes that read; None chooses, 0 reads in this process.
    """

    def __init__(
        self,
        files: ImageFiles,
        spec: DataSpec,
        normalisation: Normalisation,
        batch: int,
        seed: int,
        workers: int | None = None,
    ) -> None:
        self.dataset = _Training(files, spec, batch, seed)
        self.order = Order(len(files), batch, seed)
        self.normalisation = normalisation
        self.workers = num_workers(workers)
        self._ahead: Iterator[tuple[Tensor, Tensor] | str] = iter(())
        self._next = -1

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: (batch, 3, size, size) float32 in channels_last; (batch,) int64.

        Raises:
            ValueError: a file is not a whole image; it is named.
        """
        if step != self._next:
            keys = _Keys(self.order, step)
            self._ahead = _loading(self.dataset, self.workers, batch_sampler=keys)
        pixels, labels = _whole(next(self._ahead))
        self._next = step + 1
        return _on_device(pixels, labels, self.normalisation)


@dataclass(frozen=True)
class _Keys:
    """For each step from one on, the keys of its images."""

    order: Order
    start: int

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        step = self.start
        while True:
            yield [(index, step, place) for place, index in enumerate(self.order.indices(step).tolist())]
            step += 1


def centre_batches(
    files: ImageFiles,
    side: int,
    crop: int,
    normalisation: Normalisation,
    workers: int | None = None,
    batch: int = 100,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The centre crop of every image once, in order; the last batch may be smaller.

    Larger crops than those of training pass through the same network: its head averages over whatever map remains,
    which is the fully convolutional test of the paper (appendix).

    Raises:
        ValueError: a file is not a whole image; it is named.
    """
    for found in _loading(_Test(files, side, crop), num_workers(workers), batch_size=batch):
        yield _on_device(*_whole(found), normalisation)


def _on_device(pixels: Tensor, labels: Tensor, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    device = normalisation.mean.device
    pixels, labels = (tensor.to(device, non_blocking=True) for tensor in (pixels, labels))
    return normalisation(pixels).permute(0, 3, 1, 2), labels
