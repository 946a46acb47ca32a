"""How are the C++ parts for CPUs compiled, kept and called?"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KERNELS, POOL, PROGRAM = (Path(__file__).with_name(f"{name}.cpp") for name in ("kernels", "pool", "program"))
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-w")
TYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}

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
    """Whether there are kernels; compiles them at the first call. Warns once where that fails."""
    return _functions() is not None


def call(name: str, dtype: torch.dtype, first: Tensor, *others: Tensor | float | None) -> None:
    """Run one function of ``kernels.cpp``; on tensors without memory there is nothing to do.

    Args:
        name: without the type's suffix.
        dtype: of the feature maps.
        first: its first argument, a feature map.
        others: the rest in its order, without the number of threads; a tensor stands for its memory, None for a null
            pointer.
    """
    if first.is_meta:
        return
    functions = _functions()
    assert functions is not None
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in others]
    functions[name, dtype](first.data_ptr(), *values, torch.get_num_threads())


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$PRERESNET_CACHE``, else ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    given = os.environ.get("PRERESNET_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "preresnet"


@cache
def keep_memory() -> bool:
    """Let large tensors of this process take their memory from ``pool.cpp``, which asks the system for none twice.

    A training step is 5 to 15 % faster for it, and holds little more than its tensors.

    Returns:
        Whether it does: on Linux, where there is a C++ compiler.
    """
    if sys.platform != "linux":
        return False
    home = Path(torch.__file__).parent
    flags = (
        f"-I{home / 'include'}",
        f"-L{home / 'lib'}",
        "-lc10",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f'-DTORCH="{torch.__version__}"',  # a library for each, since the allocator's interface may change
    )
    try:
        return bool(ctypes.CDLL(str(_build(POOL, *flags))).keep_memory())
    except (OSError, subprocess.SubprocessError):
        return False  # what it costs to have no compiler is said where kernels are compiled


def run(steps: ctypes.Array[Any]) -> None:
    """Run the steps of ``program.cpp``, one after the other."""
    function = program()
    assert function is not None
    function(steps, len(steps), torch.get_num_threads())


def program_has_half() -> bool:
    """Whether the steps of ``program.cpp`` may read bfloat16."""
    library = _program_library()
    return library is not None and bool(library.has_half())


def program() -> Callable[..., None] | None:
    """The function of ``program.cpp``; None where it cannot be compiled."""
    library = _program_library()
    if library is None:
        return None
    library.run.argtypes, library.run.restype = [_POINTER, _LONG, _INT], None
    return library.run


@cache
def _program_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_build(PROGRAM)))
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _functions() -> dict[tuple[str, torch.dtype], Any] | None:
    try:
        library = ctypes.CDLL(str(_build(KERNELS)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"the fused CPU kernels could not be compiled ({said.strip().splitlines()[0]}); PyTorch's own operations "
            "are used, which is slower. Install a C++ compiler with OpenMP (g++ or clang++), or name one in CXX",
            stacklevel=2,
        )
        return None
    found = {}
    for name, arguments in _ARGUMENTS.items():
        for dtype, suffix in TYPES.items():
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes, function.restype = arguments, None
            found[name, dtype] = function
    return found


def _build(source: Path, *flags: str) -> Path:
    """The path of the compiled library, compiled unless an equal source was compiled for this processor before."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise OSError("no C++ compiler was found")
    key = hashlib.sha256(source.read_bytes())
    key.update(repr((compiler, FLAGS, flags, _processor())).encode())
    target = cache_folder() / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            place = target.parent
        except OSError:  # a home that cannot be written to: compile for this process alone
            place = Path(tempfile.mkdtemp())
            target = place / target.name
        with tempfile.TemporaryDirectory(dir=place) as folder:
            partial = Path(folder) / target.name
            command = [compiler, *FLAGS, str(source), *flags, "-o", str(partial)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)  # noqa: S603
            os.replace(partial, target)  # whole or not at all, whoever else compiles the same
    return target


def _processor() -> str:
    """What ``-march=native`` depends on; a folder of compiled kernels may be shared by unequal machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform

        return platform.platform() + platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "model name")})
    )
