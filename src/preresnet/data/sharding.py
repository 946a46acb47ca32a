"""Image files put into tar shards, as WebDataset lays them out."""

import io
import os
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from preresnet.data import files
from preresnet.data.files import ImageFiles
from preresnet.data.shards import CLASSES_FILE
from preresnet.fields import UserError
from preresnet.recipe import PHOTOGRAPHS
from preresnet.terminal import counting


def write(root: Path, out: Path, megabytes: int, seed: int, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Put images in folders of their class into shards.

    A shard holds ``CLASS/NAME.EXT``, the file as it is, and ``CLASS/NAME.cls``, the number of its class in
    ``classes.txt``. The order is by chance, so that who reads from first to last meets all classes.

    Args:
        root: folder of images, in folders of their class, right in it or in ``train/`` and ``val/``.
        out: folder for the shards; created.
        megabytes: that a shard has, about.
        seed: of the order.
        leave_out: files that are not put in, by their paths from ``root`` on.

    Returns:
        ``shards`` (their names), ``num_images`` and ``classes`` (names).

    Raises:
        UserError: no images there, something in ``out``, or a file that cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and is not empty; give a new folder")
    place, part = files.training_place(root)
    names = files.classes(PHOTOGRAPHS, place)
    parts = {"train": files.split(place, part, names, leave_out)}
    if (place / "val").is_dir():
        parts["val"] = files.split(place, "val", files.matching(place, names), leave_out)
    out.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    total, done = sum(map(len, parts.values())), 0
    with counting("images") as report:
        for split, found in parts.items():
            taken: set[str] = set()  # keys
            for number, inside in enumerate(_divided(found, megabytes * 2**20, seed)):
                written.append(f"{split}-{number:06d}.tar")
                _write_shard(out / written[-1], found, inside, taken)
                done += len(inside)
                report(done, total)
    (out / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8", errors="surrogateescape")
    return {"shards": written, "num_images": total, "classes": list(names)}


def _divided(found: ImageFiles, most: int, seed: int) -> Iterator[list[int]]:
    """The images of each shard, in an order by chance."""
    inside: list[int] = []
    size = 0
    for index in torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist():
        length = found.path(index).stat().st_size
        if inside and size + length > most:
            yield inside
            inside, size = [], 0
        inside.append(index)
        size += length
    if inside:
        yield inside


def _write_shard(path: Path, found: ImageFiles, inside: list[int], taken: set[str]) -> None:
    with tarfile.open(path, "x", format=tarfile.PAX_FORMAT) as tar:
        for index in inside:
            key, end = _key(os.fsdecode(bytes(found.names[index])), taken)
            label = str(int(found.labels[index])).encode()
            for last, content in ((end, found.path(index).read_bytes()), (".cls", label)):
                member = tarfile.TarInfo(key + last)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _key(name: str, taken: set[str]) -> tuple[str, str]:
    """The key and the end of an image's name in a shard: no dot in the key, and none that is taken."""
    stem, end = os.path.splitext(files.slashed(name))
    folder, _, last = stem.rpartition("/")
    plain = key = f"{folder}/{last.replace('.', '_')}"
    number = 1
    while key in taken:
        number += 1
        key = f"{plain}-{number}"
    taken.add(key)
    return key, end.lower()
