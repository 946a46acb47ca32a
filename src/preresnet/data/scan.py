"""What is known of every file below a folder: read once, by several processes, and kept in an index.

The index is one SQLite file for each folder, among this user's cached files. A file is read again only where its size
or its time of change differ from what the index holds, so that a scan that was broken off, or a folder in which little
has changed, takes seconds. What is held in memory does not grow with the number of files.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from preresnet.data import reading, walk
from preresnet.data.reading import Facts
from preresnet.spec import UserError
from preresnet.terminal import counting

VERSION = "1"  # of what is computed of a file: another one makes the index anew
KEEP_EVERY = 2_000  # files between two commits, so that what a scan broken off has done is kept
_FACTS = [field.name for field in fields(Facts)]


@dataclass(frozen=True)
class Scan:
    """What was found in a folder.

    Args:
        root: the folder.
        index: rows of the table ``files``: ``folder`` and ``name`` (bytes, from ``root`` on), ``size``, ``changed``
            (ns), ``other`` (empty for an image, else what it is), and the fields of `preresnet.data.reading.Facts`.
        num_read: files that were read now; the others were known.
    """

    root: Path
    index: sqlite3.Connection
    num_read: int

    def rows(self, sql: str, *values: Any) -> Iterator[Any]:
        """Rows of a query on ``files``."""
        return self.index.execute(sql, values)


def path_of(folder: bytes, name: bytes) -> str:
    """A file's path from the scanned folder on, with slashes on every system."""
    return os.fsdecode(folder + b"/" + name if folder else name).replace(os.sep, "/")


