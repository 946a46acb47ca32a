"""Which files below a folder are images, and what to call the others."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from preresnet.data import images
from preresnet.spec import UserError

NOT_OURS = ("__MACOSX", "@eaDir")  # folders that archives of macOS and network drives add, with files named like images


def find(place: Path) -> tuple[list[str], Counter[str]]:
    """Image files in a folder and in the folders below it, in the order of torchvision's ``ImageFolder``.

    An image is a regular file, or a link to one, whose name ends like a picture that can be read here and does not
    start with a dot. Hidden folders are left out too, and a folder that links lead to again is read once.

    Args:
        place: the folder.

    Returns:
        Names that start from ``place``; how many files were left out, by kind.

    Raises:
        ValueError: a folder cannot be read; it is named.
    """
    left_out: Counter[str] = Counter()
    by_folder: list[tuple[str, list[str]]] = []
    for folder, found in folders(place):
        by_folder.append((folder, sorted(entry.name for entry, kind in found if kind == "image")))
        left_out.update(kind for _, kind in found if kind != "image")
    return [os.path.join(folder, name) for folder, here in sorted(by_folder) for name in here], left_out


def folders(place: Path) -> Iterator[tuple[str, list[tuple[os.DirEntry[str], str]]]]:
    """A folder and those below it that are not hidden, each once: its name, and its files with `kind_of`.

    Names start from ``place``.

    Raises:
        ValueError: a folder cannot be read; it is named.
    """
    real, links, seen = [""], [], set()
    while real or links:
        folder = real.pop() if real else links.pop()  # what is reached without a link is named without it
        found, status = entries(os.path.join(place, folder))
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        files = []
        for entry in found:
            kind = kind_of(entry)
            if kind == "folder":
                (links if entry.is_symlink() else real).append(os.path.join(folder, entry.name))
            else:
                files.append((entry, kind))
        yield folder, files


def entries(place: str) -> tuple[list[os.DirEntry[str]], os.stat_result]:
    """What is in a folder, from the last name to the first, and its status."""
    try:
        with os.scandir(place) as found:
            return sorted(found, key=lambda entry: entry.name, reverse=True), os.stat(place)
    except OSError as error:
        raise UserError(f"{place}: the folder cannot be read ({error.strerror or error})") from None


def kind_of(entry: os.DirEntry[str]) -> str:
    """``folder``, ``image``, or what to call what is left out."""
    if is_hidden(entry.name):
        return "hidden"
    try:
        if entry.is_dir():
            return "folder"
        is_file = entry.is_file()
    except OSError:  # a link to itself
        is_file = False
    end = os.path.splitext(entry.name)[1].lower()
    if end not in images.extensions():
        return end or "without an extension"
    return "image" if is_file else "not a regular file"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not meant to be seen."""
    return name.startswith(".") or name in NOT_OURS


def normal(name: str) -> str:
    """A name as names are compared: accents composed (NFC), because file systems differ in how they keep them."""
    return unicodedata.normalize("NFC", name)
