"""The C++ operations for CPUs: compiled at first use for this machine, kept in a private folder, loaded and called.

Three variables of the environment count. ``CXX`` names the compiler, with options if need be. ``PRERESNET_CACHE`` is
the folder of compiled libraries (default: ``~/.cache/preresnet``); one that others may write to is not used.
``PRERESNET_MARCH`` is the level of instructions, ``native`` (the default) or one of `LEVELS`, so that one machine tests
what another has.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preresnet.spec import UserError

HERE = Path(__file__).parent
SOURCES = tuple(HERE / name for name in ("norm.cpp", "gate.cpp", "program.cpp"))
HEADERS = tuple(HERE / name for name in ("vectors.h", "maps.h"))
# Contraction by name: a recomputed mask must be that of the first pass, in whole vectors and in the rest.
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-w")
TYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}

# What a processor must have, in the words of /proc/cpuinfo (x86-64 psABI, "micro-architecture levels").
_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
LEVELS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}

_POINTER, _LONG, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_int
_ARGUMENTS: dict[str, list[Any]] = {
    "normalise": [_POINTER] * 2 + [_LONG] * 2 + [_POINTER] * 7 + [_DOUBLE] * 2 + [_INT] * 2,
    "apply": [_POINTER] * 2 + [_LONG] * 2 + [_POINTER] * 4 + [_INT] * 2,
    "differentiate": [_POINTER] * 4 + [_LONG] * 2 + [_POINTER] * 6 + [_INT] * 2,
    "add": [_POINTER] * 3 + [_LONG] * 2 + [_POINTER] + [_INT],
    "gate": [_POINTER] * 4 + [_LONG] * 2 + [_POINTER] + [_INT] * 2,
    "differentiate_gate": [_POINTER] * 7 + [_LONG] * 2 + [_POINTER] * 2 + [_INT] * 2,
}


def available() -> bool:
    """Whether there are kernels; compiles them at the first call. Warns once where that fails.

    Raises:
        UserError: ``PRERESNET_MARCH`` is no level, or one that this processor does not have.
    """
    return _library() is not None


def call(name: str, dtype: torch.dtype, first: Tensor, *others: Tensor | float | None) -> None:
    """Run one function of ``norm.cpp`` or ``gate.cpp``; on tensors without memory there is nothing to do.

    Args:
        name: without the type's suffix.
        dtype: of the feature maps.
        first: its first argument, a feature map.
        others: the rest in its order, without the number of threads; a tensor stands for its memory, None for a null
            pointer.
    """
    if first.is_meta:
        return
    values = [_address(value) if isinstance(value, Tensor) else value for value in others]
    _functions()[name, dtype](_address(first), *values, torch.get_num_threads())


def run_program(steps: ctypes.Array[Any]) -> None:
    """Run the steps of ``program.cpp``, one after the other."""
    library = _library()
    assert library is not None
    library.run(steps, _LONG(len(steps)), _INT(torch.get_num_threads()))


def program_takes(dtype: torch.dtype) -> bool:
    """Whether the steps of ``program.cpp`` may read a type: float32, and bfloat16 where the processor multiplies it."""
    library = _library()
    return library is not None and (dtype == torch.float32 or (dtype == torch.bfloat16 and bool(library.has_half())))


def program_group() -> int:
    """How many channels the widest group of ``program.cpp`` has."""
    library = _library()
    assert library is not None
    return library.widest_group()


@cache
def level() -> str:
    """What is compiled for: ``PRERESNET_MARCH``, else ``native``.

    Raises:
        UserError: no such level, or this processor does not have it.
    """
    given = os.environ.get("PRERESNET_MARCH") or "native"
    if given == "native":
        return given
    able = ", ".join(["native", *levels_here()])
    if given not in LEVELS:
        raise UserError(f"PRERESNET_MARCH is {given!r}; use native, {', '.join(LEVELS)} (here: {able})")
    if missing := LEVELS[given] - _features():
        lacking = ", ".join(sorted(missing))
        raise UserError(f"PRERESNET_MARCH is {given}, but this processor has no {lacking}; use {able}")
    return given


def levels_here() -> list[str]:
    """Which of `LEVELS` this processor executes; on other systems than Linux, none is known."""
    has = _features()
    return [name for name, needed in LEVELS.items() if needed <= has]


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$PRERESNET_CACHE``, else ``$XDG_CACHE_HOME`` or ``~/.cache``.

    A folder that cannot be made or written to, or that is not this user's alone to write, is replaced by a private one
    among the temporary files, the same for all processes of the user.

    Raises:
        OSError: nor is there a private one.
    """
    given = os.environ.get("PRERESNET_CACHE")
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(given).expanduser() if given else Path(base) / "preresnet"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no home
        pass
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    folder = Path(tempfile.gettempdir()) / f"preresnet-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(folder, follow=False):
        raise OSError(f"{folder} can be written to by others; remove it, or name a folder in PRERESNET_CACHE")
    return folder


