"""What is wrong with a folder of images: broken files, copies, rare or missing classes, and what is unusual."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from statistics import median
from typing import Any, Literal

from PIL import Image

from preresnet.data import copies
from preresnet.data.scan import Scan, path_of, scan
from preresnet.data.walk import is_hidden, normal
from preresnet.spec import UserError

SPLITS = ("train", "val", "test")
RARE = 1 / 4  # of the images that the median class has
FEW = 5  # images of a class, below which it is rare whatever the others have
LARGE, SMALL = 50_000_000, 32  # pixels of an image; its shorter side
STRIP = 4  # longer side over shorter side
COMMON = 0.9  # share of images that a mode must have for the others to be unusual
LIKE = 0.9  # how like two names of classes are that may be one

Kind = Literal["broken", "copy", "turned", "unusual", "not_image"]
KINDS: tuple[Kind, ...] = ("broken", "copy", "turned", "unusual", "not_image")


@dataclass(frozen=True)
class Problem:
    """Something about one file that a person should look at.

    Args:
        file: its path from the folder on, with slashes.
        kind: ``broken`` (no whole image), ``copy``, ``turned`` (stored on its side or mirrored, EXIF says so),
            ``unusual`` (how it is stored, named or shaped), or ``not_image``.
        why: in words.
        of: the file that it is a copy of.
    """

    file: str
    kind: Kind
    why: str
    of: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON: ``of`` for a copy alone."""
        return {"file": self.file, "kind": self.kind, **({"of": self.of} if self.of else {}), "why": self.why}


@dataclass(frozen=True)
class Findings:
    """All that was found.

    Args:
        num_files: files that are not in hidden folders.
        num_images: whole images among them.
        num_read: files that were read now; the others were known from an earlier time.
        classes: how many whole images each class has, over all splits.
        rare: classes with few images: fewer than a quarter of what the median class has, or than five.
        missing: classes that a split lacks, as ``split/class``.
        alike: pairs of classes whose names differ in spelling or case alone.
        problems: of files, in the order of their names.
        leave_out: files that training had better not see, with the reason.
    """

    num_files: int
    num_images: int
    num_read: int
    classes: dict[str, int]
    rare: list[str]
    missing: list[str]
    alike: list[tuple[str, str]]
    problems: list[Problem]
    leave_out: dict[str, str] = field(default_factory=dict)

    @property
    def needs_a_person(self) -> bool:
        """Whether anything was found."""
        return bool(self.problems or self.rare or self.missing or self.alike)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "num_files": self.num_files,
            "num_images": self.num_images,
            "classes": self.classes,
            "rare": self.rare,
            "missing": self.missing,
            "alike": [list(pair) for pair in self.alike],
            "problems": [problem.as_dict() for problem in self.problems],
        }


def check(root: Path, report: Callable[[int, int], None] | None = None, workers: int | None = None) -> Findings:
    """Look at every file of a folder of images once, and say what is wrong.

    Images lie in folders of their class, right in the folder or in ``train/``, ``val/`` and ``test/``::

        from preresnet.data.checking import check
        found = check(Path("photos"))

    Args:
        root: the folder.
        report: is told how many files of how many have been read.
        workers: processes that read; None: one for each core.

    Raises:
        UserError: no such folder, one that cannot be read, or one without files.
    """
    with scan(root, report, workers) as found:
        layout = _layout(root)
        num_files, num_images = found.index.execute(
            "SELECT count(*), count(*) FILTER (WHERE other = '' AND broken = '') FROM files"
        ).fetchone()
        if not num_files:
            raise UserError(f"{root} holds no file; give a folder with a folder of images for each class")
        counts = _counts(found, layout)
        classes: Counter[str] = Counter()
        for (_, name), count in counts.items():
            classes[name] += count
        problems, leave_out = [*_of_files(found, layout)], {}
        leave_out |= {one.file: one.why for one in problems if one.kind == "broken"}
        for problem, without in _copies(found, layout):
            problems.append(problem)
            leave_out |= without
        problems.sort(key=lambda one: (one.file, one.kind))
        return Findings(
            num_files,
            num_images,
            found.num_read,
            dict(sorted(classes.items())),
            _rare(classes),
            _missing(counts, classes),
            _alike(sorted(classes)),
            problems,
            dict(sorted(leave_out.items())),
        )


def _layout(root: Path) -> tuple[str, ...]:
    """The splits that a folder is divided into; none where folders of classes lie right in it."""
    found = tuple(name for name in SPLITS if (root / name).is_dir())
    return found if "train" in found or "val" in found else ()


def _place(file: str, layout: tuple[str, ...]) -> tuple[str, str] | None:
    """Split and class of a file; None where it lies in no folder of a class."""
    parts = file.split("/")
    split = parts.pop(0) if layout and parts[0] in layout else ""
    return (split, normal(parts[0])) if len(parts) > 1 and (split or not layout) else None


def _counts(found: Scan, layout: tuple[str, ...]) -> Counter[tuple[str, str]]:
    """Whole images by split and class; folders of classes without one count 0."""
    counts: Counter[tuple[str, str]] = Counter()
    for split in layout or ("",):
        with os.scandir(found.root / split) as inside:
            names = [entry.name for entry in inside if entry.is_dir() and not is_hidden(entry.name)]
        counts.update({(split, normal(name)): 0 for name in names})
    rows = found.rows("SELECT folder, count(*) FROM files WHERE other = '' AND broken = '' GROUP BY folder")
    for folder, count in rows:
        place = _place(path_of(folder, b"x"), layout)
        if place is not None:
            counts[place] += count
    return counts


