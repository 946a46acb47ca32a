"""A list of files that training leaves out, as people can read and change it.

A line is a file's path from the folder of images on, then a tab and the reason, which may be missing. Lines that start
with # say something. A path that holds a tab, the end of a line or what is no text stands in quotes, as JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from preresnet.spec import UserError

HEAD = """\
# Files that training leaves out (--leave-out), one a line: path, tab, reason. Made by `preresnet data check`.
"""


def check_new(path: Path) -> None:
    """Refuse a file that is there already.

    Raises:
        UserError: it is, or its folder is not.
    """
    if path.exists():
        raise UserError(f"{path} is there already; give a new file to --list-out, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; make it, or give another file to --list-out")


def write(path: Path, files: Mapping[str, str]) -> None:
    """Write a list to a new file: paths, and why each is left out."""
    with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text(files))


def text(files: Mapping[str, str], head: str = HEAD) -> str:
    """A list as text: its first lines, then paths and what is said of each."""
    return head + "".join(f"{_written(file)}\t{' '.join(said.split())}\n" for file, said in files.items())


def _written(file: str) -> str:
    plain = file.isprintable() and file[:1] not in '#"' and file == file.strip()
    return file if plain else json.dumps(file)


def read(path: Path) -> frozenset[str]:
    """The paths of a list.

    Raises:
        UserError: the file cannot be read, or a line of it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is no text in UTF-8; give what `preresnet data check DIR --list-out FILE` wrote"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give what `data check --list-out` wrote") from None
    found = set()
    for number, line in enumerate(lines, 1):
        file = line.split("\t")[0]
        if not file.strip() or file.startswith("#"):
            continue
        try:
            found.add(json.loads(file) if file.startswith('"') else file.strip())
        except ValueError:
            raise UserError(f"{path}, line {number}: {file!r} is no path; write it without quotes") from None
    return frozenset(found)
