"""What a run takes on several devices, predicted from steps timed on one of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import preresnet.device as devices
from preresnet.kernels import native
from preresnet.model import memory
from preresnet.model.describe import multiply_adds
from preresnet.model.network import build
from preresnet.recipe import Recipe
from preresnet.spec import UserError
from preresnet.study import cost
from preresnet.train import parallel

BACKWARD = 2 / 3  # of a step's time: two products of the forward pass's size, for inputs and for weights
BUCKET_BYTES = 25 * 2**20  # of gradients that DistributedDataParallel sends at once
LATENCY_S = 50e-6  # of one small exchange among all devices
Timing = Callable[[int], tuple[float, float]]


def predict(
    recipes: dict[str, Recipe],
    count: int,
    link: float,
    device_name: str,
    data_root: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time, memory and scaling of runs on 1, 2, 4, ... and ``count`` devices like this one.

    Args:
        recipes: by name.
        count: devices, each with one process.
        link: GB/s at which each device sends and receives.
        device_name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``: the device that steps are timed on.
        data_root: of data whose images are counted.
        report: is told what is measured.

    Returns:
        ``device``, ``devices``, ``link_gb_s``, ``assumes`` (sentences) and ``rows``: for each recipe ``recipe``, the
        entries of ``devices`` devices (``step_s``, ``images_per_s``, ``peak_bytes`` of one device, ``memory_plan``,
        ``hours`` with evaluations, ``efficiency``: images a second and device, relative to one device), and ``table``:
        the same entries for each number of ``devices``.

    Raises:
        UserError: no such device, or a batch that so many devices cannot share.
    """
    if count < 1:
        raise UserError(f"--devices {count}; it must be 1 or more")
    if not link > 0:
        raise UserError(f"--link {link:g}; it must be more than 0 GB/s")
    device = devices.choose(device_name)
    for recipe in recipes.values():
        parallel.divide(recipe, count)
    timings: dict[str, Timing] = {}

    def timed(work: cost.Work) -> Timing:
        key = cost.kind(work)
        if key not in timings:
            report(f"timing steps of {work.norm_batch or work.batch} images of {work.size} pixels")
            timings[key] = cost.line(work, device)
        return timings[key]

    rows = []
    for name, recipe in recipes.items():
        counts = [number for number in _powers(count) if number == count or _divides(recipe, number)]
        work = cost.work(recipe, device, data_root)
        model = build(work.spec, 0)
        sizes = sum(parameter.numel() for parameter in model.parameters()), _norms(model)
        table = [_entry(recipe, work, number, sizes, link, device, timed) for number in counts]
        for entry in table:
            entry["efficiency"] = round(entry["images_per_s"] / (table[0]["images_per_s"] * entry["devices"]), 4)
        rows.append({"recipe": name, **table[-1], "table": table})
    return {
        "device": devices.describe(device),
        "devices": count,
        "link_gb_s": link,
        "assumes": [
            f"every device is like this one, with its free memory: {devices.describe(device)}",
            f"{cost.MEASURED}; images of more than 64 pixels in at most 32 at once",
            f"each device sends and receives {link:g} GB/s; float32 gradients take 2(N-1)/N of their size, in buckets "
            f"of {BUCKET_BYTES >> 20} MiB, behind the backward pass (2/3 of a step) but for the last one",
            f"a norm that sees images of several devices waits for two exchanges of {1e6 * LATENCY_S:.0f} µs",
            "images are read as fast as they are used",
        ],
        "rows": rows,
    }


def _powers(count: int) -> list[int]:
    return sorted({*(2**power for power in range(count.bit_length())), count})


def _divides(recipe: Recipe, count: int) -> bool:
    try:
        parallel.divide(recipe, count)
    except UserError:
        return False
    return True


def _norms(model: nn.Module) -> int:
    return sum(isinstance(getattr(module, "running_mean", None), torch.Tensor) for module in model.modules())


def _entry(
    recipe: Recipe,
    whole: cost.Work,
    count: int,
    sizes: tuple[int, int],
    link: float,
    device: torch.device,
    timed: Callable[[cost.Work], Timing],
) -> dict[str, Any]:
    division = parallel.divide(recipe, count)
    share = recipe.global_batch // count
    at_once = division.part or share
    work = replace(whole, batch=share, norm_batch=at_once)
    per_image, per_evaluated = timed(work)(multiply_adds(work.spec, work.size))
    computing = share * per_image
    weights, norms = sizes
    sending = 2 * (count - 1) / count * 4 * weights / (link * 1e9)
    last = sending * min(1.0, BUCKET_BYTES / (4 * weights))
    waiting = max(last, sending - BACKWARD * computing)
    if division.ranks > 1:
        waiting += 2 * norms * LATENCY_S
    step = computing + waiting
    plan, found = memory.choose(
        work.spec,
        work.size,
        at_once,
        work.precision,
        devices.free_bytes(device),
        fused=device.type == "cpu" and native.available(),
    )
    return {
        "devices": count,
        "images_of_each": share,
        "step_s": step,
        "computing_s": computing,
        "waiting_s": waiting,
        "images_per_s": recipe.global_batch / step,
        "peak_bytes": found["peak_bytes"],
        "memory_plan": plan,
        "hours": (whole.steps * step + whole.evaluated * per_evaluated / count) / 3600,
    }
