"""Torch 7's ``.t7`` files: what they hold, as plain values.

Nothing in a file is run. Memory and time are bounded by its size, because every value is one that was read from it: a
file cannot ask for more than it holds.

Source: the format as torch7's ``File.lua`` and ``doc/serialization.md`` describe it.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from preresnet.fields import UserError

DEPTH = 100  # objects within each other
NIL, NUMBER, STRING, TABLE, OBJECT, BOOLEAN = range(6)
FUNCTION, RECURSIVE_FUNCTIONS = 6, (7, 8)
STORAGES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Cuda": "<f4",
    "CudaDouble": "<f8",
    "CudaHalf": "<f2",
    "CudaLong": "<i8",
    "CudaInt": "<i4",
    "CudaShort": "<i2",
    "CudaChar": "<i1",
    "CudaByte": "<u1",
}


@dataclass(eq=False)
class Thing:
    """An object of a class: its name without the package's version, and what it holds.

    Args:
        kind: ``nn.SpatialConvolution``.
        values: by name, or by number where they are counted.
    """

    kind: str
    values: dict[Any, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """A value, or None."""
        return self.values.get(name)


@dataclass(eq=False)
class Tensor:
    """A tensor that is taken from its storage when it is needed.

    Args:
        shape: of it.
        strides: in elements.
        offset: of the first element in the storage.
        storage: one-dimensional; None for an empty tensor.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: Any

    def array(self) -> np.ndarray:
        """Its values, float32.

        Raises:
            UserError: it reaches beyond its storage.
        """
        storage = self.storage
        if not self.shape:
            return np.zeros(0, np.float32)
        if not isinstance(storage, np.ndarray):
            raise UserError("a tensor has no storage")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        count = int(np.prod([int(n) for n in self.shape], dtype=object))
        if min(self.shape) < 1 or min(self.strides) < 0 or not 0 <= self.offset <= last < len(storage):
            raise UserError(f"a tensor of shape {self.shape} reaches beyond its storage of {len(storage)} elements")
        if count > len(storage):
            raise UserError(f"a tensor of shape {self.shape} has more elements than its storage of {len(storage)}")
        size = storage.itemsize
        view = np.lib.stride_tricks.as_strided(
            storage[self.offset :], self.shape, tuple(stride * size for stride in self.strides), writeable=False
        )
        return np.array(view, dtype=np.float32)


def read(path: Path) -> Any:
    """What a binary ``.t7`` file holds: numbers, text, booleans, dictionaries, `Tensor` and `Thing`.

    Raises:
        UserError: no such file, or no whole one; the message says where.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    reader = _Reader(memoryview(data))  # type: ignore[arg-type]
    try:
        value = reader.value(0)
    except UserError as error:
        raise UserError(
            f"{path} is no whole .t7 file: {error} (at byte {reader.at:,} of {len(data):,}); save it again with "
            "torch.save(file, model:clearState()) in its binary form"
        ) from None
    return value


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0
        self.known: dict[int, Any] = {}

    def take(self, count: int) -> memoryview:
        if count < 0 or count > len(self.data) - self.at:
            raise UserError(f"it ends where {count:,} more bytes should be")
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self) -> int:
        return struct.unpack("<i", self.take(4))[0]

    def longs(self, count: int) -> tuple[int, ...]:
        if count < 0 or count > 64:
            raise UserError(f"a tensor of {count} dimensions")
        return struct.unpack(f"<{count}q", self.take(8 * count))

    def text(self) -> str:
        return bytes(self.take(self.integer())).decode("utf-8", "replace")

    def value(self, depth: int) -> Any:
        if depth > DEPTH:
            raise UserError(f"objects lie over {DEPTH} deep in each other")
        kind = self.integer()
        if kind == NIL:
            return None
        if kind == NUMBER:
            return struct.unpack("<d", self.take(8))[0]
        if kind == STRING:
            return self.text()
        if kind == BOOLEAN:
            return self.integer() == 1
        if kind == TABLE:
            return self._known(lambda index: self._table(index, depth))
        if kind == OBJECT:
            return self._known(lambda index: self._object(index, depth))
        if kind == FUNCTION:
            return self._function(depth)
        if kind in RECURSIVE_FUNCTIONS:
            return self._known(lambda index: self._keep(index, self._function(depth)))
        raise UserError(f"there is no type of value {kind}")

    def _known(self, read: Any) -> Any:
        index = self.integer()
        return self.known[index] if index in self.known else read(index)

    def _table(self, index: int, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        self.known[index] = found  # it may hold itself
        self._fill(found, depth)
        return found

    def _fill(self, found: dict[Any, Any], depth: int) -> None:
        for _ in range(self._count()):
            key = self.value(depth + 1)
            value = self.value(depth + 1)
            if isinstance(key, str | float | bool):
                found[int(key) if isinstance(key, float) and key.is_integer() else key] = value

    def _count(self) -> int:
        count = self.integer()
        if count < 0 or 8 * count > len(self.data) - self.at:  # each entry has two values of four bytes or more
            raise UserError(f"a table of {count:,} entries does not fit into the rest of the file")
        return count

    def _function(self, depth: int) -> None:
        """Passed over: never run, never kept."""
        self.take(self.integer())
        self.value(depth + 1)

    def _object(self, index: int, depth: int) -> Any:
        version = self.text()
        kind = self.text() if version.startswith("V ") else version
        package, _, name = kind.partition(".")
        if package == "torch" and name.endswith("Storage"):
            return self._keep(index, self._storage(name.removesuffix("Storage")))
        if package == "torch" and name.endswith("Tensor"):
            tensor = Tensor((), (), 0, None)
            self.known[index] = tensor
            ndim = self.integer()
            tensor.shape, tensor.strides = self.longs(ndim), self.longs(ndim)
            tensor.offset = self.longs(1)[0] - 1
            tensor.storage = self.value(depth + 1)
            return tensor
        thing = Thing(kind)
        self.known[index] = thing
        content = self.value(depth + 1)
        if isinstance(content, dict):
            thing.values = content
        return thing

    def _keep(self, index: int, value: Any) -> Any:
        self.known[index] = value
        return value

    def _storage(self, kind: str) -> np.ndarray:
        if kind not in STORAGES:
            raise UserError(f"there is no torch.{kind}Storage")
        count, dtype = self.longs(1)[0], np.dtype(STORAGES[kind])
        if count < 0:
            raise UserError(f"a storage of {count:,} elements")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)
