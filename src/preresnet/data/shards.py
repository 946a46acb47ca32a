"""Images in shards: tar files as WebDataset lays them out, and Parquet files as Hugging Face's ``datasets`` does.

A shard is indexed once: where each image lies, and its class. Any image can then be read by itself, so that order and
augmentation are functions of seed and step here too. The index is kept among this user's cached files, and made anew
where the shard has changed. Parquet files are packed, so their images are copied once into a tar file beside the index.
"""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from fsspec.core import url_to_fs

from preresnet.data import images, shard_index
from preresnet.data.files import LISTED, ImageFiles
from preresnet.data.images import Packed
from preresnet.data.walk import is_hidden, kind_of, normal
from preresnet.fields import UserError
from preresnet.terminal import counting

CLASSES_FILE = "classes.txt"
SPLITS = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
PLACES = ("train", "val", "data")  # folders of shards
ENDS = (".tar", ".parquet")
SIDES = 100  # images, about, whose sizes are looked at


@dataclass(frozen=True)
class Packing:
    """Where images lie in shards.

    Args:
        shards: addresses of tar files.
        shard: (n,) int32, which of them.
        offset: (n,) int64, of the first byte.
        size: (n,) int64, bytes.
    """

    shards: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def take(self, index: np.ndarray) -> "Packing":
        """Of some of the images."""
        return Packing(self.shards, self.shard[index], self.offset[index], self.size[index])

    def read(self, index: int, name: str) -> Packed:
        """The bytes of one image; ``name`` is for messages."""
        shard, begin = self.shards[self.shard[index]], int(self.offset[index])
        size = int(self.size[index])
        try:
            data = _bytes(shard, begin, size)
        except Exception as error:  # whatever a file system's library raises
            raise UserError(f"{name} in {shard}: cannot be read ({error})") from None
        if len(data) < size:
            raise UserError(f"{name} in {shard}: the shard ends before the image does; get a whole copy")
        return Packed(f"{name} in {shard}", data)


@dataclass(frozen=True)
class Found:
    """Shards below a folder or an address, by the split that their names say."""

    classes_file: str | None
    by_split: dict[str, list[str]]


def address(root: Path) -> str:
    """A folder, or a URL that went through a `Path`, which makes one slash of two."""
    text = os.fspath(root)
    url = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", text)
    return f"{url[1]}://{url[2]}" if url and not Path(text).exists() else text


def find(root: Path) -> Found | None:
    """The shards of a root; None where it has none: it is a folder of images then.

    They lie right in it or in ``train``, ``val`` or ``data``, and their names or folders say the split: ``train``;
    ``val`` or ``validation``, without which it is ``test``; others are for training. Where folders of classes lie, a
    tar file beside them is none of it.

    Raises:
        UserError: a URL that cannot be opened.
    """
    place = address(root)
    if "://" not in place and (not os.path.isdir(place) or _has_classes(root)):
        return None
    try:
        system, path = url_to_fs(place)
        path = path.rstrip("/")
        listed = [one for inside in ("", *PLACES) for one in _inside(system, f"{path}/{inside}".rstrip("/"))]
    except Exception as error:  # a file system's library is missing, or refuses
        raise UserError(f"{place} cannot be opened ({error}); give a folder, or a URL that fsspec opens") from None
    by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    classes = None
    for one in sorted(set(listed)):
        inside = one[len(path) :].strip("/")
        if inside == CLASSES_FILE:
            classes = system.unstrip_protocol(one) if "://" in place else one
        elif inside.endswith(ENDS):
            by_split[_split(inside)].append(system.unstrip_protocol(one) if "://" in place else one)
        elif inside.endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")):
            raise UserError(f"{one} is compressed, so that no image in it can be read by itself; unpack it to .tar")
    if not any(by_split.values()):
        if "://" in place:
            raise UserError(f"{place} holds no .tar and no .parquet file")
        return None
    return Found(classes, {"train": by_split["train"], "val": by_split["val"] or by_split["test"]})


def _inside(system: Any, path: str) -> list[str]:
    return [one["name"] for one in system.ls(path, detail=True) if one["type"] == "file"] if system.isdir(path) else []


def _has_classes(root: Path) -> bool:
    """Whether image files lie in folders of their class."""
    places = [place for place in (root, root / "train") if place.is_dir()]
    folders = [one for place in places for one in place.iterdir() if one.name not in PLACES and not is_hidden(one.name)]
    return any(_holds_images(folder) for folder in folders if folder.is_dir())


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as inside:
        return any(kind_of(entry) == "image" for entry in inside)


