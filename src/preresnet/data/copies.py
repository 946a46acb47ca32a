"""Copies among many images: files of the same bytes, and pictures that were made smaller, brighter or saved again.

Candidates are pairs whose hashes agree in one of several bands of bits, so that no pair of a million images has to be
looked at; a candidate is a copy where the small pictures of both agree but for brightness and contrast.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from preresnet.data import likeness
from preresnet.data.scan import Scan

BATCH = 200_000  # pairs that are compared at a time
CROWD = 256  # in a band that more pictures share, each is compared with its neighbours in the order of the hashes


def groups(scan: Scan) -> dict[int, int]:
    """For each image that has a copy, the image that it is a copy of, by their numbers (``rowid``) in the index.

    Of the images that are copies of each other, one stands for all: the largest, of these the one with most bytes, of
    these the first by name. Each of the others is like that one, not just like one that is like it.
    """
    leader = _exact(scan)
    near: dict[int, int] = {}
    neighbours: dict[int, set[int]] = {}
    for a, b in _near(scan, leader):
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
    rank = _ranks(scan, neighbours)
    for one in sorted(neighbours, key=rank.__getitem__):  # the best first: what is like it is its copy
        if one not in near:
            for other in neighbours[one]:
                if rank[other] > rank[one]:
                    near.setdefault(other, one)
    followers = {copy: near.get(first, first) for copy, first in leader.items()}
    return followers | near


def pairs(scan: Scan) -> Iterator[tuple[int, int]]:
    """Pairs of images that are copies, by their numbers in the index; chains of them join all that belong together."""
    leader = _exact(scan)
    yield from leader.items()
    yield from _near(scan, leader)


def _near(scan: Scan, left_out: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Pairs of like pictures among all but those left out, which the index keeps while no file changes."""
    index = scan.index
    if not index.execute("SELECT 1 FROM near WHERE one IS NULL").fetchone():
        index.execute("DELETE FROM near")
        ids, hashes = _hashes(scan, left_out)
        for found in _candidates(hashes):
            alike = ids[found[_compare(scan, ids, found) >= likeness.SAME]].tolist()
            index.executemany("INSERT INTO near VALUES (?, ?)", alike)
        index.execute("INSERT INTO near VALUES (NULL, NULL)")
        index.commit()
    yield from index.execute("SELECT one, other FROM near WHERE one IS NOT NULL ORDER BY rowid").fetchall()


def _exact(scan: Scan) -> dict[int, int]:
    """Files of the same bytes: each but the first by name, and that first one."""
    rows = scan.rows(
        "SELECT f.rowid, f.digest FROM files f JOIN (SELECT digest FROM files WHERE digest IS NOT NULL "
        "GROUP BY digest HAVING count(*) > 1) d ON f.digest = d.digest ORDER BY f.digest, f.folder, f.name"
    )
    found: dict[int, int] = {}
    first: tuple[int, bytes] | None = None
    for number, digest in rows:
        if first is None or first[1] != digest:
            first = number, digest
        else:
            found[number] = first[0]
    return found


def _hashes(scan: Scan, left_out: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 numbers and (n,) uint64 hashes of all images that can be compared, but those left out."""
    count = scan.index.execute("SELECT count(*) FROM files WHERE hashes IS NOT NULL").fetchone()[0]
    ids, hashes = np.empty(count, np.int64), np.empty(count, np.uint64)
    size = 0
    for number, value in scan.rows("SELECT rowid, hashes FROM files WHERE hashes IS NOT NULL ORDER BY rowid"):
        if number not in left_out:
            ids[size], hashes[size] = number, int.from_bytes(value, "little")
            size += 1
    return ids[:size], hashes[:size]


def _candidates(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of places whose hashes differ in few bits, each once: (m, 2) at a time."""
    earlier: list[np.ndarray] = []
    for band in likeness.bands(hashes):
        order = np.lexsort((hashes, band))
        values = band[order]
        largest = np.unique(values, return_counts=True)[1].max(initial=1)
        for apart in range(1, int(min(largest, CROWD))):
            here = np.flatnonzero(values[apart:] == values[:-apart])
            for start in range(0, len(here), BATCH):
                part = here[start : start + BATCH]
                one, other = order[part], order[part + apart]
                close = likeness.bits_apart(hashes[one], hashes[other]) <= likeness.MOST_BITS
                one, other = one[close], other[close]
                for before in earlier:
                    new = before[one] != before[other]
                    one, other = one[new], other[new]
                yield np.stack([one, other], 1)
        if largest <= CROWD:  # else it did not see all of its pairs
            earlier.append(band)


def _compare(scan: Scan, ids: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """How like each pair is, at most 1: (m, 2) -> (m,)."""
    if not len(pairs):
        return np.empty(0)
    wanted, places = np.unique(pairs, return_inverse=True)
    thumbs = np.stack([np.frombuffer(_thumb(scan, int(ids[one])), np.uint8) for one in wanted])
    places = places.reshape(pairs.shape)
    return likeness.alike(thumbs[places[:, 0]], thumbs[places[:, 1]])


def _thumb(scan: Scan, number: int) -> bytes:
    return scan.index.execute("SELECT thumb FROM files WHERE rowid = ?", (number,)).fetchone()[0]


def _ranks(scan: Scan, numbers: Iterable[int]) -> dict[int, tuple[int, int, bytes, bytes]]:
    """What decides which of several copies stands for all: the least comes first."""
    sql = "SELECT -width * height, -size, folder, name FROM files WHERE rowid = ?"
    return {number: scan.index.execute(sql, (number,)).fetchone() for number in numbers}