@contextmanager
def scan(root: Path, report: Callable[[int, int], None] | None = None, workers: int | None = None) -> Iterator[Scan]:
    """Look at every file below a folder; the index is open inside.

    Args:
        root: the folder.
        report: is told how many files of how many have been read.
        workers: processes that read; None: one for each core.

    Raises:
        UserError: no such folder, or one that cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root} is {'a file' if root.exists() else 'not there'}; give a folder of images")
    index, lock = _open(root)
    try:
        with lock:  # another check of the same folder waits, and then knows what this one has found
            unread, done = _compare(index, root), 0
            for folder, name, facts in reading.read_all(root, _changed(index), workers):
                marks = ", ".join(f"{field} = ?" for field in _FACTS)
                index.execute(
                    f"UPDATE files SET {marks}, known = 1 WHERE folder = ? AND name = ?",  # noqa: S608 - our own names
                    (*astuple(facts), folder, name),
                )
                done += 1
                if done % KEEP_EVERY == 0:
                    index.commit()
                if report is not None:
                    report(done, unread)
            index.commit()
        yield Scan(root, index, done)
    finally:
        with suppress(sqlite3.Error):
            index.commit()
        index.close()


def median_side(root: Path) -> int:
    """The median of the shorter sides of all images below a folder, in pixels.

    Raises:
        UserError: no such folder, or no image in it.
    """
    with counting("files") as report, scan(root, report) as found:
        where = "FROM files WHERE other = '' AND broken = ''"
        count = found.index.execute(f"SELECT count(*) {where}").fetchone()[0]
        if not count:
            raise UserError(f"{root} holds no image; give a folder with a folder of images for each class")
        middle = f"SELECT min(width, height) {where} ORDER BY 1 LIMIT 1 OFFSET ?"
        return found.index.execute(middle, (count // 2,)).fetchone()[0]


def _compare(index: sqlite3.Connection, root: Path) -> int:
    """Bring the list of files up to date with the folder; how many have to be read."""
    index.execute("CREATE TEMP TABLE seen (folder BLOB PRIMARY KEY)")
    for folder, files in walk.folders(root):
        place = os.fsencode(folder)
        index.execute("INSERT INTO seen VALUES (?)", (place,))
        rows = index.execute("SELECT name, size, changed, other FROM files WHERE folder = ?", (place,))
        known = {name: tuple(rest) for name, *rest in rows}
        for entry, kind in files:
            name, other = os.fsencode(entry.name), "" if kind == "image" else kind
            try:
                status = entry.stat()
            except OSError:  # gone again, or a link to nothing
                status = None
            now = (status.st_size, status.st_mtime_ns, other) if status else (0, 0, other or "not a regular file")
            if known.pop(name, None) != now:
                index.execute(
                    "INSERT OR REPLACE INTO files (folder, name, size, changed, other, known) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (place, name, *now, now[2] != ""),
                )
        index.executemany("DELETE FROM files WHERE folder = ? AND name = ?", [(place, name) for name in known])
    index.execute("DELETE FROM files WHERE folder NOT IN (SELECT folder FROM seen)")
    index.execute("DROP TABLE seen")
    index.commit()
    return index.execute("SELECT count(*) FROM files WHERE known = 0").fetchone()[0]


def _changed(index: sqlite3.Connection) -> Iterator[tuple[bytes, bytes]]:
    """Files that have to be read, a part at a time: the table changes meanwhile."""
    last = -1
    while True:
        rows = index.execute(
            "SELECT rowid, folder, name FROM files WHERE known = 0 AND rowid > ? ORDER BY rowid LIMIT 1000", (last,)
        ).fetchall()
        if not rows:
            return
        last = rows[-1][0]
        yield from ((folder, name) for _, folder, name in rows)


def _open(root: Path) -> tuple[sqlite3.Connection, AbstractContextManager[Any]]:
    """The index of a folder, and its lock.

    It is made anew where it is damaged or of another version, and lies in memory where none can be kept.
    """
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    for attempt in range(2):
        try:
            folder = cache_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = folder / f"scan-{key}.sqlite"
            if attempt:
                file.unlink(missing_ok=True)
            return _prepared(sqlite3.connect(file, timeout=60)), FileLock(file.with_suffix(".lock"))
        except (OSError, sqlite3.Error):
            continue
    return _prepared(sqlite3.connect(":memory:")), nullcontext()


def cache_folder() -> Path:
    """Where this user's indexes of images are kept: ``PRERESNET_CACHE``, or ``preresnet`` in the folder for caches."""
    given = os.environ.get("PRERESNET_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preresnet"


def _prepared(index: sqlite3.Connection) -> sqlite3.Connection:
    version = f"{VERSION} {reading.VERSION}"
    index.execute("PRAGMA journal_mode = WAL")
    index.execute("PRAGMA synchronous = NORMAL")
    index.execute("CREATE TABLE IF NOT EXISTS version (is_now TEXT)")
    if index.execute("SELECT is_now FROM version").fetchall() != [(version,)]:
        index.execute("DROP TABLE IF EXISTS files")
        index.execute("DROP TABLE IF EXISTS near")
        index.execute("DELETE FROM version")
        index.execute("INSERT INTO version VALUES (?)", (version,))
    columns: Sequence[str] = [f"{name} {'BLOB' if name in ('digest', 'hashes', 'thumb') else ''}" for name in _FACTS]
    index.execute(
        f"CREATE TABLE IF NOT EXISTS files (folder BLOB, name BLOB, size INTEGER, changed INTEGER, other TEXT, "
        f"known INTEGER, {', '.join(columns)}, PRIMARY KEY (folder, name))"
    )
    index.execute("CREATE INDEX IF NOT EXISTS unknown ON files (known) WHERE known = 0")
    index.execute("CREATE INDEX IF NOT EXISTS digests ON files (digest) WHERE digest IS NOT NULL")
    # Pairs of like pictures, and one row more where they are those of the files as they are: any change takes it away.
    index.execute("CREATE TABLE IF NOT EXISTS near (one INTEGER, other INTEGER)")
    for name, change in (("added", "INSERT"), ("removed", "DELETE"), ("read", "UPDATE OF hashes, digest, thumb")):
        index.execute(
            f"CREATE TRIGGER IF NOT EXISTS {name} AFTER {change} ON files "  # noqa: S608 - our own names
            "BEGIN DELETE FROM near WHERE one IS NULL; END"
        )
    index.execute("CREATE INDEX IF NOT EXISTS near_is_whole ON near (one) WHERE one IS NULL")
    index.commit()
    return index
