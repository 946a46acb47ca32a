"""The images of a data set, read and padded, with some of them held out."""

import importlib
from pathlib import Path

import torch
from torch import Tensor

from preresnet.data import files, leaving_out, own_images
from preresnet.data.files import ImageFiles
from preresnet.data.image_set import Images, ImageSet
from preresnet.recipe import DATA_SETS, DataSpec, ImagesInFiles, PaperPhotographs, Photographs
from preresnet.spec import UserError

HOLDOUT_SEED = 2016  # one split for all runs, so that their held-out errors can be compared


def shape(spec: DataSpec, root: Path | None) -> tuple[int, int]:
    """Classes and channels of a data set; of ``folder`` by looking into it.

    Raises:
        ValueError: there is no such folder.
    """
    known = DATA_SETS[spec.name]
    if isinstance(spec, Photographs):
        return len(own_images.classes(root)), known.channels
    return known.classes or len(files.classes(spec.name, root)), known.channels


def load(spec: DataSpec, root: Path | None, leave_out: Path | None = None, written: Path | None = None) -> ImageSet:
    """Read a data set, padded to ``spec.image_size``, with ``spec.holdout`` applied; of image files, their names.

    Args:
        spec: which set, and how many training images to hold out.
        root: folder that holds the official files, or train/ and val/; None downloads them (CIFAR; digits need no
            file).
        leave_out: a list of image files that are not read (`preresnet.data.leaving_out`).
        written: a list of those kept for evaluation, as a run of `Photographs` without ``val/`` wrote it down.

    Raises:
        ValueError: a file is missing, truncated or altered (it is named); the images are larger than the network's
            input; more images are held out than there are.
    """
    training: Images | ImageFiles
    testing: Images | ImageFiles
    listed = leaving_out.read(leave_out) if leave_out else frozenset()
    if isinstance(spec, Photographs):
        kept = leaving_out.read(written) if written else None
        return own_images.read(spec, root, listed, kept)
    if isinstance(spec, ImagesInFiles):
        classes, training, testing = files.read(spec.name, root, test=spec.holdout == 0, leave_out=listed)
    else:
        reader = importlib.import_module(f"preresnet.data.{DATA_SETS[spec.name].reader}")
        classes, *splits = reader.read(spec.name, root)
        training, testing = (Images(pad(pixels, spec.image_size), labels) for pixels, labels in splits)
    if spec.holdout == 0:
        return ImageSet(classes, training, testing, "test")
    if spec.holdout >= len(training):
        raise UserError(f"holdout={spec.holdout}, but {spec.name} has {len(training)} training images; hold out fewer")
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(HOLDOUT_SEED))
    kept, held = order[spec.holdout :], order[: spec.holdout]
    return ImageSet(classes, training.take(kept), training.take(held), "holdout")


def load_tested(
    spec: PaperPhotographs | Photographs, root: Path | None, leave_out: Path | None = None, written: Path | None = None
) -> ImageSet:
    """As `load`, for a network that is trained: ``train/`` need not be there, unless its images are evaluated."""
    listed = leaving_out.read(leave_out) if leave_out else frozenset()
    if isinstance(spec, Photographs):
        kept = leaving_out.read(written) if written else None
        return own_images.evaluated(spec, root, listed, kept)
    if spec.holdout:
        return load(spec, root, leave_out)
    classes, train, tested = files.read(spec.name, root, train=False, leave_out=listed)
    return ImageSet(classes, train, tested, "test")


def pad(pixels: Tensor, size: int) -> Tensor:
    """(n, h, w, c) -> (n, size, size, c), centred on zeros.

    Raises:
        ValueError: the images are larger than ``size``.
    """
    n, height, width, channels = pixels.shape
    if height > size or width > size:
        raise UserError(f"images of {height}x{width} do not fit image_size={size}; give {max(height, width)} or more")
    if (height, width) == (size, size):
        return pixels
    padded = torch.zeros(n, size, size, channels, dtype=torch.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    padded[:, top : top + height, left : left + width] = pixels
    return padded
