"""Images with their labels, and a data set as training sees it: some to train on, some to evaluate on."""

import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from preresnet.data import files
from preresnet.data.files import ImageFiles


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Args:
        pixels: (n, h, w, c) uint8.
        labels: (n,) int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Images":
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def take(self, index: Tensor) -> "Images":
        """Some of the images, in the order of ``index`` (m,) int64."""
        return Images(self.pixels[index], self.labels[index])

    def fingerprint(self) -> str:
        """What other images, labels or orders would not have."""
        parts = (self.pixels, self.labels)
        return f"{len(self)}-" + "-".join(f"{zlib.crc32(one.cpu().numpy().tobytes()):08x}" for one in parts)


@dataclass(frozen=True)
class ImageSet:
    """A data set as training sees it.

    Args:
        classes: names, by label.
        train: images to train on.
        evaluation: images that errors are measured on.
        split: what ``evaluation`` is: ``test``, or ``holdout`` for held-out training images.
        note: what a user should know of it.
        across: pairs of images that are copies, one to evaluate on and one to train on, by their paths.
    """

    classes: tuple[str, ...]
    train: Images | ImageFiles
    evaluation: Images | ImageFiles
    split: str
    note: str = ""
    across: tuple[tuple[str, str], ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Classes, and channels of an image."""
        return len(self.classes), self.train.pixels.shape[-1] if isinstance(self.train, Images) else 3

    @property
    def num_listed(self) -> int:
        """How many image files were left out because a list names them."""
        parts = (self.train, self.evaluation)
        return sum(part.left_out.get(files.LISTED, 0) for part in parts if isinstance(part, ImageFiles))

    def names(self, root: Path | None) -> list[str]:
        """What to call each image of ``evaluation``: its path from ``root`` on, or its number."""
        if isinstance(self.evaluation, ImageFiles):
            return self.evaluation.listed(root or self.evaluation.root)
        return [f"{self.split} image {number}" for number in range(len(self.evaluation))]

    def words(self) -> str:
        """How many images of how many classes were read from where, and what was left out."""
        parts = (self.train, self.evaluation)
        places = [f" from {part.root}" if isinstance(part, ImageFiles) else "" for part in parts]
        roots = {part.root: part.left_out for part in parts if isinstance(part, ImageFiles)}
        left_out = sum(map(Counter, roots.values()), Counter[str]())
        return (
            f"read {len(self.train):,} images of {len(self.classes):,} classes{places[0]} to train on, "
            f"{len(self.evaluation):,}{places[1]} {'to test on' if self.split == 'test' else 'held out'}"
            f"{files.left_out_words(left_out)}"
        )
