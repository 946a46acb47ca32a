"""Image files in folders, one for each class: which there are, of which class, and what was left out."""

import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from preresnet.data.walk import entries, find, kind_of, normal
from preresnet.recipe import DATA_SETS, PHOTOGRAPHS
from preresnet.spec import UserError

if TYPE_CHECKING:
    from preresnet.data.images import File
    from preresnet.data.shards import Packing

LAYOUT = "--data-root takes a folder with train/CLASS/ and val/CLASS/, full of image files"
OWN_LAYOUT = (
    "--data-root takes a folder with a folder of image files for each class, or with train/CLASS/ and val/CLASS/"
)
KINDS_SHOWN = 8
LISTED = "on the list"  # what files are called that --leave-out names


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels.

    Args:
        root: folder that the names start from.
        names: (n,) file names as bytes: an array takes a tenth of the memory of n paths.
        labels: (n,) int64.
        left_out: how many files below the folder were left out, by kind.
        packing: where they lie in shards; None: they are files of their own.
    """

    root: Path
    names: np.ndarray
    labels: Tensor
    left_out: Mapping[str, int] = field(default_factory=dict)
    packing: "Packing | None" = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageFiles":
        """Themselves: files are read where they lie, and batches are moved."""
        del device
        return self

    def take(self, index: Tensor) -> "ImageFiles":
        """Some of the files, in the order of ``index`` (m,) int64."""
        chosen = index.cpu().numpy()
        packing = self.packing and self.packing.take(chosen)
        return ImageFiles(self.root, self.names[chosen], self.labels[index], self.left_out, packing)

    def fingerprint(self) -> str:
        """What other names, labels or orders would not have; the files are not read."""
        parts = (b"\0".join(self.names.tolist()), self.labels.numpy().tobytes())
        return f"{len(self)}-" + "-".join(f"{zlib.crc32(one):08x}" for one in parts)

    def path(self, index: int) -> Path:
        """Of one file."""
        return self.root / os.fsdecode(self.names[index])

    def file(self, index: int) -> "File":
        """What to read one image from: its path, or its bytes in a shard.

        Raises:
            ValueError: the shard cannot be read; it is named.
        """
        return self.path(index) if self.packing is None else self.packing.read(index, os.fsdecode(self.names[index]))

    def listed(self, start: Path) -> list[str]:
        """Paths of all files from a folder on that lies above, with slashes, as lists of files hold them."""
        if self.packing is not None:
            return [os.fsdecode(name) for name in self.names]
        inside = os.path.relpath(self.root, start)
        return [slashed(os.path.normpath(os.path.join(inside, os.fsdecode(name)))) for name in self.names]


def read(
    name: str, root: Path | None, *, train: bool = True, test: bool = True, leave_out: Collection[str] = ()
) -> tuple[tuple[str, ...], ImageFiles, ImageFiles]:
    """Classes, training images and test images of a set: all below ``root/train/CLASS`` and ``root/val/CLASS``.

    Which files are images, and their order, says `find`; labels count the classes in sorted order. Both are as in
    torchvision's ``ImageFolder``.

    Args:
        name: ``imagenet`` (1,000 classes), or ``folder``.
        root: folder with both.
        train: whether training images are wanted; if not, the classes are those in ``val``.
        test: whether test images are wanted; if not, ``val`` need not be there and the last part is empty.
        leave_out: files that are not read, by their paths from ``root`` on (`preresnet.data.leaving_out`).

    Raises:
        ValueError: a folder or a class is missing, or one holds no image; it is named.
    """
    if not train and root is not None:
        found = _folders(root, "val")
        return found, split(root, "val", (), leave_out), split(root, "val", found, leave_out)
    found = classes(name, root)
    assert root is not None
    places = matching(root, found) if test else ()
    return found, split(root, "train", found, leave_out), split(root, "val", places, leave_out)


def classes(name: str, root: Path | None) -> tuple[str, ...]:
    """Names of the classes of a set: the folders in ``train``, sorted; of one's own set perhaps those right in it.

    Raises:
        ValueError: no such folder, no class in it, or another number than the set has.
    """
    if name == PHOTOGRAPHS:
        return _folders(*training_place(root), OWN_LAYOUT)
    if root is None:
        raise UserError(f"{name} is not downloaded; give the folder that holds train/ and val/ as --data-root")
    found = _folders(root, "train")
    expected = DATA_SETS[name].classes or len(found)
    if len(found) != expected:
        words = "; --data.name folder trains on any number of classes" if name == "imagenet" else ""
        raise UserError(f"{root / 'train'} has {len(found)} folders of classes, {name} has {expected}{words}")
    return found


def training_place(root: Path | None) -> tuple[Path, str]:
    """A folder of one's own images, and the part of it with those to train on: ``train``, or all of it.

    Raises:
        ValueError: no folder is given.
    """
    if root is None:
        raise UserError(f"no images given; {OWN_LAYOUT}")
    return root, "train" if (root / "train").is_dir() or (root / "val").is_dir() else ""


def _folders(root: Path, split: str, layout: str = LAYOUT) -> tuple[str, ...]:
    """Names of the folders of classes in ``root/split``, sorted.

    Raises:
        ValueError: there are none; says what is there instead.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root} is {'a file' if os.path.exists(root) else 'not there'}; {layout}")
    place = root / split
    if not os.path.isdir(place):
        found, loose = _inside(root)
        there = f"{root} holds {_list([f'{name}/' for name in found], 'no folder')}{_and_images(loose)}"
        divide = (
            ", so divide the images of each class between them" if found and not {"train", "val"} & {*found} else ""
        )
        raise UserError(f"{place} is not there: {there}; {layout}{divide}")
    found, loose = _inside(place)
    if not found:
        raise UserError(
            f"{place} has no folder in it{_and_images(loose)}; put the images of each class into one, named like the "
            f"class: {layout}"
        )
    alike = Counter(map(normal, found))
    if len(alike) < len(found):
        name = next(name for name in found if alike[normal(name)] > 1)
        raise UserError(f"{place} has two folders named {name!r}, in two ways of writing its accents; rename one")
    return found