def _rare(classes: Counter[str]) -> list[str]:
    least = max(FEW, RARE * median(classes.values())) if classes else 0
    return sorted(name for name, count in classes.items() if count < least)


def _missing(counts: Counter[tuple[str, str]], classes: Counter[str]) -> list[str]:
    splits = dict.fromkeys(split for split, _ in counts)
    return [f"{split}/{name}".lstrip("/") for split in splits for name in sorted(classes) if not counts[split, name]]


def _alike(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of names that may stand for one class."""
    plain = {name: re.sub(r"[\W_]+", "", name.casefold()) for name in names}
    found = []
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            a, b = plain[one], plain[other]
            if re.findall(r"\d+", a) != re.findall(r"\d+", b):  # n01440764 and n01443537 are codes
                continue
            like = a == b or (a.rstrip("s") == b.rstrip("s") and min(len(a), len(b)) > 2)
            if like or (min(len(a), len(b)) > 5 and SequenceMatcher(None, a, b).ratio() >= LIKE):
                found.append((one, other))
    return found


def _of_files(found: Scan, layout: tuple[str, ...]) -> Iterator[Problem]:
    """All problems but copies."""
    modes = Counter(dict(found.rows("SELECT mode, count(*) FROM files WHERE other = '' AND broken = '' GROUP BY mode")))
    most = modes.most_common(1)[0] if modes else ("RGB", 0)
    usual = most[0] if most[1] >= COMMON * modes.total() else ""
    extensions = Image.registered_extensions()
    for folder, name, other, broken, format, mode, width, height, orientation, animated in found.rows(
        "SELECT folder, name, other, broken, format, mode, width, height, orientation, animated FROM files"
    ):
        file = path_of(folder, name)
        if other:
            yield Problem(file, "not_image", _not_image(other))
            continue
        if broken:
            yield Problem(file, "broken", broken)
            continue
        if orientation != 1:
            words = "mirrored" if orientation in (2, 4) else "upside down" if orientation == 3 else "on their side"
            yield Problem(file, "turned", f"the pixels lie {words}, EXIF orientation {orientation}; it is read upright")
        end = os.path.splitext(file)[1]
        reasons = [*_shape(width, height), *_mode(mode, usual)]
        if animated and format != "MPO":
            reasons.append("it holds several pictures, of which the first is read")
        if extensions.get(end.lower()) != format and not (format == "MPO" and extensions.get(end.lower()) == "JPEG"):
            reasons.append(f"its content is {format}, its name ends in {end}")
        if end != end.lower():
            reasons.append(f"its name ends in capitals ({end}), which other programs may not take for an image")
        if _place(file, layout) is None:
            reasons.append("it lies in no folder of a class, so that training leaves it out")
        if reasons:
            yield Problem(file, "unusual", "; ".join(reasons))


def _not_image(other: str) -> str:
    if other == "hidden":
        return "hidden: its name starts with a dot; training leaves it out"
    return f"no picture by its name ({other}); training leaves it out"


def _shape(width: int, height: int) -> Iterator[str]:
    if min(width, height) < SMALL:
        yield f"it is small, {width}x{height} pixels"
    elif max(width, height) > STRIP * min(width, height):
        yield f"it is a strip, {width}x{height} pixels, of which a square crop shows little"
    if width * height > LARGE:
        yield f"it is large, {width}x{height} pixels, which takes time in every epoch"


def _mode(mode: str, usual: str) -> Iterator[str]:
    words = {
        "CMYK": "its colours are CMYK, for printing",
        "P": "its colours are a palette",
        "1": "it is black and white, without greys",
        "L": "it is grey",
        "LA": "it is grey, with an alpha channel, which is left out",
        "RGBA": "it has an alpha channel, which is left out",
        "PA": "its colours are a palette, with an alpha channel, which is left out",
    }
    if mode not in ("RGB", usual):
        sixteen = "it has 16 bits a channel, of which the upper 8 are read" if mode.startswith("I") else f"mode {mode}"
        said = words.get(mode, sixteen)
        yield said + (f", most others are {usual}" if usual and mode == "L" else "")
    elif mode == "RGB" and usual not in ("RGB", ""):
        yield f"it is in colour, most others are of mode {usual}"


def _copies(found: Scan, layout: tuple[str, ...]) -> Iterator[tuple[Problem, dict[str, str]]]:
    """Each copy, and what training should leave out for it."""

    def look(number: int) -> tuple[str, bytes]:
        folder, name, digest = found.index.execute(
            "SELECT folder, name, digest FROM files WHERE rowid = ?", (number,)
        ).fetchone()
        return path_of(folder, name), digest

    by_leader: defaultdict[int, list[int]] = defaultdict(list)
    for copy, leader in copies.groups(found).items():
        by_leader[leader].append(copy)
    for leader, others in by_leader.items():
        original, digest = look(leader)
        for file, of_copy in map(look, others):
            how = "the same bytes as" if of_copy == digest else "the same picture as"
            here, there = _place(file, layout), _place(original, layout)
            words, without = "", {file: f"{how} {original}"}
            if here and there and here[1] != there[1]:
                words = "in another class: one of the two labels is wrong"
                without[original] = f"{how} {file}, in another class"
            elif here and there and here[0] != there[0]:
                words = f"which is in {there[0]}: what is tested has been seen"
                if here[0] != "train" and there[0] == "train":
                    without = {original: f"{how} {file}, which is tested"}
            yield Problem(file, "copy", f"{how} {original}{', ' + words if words else ''}", original), without