def _split(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, known in SPLITS.items() if any(word in words for word in known)), "train")


def read(root: Path, split: str, leave_out: Collection[str] = ()) -> tuple[tuple[str, ...], ImageFiles]:
    """Classes and images of a split.

    Args:
        root: folder or address with shards.
        split: ``train`` or ``val``.
        leave_out: names of images that are not read.

    Raises:
        UserError: a shard cannot be read, or an image has no label; it is named.
    """
    found = find(root)
    assert found is not None
    shards = found.by_split[split]
    known = _listed_classes(found)
    with counting("shards") as report:
        indexes = []
        for number, shard in enumerate(shards, 1):
            indexes.append(shard_index.of(shard))
            report(number, len(shards))
    texts = [label for one in indexes for label in one["label"].tolist()]
    named = [_class(os.fsdecode(text), known) for text in texts]
    classes = tuple(sorted(set(named)))
    place = {name: label for label, name in enumerate(classes)}
    names = [os.fsdecode(name) for one in indexes for name in one["name"].tolist()]
    packing = Packing(
        tuple(str(one["packed"]) for one in indexes),
        np.repeat(np.arange(len(indexes), dtype=np.int32), [len(one["name"]) for one in indexes]),
        np.concatenate([one["offset"] for one in indexes] or [np.zeros(0, np.int64)]),
        np.concatenate([one["size"] for one in indexes] or [np.zeros(0, np.int64)]),
    )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        names = [
            f"{Path(shards[shard]).stem}/{name}" for name, shard in zip(names, packing.shard.tolist(), strict=True)
        ]
        if len(set(names)) < len(names):
            raise UserError(f"{root}: {twice[0]} is there more than once in a shard; name every image once")
    left_out = sum((Counter(json.loads(str(one["left_out"]))) for one in indexes), Counter[str]())
    images_of = ImageFiles(
        root,
        np.array([os.fsencode(name) for name in names], dtype=np.bytes_),
        torch.tensor([place[name] for name in named], dtype=torch.int64),
        dict(left_out),
        packing,
    )
    if leave_out:
        kept = [number for number, name in enumerate(names) if name not in leave_out]
        listed = {LISTED: len(names) - len(kept)}
        images_of = ImageFiles(root, images_of.names, images_of.labels, dict(left_out + Counter(listed)), packing)
        images_of = images_of.take(torch.tensor(kept, dtype=torch.int64))
    return classes, images_of


def median_side(found: ImageFiles) -> int:
    """The median of the shorter sides of some of the images, in pixels."""
    sides = []
    for index in range(0, len(found), max(1, len(found) // SIDES)):
        with contextlib.suppress(UserError):
            sides.append(min(images.open_image(found.file(index)).size))
    return int(np.median(sides)) if sides else 0


def classes(root: Path) -> tuple[str, ...]:
    """Names of the classes of the training images, or, where there are none, of those to test."""
    found = find(root)
    assert found is not None
    return read(root, "train" if found.by_split["train"] else "val")[0]


def _listed_classes(found: Found) -> tuple[str, ...]:
    if found.classes_file is None:
        return ()
    with fsspec.open(found.classes_file, "rt", encoding="utf-8-sig") as file:
        return tuple(line.strip() for line in file.read().splitlines() if line.strip())  # type: ignore[union-attr]


def _class(label: str, known: Sequence[str]) -> str:
    """The name of a class from what a shard says: a name, or a number in the list of names."""
    if known and label.isdecimal() and label not in known:
        if int(label) >= len(known):
            raise UserError(f"label {label}, but {CLASSES_FILE} names {len(known)} classes; add the missing ones")
        return normal(known[int(label)])
    return normal(label)


def _bytes(shard: str, begin: int, size: int) -> bytes:
    if "://" in shard:
        system, path = _system(shard)
        return system.cat_file(path, start=begin, end=begin + size)
    if hasattr(os, "pread"):  # which threads can share
        return os.pread(_descriptor(shard, os.getpid()), size, begin)
    with open(shard, "rb") as file:
        file.seek(begin)
        return file.read(size)


@lru_cache(maxsize=256)
def _system(shard: str) -> tuple[Any, str]:
    return url_to_fs(shard)


class _File:
    """An open file that closes with its last user."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


@lru_cache(maxsize=256)
def _opened(shard: str, process: int) -> _File:
    del process  # a child has its own
    return _File(shard)


def _descriptor(shard: str, process: int) -> int:
    return _opened(shard, process).descriptor
