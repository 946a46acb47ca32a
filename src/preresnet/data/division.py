"""A division of images into those to train on and those to validate with: by groups that stay together, and a hash."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from preresnet.data.walk import normal
from preresnet.fields import UserError


def groups(files: Sequence[str], pairs: Iterable[tuple[str, str]], group_by: str = "") -> list[str]:
    """For each file, the name of the group that has to stay together: the least name among its files.

    Args:
        files: paths from the folder of images on, with slashes.
        pairs: of files that are copies.
        group_by: a regular expression; files for which it finds the same text stay together. Empty: none.

    Raises:
        UserError: the expression finds nothing in any path.
    """
    parent: dict[str, str] = {}

    def root(one: str) -> str:
        while (above := parent.get(one, one)) != one:
            parent[one] = one = parent.get(above, above)
        return one

    def join(one: str, other: str) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    there = set(files)
    for one, other in pairs:
        if one in there and other in there:
            join(one, other)
    if group_by:
        expression, first_of = re.compile(group_by), dict[tuple[str, ...], str]()
        for file in files:
            if found := expression.search(file):
                text = tuple(part or "" for part in found.groups()) or (found.group(),)
                join(first_of.setdefault(text, file), file)
        if not first_of:
            raise UserError(
                f"data.group_by={group_by!r} finds nothing in the path of any image, {files[0]!r} for one; "
                "give an expression that finds what the images of a group have in common"
            )
    return [root(file) for file in files]


def divide(labels: Sequence[int], grouped: Sequence[str], share: float, seed: int) -> list[int]:
    """Which images are kept for validation: their places, rising.

    Of each class about so many are kept as the share says, and something is left, group by group in the order of a hash
    of the group's name and the seed: the same on every machine, and images added later move few of the others. A group
    that has images of several classes is placed by the class that it has most of. A class that is a single group is
    trained on alone.

    Args:
        labels: of each image.
        grouped: name of the group of each image.
        share: that is kept, of each class.
        seed: of the division.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(grouped):
        places[group].append(place)
    by_class: defaultdict[int, list[str]] = defaultdict(list)
    for group, inside in places.items():
        counts = Counter(labels[place] for place in inside)
        by_class[min(counts, key=lambda label: (-counts[label], label))].append(group)
    sizes = Counter(labels)
    kept: list[int] = []
    for label, found in by_class.items():
        wanted, order = max(1, round(share * sizes[label])), sorted(found, key=lambda group: _hash(group, seed))
        taken: list[str] = []
        for group in order:
            size = len(places[group])
            if wanted > 0 and size <= 2 * wanted and len(taken) < len(order) - 1:  # nearer to the share with it
                taken.append(group)
                wanted -= size
        if not taken and len(order) > 1:
            taken = [min(order, key=lambda group: len(places[group]))]
        kept += [place for group in taken for place in places[group]]
    return sorted(kept)


def folds(labels: Sequence[int], grouped: Sequence[str], number: int, seed: int = 0) -> list[int]:
    """A fold for each image, so that folds are alike in classes and no group is in two of them.

    Args:
        labels: of each image.
        grouped: name of the group of each image.
        number: of folds.
        seed: of the division.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(grouped):
        places[group].append(place)
    counts = {label: [0] * number for label in set(labels)}
    sizes, found = [0] * number, [0] * len(labels)
    # the large groups first, then by chance: those that are left fill what the large ones left uneven
    for group in sorted(places, key=lambda group: (-len(places[group]), _hash(group, seed))):
        inside = Counter(labels[place] for place in places[group])
        main = min(inside, key=lambda label: (-inside[label], label))
        fold = min(range(number), key=lambda fold: (counts[main][fold], sizes[fold], fold))
        sizes[fold] += len(places[group])
        for label, count in inside.items():
            counts[label][fold] += count
        for place in places[group]:
            found[place] = fold
    return found


def _hash(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{normal(group)}".encode("utf-8", "surrogateescape")).digest()


def places(files: Iterable[str], listed: Iterable[str]) -> list[int]:
    """Where the files that a list names stand among some."""
    wanted = set(map(normal, listed))
    return [place for place, file in enumerate(files) if file in wanted]