def _inside(place: Path) -> tuple[tuple[str, ...], list[str]]:
    """Folders and image files right in a folder."""
    found = entries(str(place))[0][::-1]
    kinds = [kind_of(entry) for entry in found]
    folders, loose = (
        [entry.name for entry, kind in zip(found, kinds, strict=True) if kind == wanted]
        for wanted in ("folder", "image")
    )
    return tuple(folders), loose


def _and_images(names: list[str]) -> str:
    return f", and {len(names):,} images ({names[0]!r}, ...) that lie in no folder of a class" if names else ""


def _list(names: Sequence[str], none: str, most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") if names else none


def matching(root: Path, expected: tuple[str, ...]) -> tuple[str, ...]:
    """The folders in ``val`` that belong to the classes, in their order; refused where one has no counterpart."""
    found = _folders(root, "val")
    by_name = {normal(name): name for name in found}
    wanted = {normal(name): name for name in expected}
    if wrong := sorted(by_name.keys() ^ wanted.keys()):
        name, (split, others) = wrong[0], ("train", wanted) if wrong[0] in by_name else ("val", by_name)
        raise UserError(
            f"class {(by_name | wanted)[name]!r} has no folder in {root / split}{_near(name, others)}; "
            "train/ and val/ hold a folder for each class, named alike"
        )
    return tuple(by_name[name] for name in wanted)


def split(root: Path, part: str, folders: tuple[str, ...], leave_out: Collection[str] = ()) -> ImageFiles:
    """The images of some folders of classes in a part of a set, labelled by the place of their folder among them.

    Args:
        root: folder of the set.
        part: ``train``, ``val``, or empty for all of it.
        folders: names, by label.
        leave_out: files that are not read, by their paths from ``root`` on.

    Raises:
        ValueError: one holds no image; it is named.
    """
    place = root / part
    names: list[bytes] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    if folders:
        beside = Counter(map(kind_of, entries(str(place))[0]))
        left_out += Counter({"images in no class" if kind == "image" else kind: beside[kind] for kind in beside})
        del left_out["folder"]
    for label, folder in enumerate(folders):
        found, others = find(place / folder)
        if leave_out:
            kept = [name for name in found if slashed(os.path.join(part, folder, name)) not in leave_out]
            others[LISTED] += len(found) - len(kept)
            found = kept
        if not found:
            raise UserError(
                f"{place / folder} holds no image{left_out_words(others)}; add some, or remove the folder"
                + (" from train/ and val/" if part else "")
            )
        names += [os.fsencode(f"{folder}/{name}") for name in found]
        labels += [label] * len(found)
        left_out += others
    return ImageFiles(place, np.array(names, dtype=np.bytes_), torch.tensor(labels, dtype=torch.int64), left_out)


def slashed(path: str) -> str:
    """A path with slashes on every system, as lists of files hold it."""
    return path.replace(os.sep, "/")


def labels_by_name(found: Sequence[str], known: Sequence[str], place: str) -> Tensor:
    """The labels that a network has for classes of these names: (len(found),) int64.

    Args:
        found: names of the classes of a data set.
        known: those that the network answers with, by label.
        place: where the data set lies, for the message.

    Raises:
        ValueError: the network has no class of such a name; the first is named.
    """
    labels = {normal(name): label for label, name in enumerate(known)}
    for name in found:
        if normal(name) not in labels:
            raise UserError(
                f"class {name!r} of {place} is none of the {len(known)} classes that the network was trained on "
                f"({_list([repr(one) for one in known], '')}){_near(normal(name), labels)}; give images of those "
                "classes, in folders named like them"
            )
    return torch.tensor([labels[normal(name)] for name in found], dtype=torch.int64)


def _near(name: str, others: Iterable[str]) -> str:
    folded = {other.casefold(): other for other in others}
    near = get_close_matches(name.casefold(), folded, n=1, cutoff=0.8)
    return f" ({folded[near[0]]!r} is there)" if near else ""


def left_out_words(left_out: Mapping[str, int]) -> str:
    """``; left out: 3 hidden, 1 .pdf``, or nothing."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {kind}" for kind, count in kinds[:KINDS_SHOWN]]
    if rest := sum(count for _, count in kinds[KINDS_SHOWN:]):
        shown.append(f"{rest:,} of other kinds")
    return f"; left out: {', '.join(shown)}" if shown else ""
