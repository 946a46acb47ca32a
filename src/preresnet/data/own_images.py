"""One's own images, in folders or in shards: which there are, and which are kept for validation."""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from preresnet.data import copies, division, files, shards
from preresnet.data.files import ImageFiles
from preresnet.data.image_set import ImageSet
from preresnet.data.images import open_image
from preresnet.data.scan import Scan, path_of, scan
from preresnet.data.walk import normal
from preresnet.fields import UserError
from preresnet.recipe import PHOTOGRAPHS, Photographs
from preresnet.terminal import counting

NAMED = 10  # broken images, at most
HEAD = """\
# Images that this run does not train on and is evaluated on, one a line: path from --data-root on, tab, class.
"""


def classes(root: Path | None) -> tuple[str, ...]:
    """Names of the classes of one's own images, in folders or in shards.

    Raises:
        ValueError: there are none.
    """
    return shards.classes(root) if root is not None and shards.find(root) else files.classes(PHOTOGRAPHS, root)


def read(
    spec: Photographs,
    root: Path | None,
    leave_out: Collection[str] = (),
    written: Collection[str] | None = None,
) -> ImageSet:
    """Images to train on and images to evaluate on.

    With ``val/`` there, those in it are evaluated (``test``); else, or with ``spec.holdout``, some of the others are
    kept for that (``holdout``), by `division.divide`. Every file is read once before (`preresnet.data.scan`), so that
    a broken one is found now and copies stay on one side.

    Args:
        spec: says how to divide.
        root: folder of the images.
        leave_out: files that are not read, by their paths from ``root`` on.
        written: the paths that are kept for evaluation, from an earlier division; None: divide.

    Raises:
        ValueError: a folder or class is missing, or a file is no whole image; it is named.
    """
    if root is not None and shards.find(root):
        return _of_shards(spec, root, leave_out, written)
    root, part = files.training_place(root)
    names = files.classes(spec.name, root)
    with counting("files") as report, scan(root, report) as found:
        if spec.broken == "skip":
            leave_out = {*leave_out, *broken(found)}
        whole = files.split(root, part, names, leave_out)
        tested = files.split(root, "val", (), leave_out)
        is_test = (root / "val").is_dir() and not spec.holdout
        if is_test:
            tested = files.split(root, "val", files.matching(root, names), leave_out)
        listed = list(map(normal, whole.listed(root)))
        _refuse_broken(found, root, {*listed, *map(normal, tested.listed(root))})
        if is_test:
            seen, shown = set(listed), set(map(normal, tested.listed(root)))
            both = [(one, other) for pair in like(found) for one, other in (pair, pair[::-1])]
            across = tuple(sorted((one, other) for one, other in both if one in shown and other in seen))
            return ImageSet(names, whole, tested, "test", across=across)
        kept = _kept(spec, whole, listed, like(found), written)
    return ImageSet(names, *_apart(whole, kept, root / part), "holdout")


def _kept(
    spec: Photographs,
    whole: ImageFiles,
    listed: Sequence[str],
    pairs: Iterable[tuple[str, str]],
    written: Collection[str] | None,
) -> list[int]:
    """Which images are kept for validation: those that were written down, or those that the recipe's rule gives."""
    if written is not None:
        return division.places(listed, written)
    if spec.holdout >= len(whole):
        raise UserError(f"holdout={spec.holdout}, but there are {len(whole)} images to train on; hold out fewer")
    share = spec.holdout / len(whole) if spec.holdout else spec.share
    grouped = division.groups(listed, pairs, spec.group_by)
    return division.divide(whole.labels.tolist(), grouped, share, spec.split_seed)


def _apart(whole: ImageFiles, kept: Sequence[int], place: Path) -> tuple[ImageFiles, ImageFiles]:
    """The images without those that are kept for validation, and those."""
    if not 0 < len(kept) < len(whole):
        raise UserError(
            f"of the {len(whole):,} images in {place} {len(kept):,} would be kept for validation; give more "
            "images, another data.share, or val/"
        )
    held = torch.zeros(len(whole), dtype=torch.bool)
    held[list(kept)] = True
    return whole.take((~held).nonzero().flatten()), whole.take(held.nonzero().flatten())


