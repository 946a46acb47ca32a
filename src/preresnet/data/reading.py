"""Files read whole by processes of their own, so that no file can stop or exhaust the one that asks."""

import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from preresnet import signals
from preresnet.data import images, likeness
from preresnet.spec import UserError

VERSION = f"1 {likeness.VERSION}"
LIMIT_S = 30.0  # for one file
LIMIT_BYTES = 4 << 30  # of memory for a process that reads, where the system can hold it to that
PORTION = 64  # files that a process is given at a time
LEAST = 64  # shorter side that a JPEG file is decoded at: all that likeness needs

File = tuple[bytes, bytes]
"""Folder and name, from the scanned folder on."""


@dataclass(frozen=True)
class Facts:
    """What is known of one file.

    Args:
        broken: why it is no whole image; empty for one that is. The rest then stays as it is here.
        format: as in `preresnet.data.images.Stored`, with the next five.
        mode: the same.
        width: the same, pixels.
        height: the same, pixels.
        orientation: the same.
        animated: the same.
        digest: of all bytes of the file (BLAKE2b, 16 bytes).
        hashes: of the upright picture, for candidates of likeness; None where it shows nothing.
        thumb: the upright picture, small, to compare candidates by; None where it shows nothing.
    """

    broken: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    animated: bool = False
    digest: bytes | None = None
    hashes: bytes | None = None
    thumb: bytes | None = None


def read(path: Path) -> Facts:
    """Read one file."""
    try:
        image, stored = images.inspect(path, LEAST)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: cannot be read as an image (").removesuffix(")")
        return Facts(broken=reason)
    except OSError as error:
        return Facts(broken=error.strerror or str(error))
    hashes, thumb = likeness.describe(image)
    return Facts(**vars(stored), digest=digest, hashes=hashes, thumb=thumb)


def read_all(root: Path, files: Iterator[File], workers: int | None = None) -> Iterator[tuple[bytes, bytes, Facts]]:
    """Read many files, in whatever order they are done; one that takes too long or ends its reader is broken.

    Args:
        root: the folder that they are named from.
        files: which; asked for as they are needed.
        workers: processes; None: one for each core.

    Raises:
        RuntimeError: no process can be started.
    """
    count = workers or os.cpu_count() or 1
    portions = iter(lambda: list(islice(files, PORTION)), [])
    first = list(islice(portions, count))
    readers = [_Reader(root, portion) for portion in first]
    try:
        while readers:
            ready = wait([reader.connection for reader in readers], timeout=1.0)
            for reader in list(readers):
                found = reader.take() if reader.connection in ready else reader.overdue()
                if found is not None:
                    yield found
                if not reader.waiting:
                    portion = next(portions, None)
                    if portion is None:
                        reader.end()
                        readers.remove(reader)
                    else:
                        reader.give(portion)
    finally:
        for reader in readers:
            reader.end()


class _Reader:
    """A process that reads, and the files that it still owes."""

    def __init__(self, root: Path, portion: list[File]) -> None:
        self.root = root
        self.waiting: list[File] = []
        self._start()
        self.give(portion)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self._process: Any = context.Process(target=_serve, args=(there, self.root), daemon=True)
        with signals.held_back():
            self._process.start()
        there.close()
        self._has_started = False

    def give(self, portion: list[File]) -> None:
        """Ask for files."""
        self.waiting = list(portion)
        self._since = time.monotonic()
        with suppress(OSError):  # it has died: `take` sees that
            self.connection.send(portion)

    def take(self) -> tuple[bytes, bytes, Facts] | None:
        """What has come: a file's facts, or the end of the process, for which the file is to blame."""
        try:
            facts = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            if not self._has_started:
                raise RuntimeError(
                    f"the process that reads files could not start (exit code {self._process.exitcode}); a script that "
                    "calls this must do so below `if __name__ == '__main__':`, because its processes import it"
                ) from None
            return self._blame(f"the decoder ended with it (exit code {self._process.exitcode})")
        self._since = time.monotonic()
        if not self._has_started:
            self._has_started = True
            return None
        return *self.waiting.pop(0), facts

    def overdue(self) -> tuple[bytes, bytes, Facts] | None:
        """The file that takes too long, if one does; the process is then replaced."""
        allowed = LIMIT_S if self._has_started else 10 * LIMIT_S  # to start takes long on a busy machine
        if not self.waiting or time.monotonic() - self._since < allowed:
            return None
        return self._blame(f"it was not decoded within {allowed:.0f} s")

    def _blame(self, why: str) -> tuple[bytes, bytes, Facts]:
        self.end()
        file, *rest = self.waiting
        self._start()
        self.give(rest)
        return *file, Facts(broken=why)

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, root: Path) -> None:
    signals.take_no_interrupts()
    _bound_memory()
    with suppress(EOFError, OSError):  # the one that asks is gone
        connection.send("started")
        while True:
            portion: Sequence[File] = connection.recv()
            for folder, name in chain(portion):
                connection.send(read(root / os.fsdecode(folder) / os.fsdecode(name)))


def _bound_memory() -> None:
    if sys.platform == "linux":
        import resource

        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