def _is_private(path: Path, *, follow: bool = True) -> bool:
    """Whether a folder or file is this user's and nobody else may write to it."""
    found = path.stat(follow_symlinks=follow)
    if not hasattr(os, "getuid"):  # Windows keeps a user's folders apart by other means
        return True
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid == os.getuid() and not writable and not stat.S_ISLNK(found.st_mode)


def _address(tensor: Tensor) -> int:
    """Where a tensor's values lie, one after the other."""
    assert tensor.device.type == "cpu", f"a kernel of the CPU was given a tensor on {tensor.device}"
    assert tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last), (
        f"a kernel was given a tensor with gaps: {tuple(tensor.shape)}, strides {tensor.stride()}"
    )
    return tensor.data_ptr()


@cache
def _functions() -> dict[tuple[str, torch.dtype], Any]:
    library = _library()
    assert library is not None
    found = {}
    for name, arguments in _ARGUMENTS.items():
        for dtype, suffix in TYPES.items():
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes, function.restype = arguments, None
            found[name, dtype] = function
    return found


_warned: list[str] = []


def _library() -> ctypes.CDLL | None:
    found = _loaded()
    if isinstance(found, ctypes.CDLL):
        return found
    if not _warned:
        _warned.append(found)
        warnings.warn(
            f"the fused CPU kernels could not be compiled ({found}); PyTorch's own operations are used, which is slower"
            ". Install a C++ compiler with OpenMP (g++ or clang++), or name one in CXX",
            stacklevel=4,
        )
    return None


@cache
def _loaded() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    march = level()
    try:
        path = _build(march)
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # left damaged by a machine that lost its power, say
            path.unlink()
            return ctypes.CDLL(str(_build(march)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: an open quote in CXX
        said = (getattr(error, "stderr", None) or str(error)).strip()
        return said.splitlines()[0] if said else type(error).__name__


def _build(march: str) -> Path:
    """The path of the library, compiled unless equal sources were compiled for this processor before."""
    compiler = shlex.split(os.environ.get("CXX", ""))
    compiler = compiler or [next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "")]
    if not compiler[0]:
        raise OSError("no C++ compiler was found")
    command = [*compiler, *FLAGS, f"-march={march}"]
    machine = _processor() if march == "native" else ""  # a folder may be shared by unequal machines
    key = hashlib.sha256(repr((command, _run([*compiler, "--version"]), machine)).encode())
    for source in (*HEADERS, *SOURCES):
        key.update(source.read_bytes())
    target = cache_folder() / f"kernels-{key.hexdigest()[:16]}.so"
    if not (target.is_file() and _is_private(target, follow=False)):
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            partial = Path(folder) / target.name
            _run([*command, *map(str, SOURCES), "-o", str(partial)])
            os.chmod(partial, 0o700)
            os.replace(partial, target)  # whole or not at all, whoever else compiles the same
    return target


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=300)  # noqa: S603
    return done.stdout


def _cpuinfo() -> list[tuple[str, str]]:
    """Lines of /proc/cpuinfo as names and values; none elsewhere than on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = [line.partition(":") for line in lines]
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _features() -> set[str]:
    return {word for name, value in _cpuinfo() if name in ("flags", "Features") for word in value.split()}


def _processor() -> str:
    """What ``-march=native`` depends on."""
    known = {line for line in _cpuinfo() if line[0] in ("flags", "Features", "model name")}
    if known:
        return repr(sorted(known))
    import platform

    return platform.platform() + platform.processor()