def _of_shards(spec: Photographs, root: Path, leave_out: Collection[str], written: Collection[str] | None) -> ImageSet:
    """As `read`, for images in shards: copies are not looked for, and broken ones are found when they are needed."""
    found = shards.find(root)
    assert found is not None
    if not found.by_split["train"]:
        raise UserError(f"{shards.address(root)} has no shards to train on; name some train-*.tar, say")
    names, whole = shards.read(root, "train", leave_out)
    if found.by_split["val"] and not spec.holdout:
        known, tested = shards.read(root, "val", leave_out)
        labels = files.labels_by_name(known, names, f"the shards to test in {shards.address(root)}")
        tested, note = _readable(spec, replace(tested, labels=labels[tested.labels]))
        return ImageSet(names, whole, tested, "test", note)
    listed = list(map(normal, whole.listed(root)))
    kept = _kept(spec, whole, listed, (), written)
    train, tested = _apart(whole, kept, root)
    tested, note = _readable(spec, tested)
    return ImageSet(names, train, tested, "holdout", note)


def evaluated(
    spec: Photographs, root: Path | None, leave_out: Collection[str] = (), written: Collection[str] | None = None
) -> ImageSet:
    """Images for a network that is trained; none to train on.

    Those in ``val/``; without it, those that the network's run has kept for that; where none of them is there, all.
    """
    packed = shards.find(root) if root is not None else None
    root, part = files.training_place(root)
    if packed:
        is_test = bool(packed.by_split["val"]) and not spec.holdout
        found, whole = shards.read(root, "val" if is_test else "train", leave_out)
        if is_test:
            whole, note = _readable(spec, whole)
            return ImageSet(found, _none(whole), whole, "test", note)
    elif (root / "val").is_dir() and not spec.holdout:
        found, none, tested = files.read("folder", root, train=False, leave_out=leave_out)
        return ImageSet(found, none, tested, "test")
    else:
        found = files.classes(spec.name, root)
        whole = files.split(root, part, found, leave_out)
    kept = division.places(map(normal, whole.listed(root)), written or ())
    if not kept:
        why = "none of them is an image that the run kept for validation" if written else "it holds no val/"
        return ImageSet(found, _none(whole), whole, "test", f"all images in {root / part} are measured: {why}")
    missing = len(set(map(normal, written or ()))) - len(kept)
    note = f"{missing:,} of the images that the run kept for validation are not there" if missing else ""
    tested = whole.take(torch.tensor(kept))
    if packed:
        tested, more = _readable(spec, tested)
        note = "; ".join(filter(None, (note, more)))
    return ImageSet(found, _none(whole), tested, "holdout", note)


def _none(images: ImageFiles) -> ImageFiles:
    return images.take(torch.arange(0))


def _readable(spec: Photographs, tested: ImageFiles) -> tuple[ImageFiles, str]:
    """The images of shards that are whole, where broken ones are to be skipped, and which were skipped, in words."""
    if spec.broken != "skip":
        return tested, ""
    broken: dict[int, str] = {}

    def look(index: int) -> None:
        try:
            open_image(tested.file(index), spec.test_sides[0])
        except UserError as error:
            broken[index] = str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(look, range(len(tested))))
    if not broken:
        return tested, ""
    whole = [index for index in range(len(tested)) if index not in broken]
    said = "; ".join(broken[index] for index in sorted(broken)[:NAMED])
    note = f"{len(broken):,} images to evaluate on are broken and skipped: {said}"
    return tested.take(torch.tensor(whole, dtype=torch.int64)), note


def broken(found: Scan) -> dict[str, str]:
    """Files that are no whole images, by their paths, with what is wrong."""
    rows = found.rows("SELECT folder, name, broken FROM files WHERE other = '' AND broken != ''")
    return {path_of(folder, name): why for folder, name, why in rows}


def like(found: Scan) -> Iterator[tuple[str, str]]:
    """Pairs of files that are copies of each other."""
    return ((_path(found, one), _path(found, other)) for one, other in copies.pairs(found))


def _refuse_broken(found: Scan, root: Path, used: Collection[str]) -> None:
    """Say which of the images cannot be read, before a network sees the first."""
    damaged = [(file, why) for file, why in broken(found).items() if normal(file) in used]
    if damaged:
        (file, why), number = min(damaged), len(damaged)
        there = f"{number:,} files are no whole images, {file} for one" if number > 1 else f"{file} is no whole image"
        raise UserError(
            f"in {root} {there} ({why}); mend or remove {'them' if number > 1 else 'it'}, or leave "
            f"{'them' if number > 1 else 'it'} out: `preresnet data check DIR --list-out FILE` makes a list for "
            "--leave-out"
        )


def _path(found: Scan, number: int) -> str:
    folder, name = found.index.execute("SELECT folder, name FROM files WHERE rowid = ?", (number,)).fetchone()
    return normal(path_of(folder, name))
