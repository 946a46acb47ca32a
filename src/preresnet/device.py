"""Devices: choosing one, the precision that it computes in, its free memory and its name."""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from preresnet.kernels import native, onednn
from preresnet.recipe import Precision
from preresnet.spec import UserError

GROUP = Path("/sys/fs/cgroup")  # of this process, where it runs in a container

Model = TypeVar("Model", bound=nn.Module)


def choose(name: str) -> torch.device:
    """The device that a name stands for; ``auto`` is a GPU where there is one.

    Raises:
        ValueError: no such device here, or ``PRERESNET_MARCH`` names no level of this processor.
    """
    native.level()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty((), device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"no device {name!r} here ({reason}); use auto, cpu, cuda or cuda:N") from None
    if device.type == "meta":
        raise UserError(f"device {name!r} computes nothing; use auto, cpu, cuda or cuda:N")
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively: AVX512-BF16 or AMX on a CPU, Ampere or later on CUDA.

    On a CPU, also whether oneDNN may use it (``ONEDNN_MAX_CPU_ISA``).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        native = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return native and onednn.multiplies_bfloat16()


def resolve(precision: Precision, device: torch.device) -> Precision:
    """``auto`` as what it means on a device."""
    if precision == "auto":
        return "bfloat16" if computes_bfloat16(device) else "float32"
    return precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a forward pass runs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def place(model: Model, device: torch.device) -> Model:
    """Move a model to a device, its weights in channels_last: the layout in which convolutions are fastest.

    On a GPU, float32 then means float32: PyTorch would round the operands of convolutions to TF32, nearly as coarse as
    bfloat16 and half as fast; bfloat16 is there for speed. And kernels are chosen by trying them.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = True
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not hasattr(os, "sysconf"):
        return _free_on_windows()
    free = os.sysconf("SC_AVPHYS_PAGES" if sys.platform == "linux" else "SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        # what the file cache would give back is free as well
        free = _entry("/proc/meminfo", "MemAvailable:") * 1024
        used = int((GROUP / "memory.current").read_text()) - _entry(GROUP / "memory.stat", "inactive_file")
        free = min(free, int((GROUP / "memory.max").read_text()) - used)
    except (OSError, StopIteration, ValueError):  # no such files, or no limit ("max")
        pass
    return free


def _entry(path: Path | str, name: str) -> int:
    """The number behind a name at the start of a line."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == name)


def _free_on_windows() -> int:
    status = (ctypes.c_ulonglong * 8)(
        64
    )  # MEMORYSTATUSEX: its size and the load; then of physical memory all, and free
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return status[2]


def describe(device: torch.device) -> str:
    """The hardware in words, for records; of a CPU, the instructions that are used too."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    if computes_bfloat16(device):
        instructions += " with bfloat16"
    if (level := native.level()) != "native":
        instructions += f", kernels for {level}"
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}, {instructions}"
