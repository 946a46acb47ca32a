"""Speed and memory of a network, measured beside other implementations of it and beside its convolutions alone.

Every system lives in a process of its own, so that memory is its own too; rounds are interleaved, so that a noisy
machine disturbs all alike; figures are medians of rounds. A step of training is a whole one as the trainer does it:
forward, loss, backward, optimiser. Batches are ready: no system prepares data.
"""

import importlib.metadata
import importlib.util
import json
import multiprocessing
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

import preresnet.device as devices
from preresnet.bench.systems import Setup, serve
from preresnet.model import memory
from preresnet.model.describe import default_size
from preresnet.paper.networks import network
from preresnet.recipe import Precision
from preresnet.signals import held_back
from preresnet.spec import MemoryPlan, NetSpec, Order, UserError, from_json, to_json
from preresnet.train.capture import Mechanism, check_mechanisms, chosen

Other = Literal["pytorchcv", "timm", "eager", "limit"]


def setups(
    name: str,
    batch: int,
    against: Sequence[Other],
    plans: Sequence[MemoryPlan],
    precision: Precision,
    device: torch.device,
    *,
    training: bool,
    gpu: Sequence[Mechanism] = (),
) -> list[Setup]:
    """What is to be measured: ours at each memory plan and with each mechanism of a GPU, then the others.

    Raises:
        UserError: another system is not installed or has no such network; or a mechanism does not fit.
    """
    spec = network(name)
    ours = Setup(
        system="preresnet",
        mode="default",
        settings="",
        network=to_json(spec),
        size=default_size(spec),
        classes=spec.num_classes,
        channels=spec.in_channels,
        batch=batch,
        device=str(device),
        precision=devices.resolve(precision, device),
        training=training,
    )
    default = chosen(None, device) if training else ()
    words = "fused" if device.type != "cuda" else " ".join(default) or "eager"
    ours = replace(ours, settings=f"{ours.precision}, channels_last, {words}", fused=words == "fused", gpu=default)
    found = [replace(ours, plan=plan, mode=plan, settings=f"{ours.settings}, memory plan {plan}") for plan in plans]
    found = found or [ours]
    for some in _mechanisms(gpu, device):
        words = " ".join(some)
        settings = f"{ours.precision}, channels_last, {words}"
        found.append(replace(ours, mode=words, settings=settings, fused="compiled" in some, gpu=some))
    for other in dict.fromkeys(against):
        if other == "eager":
            found.append(replace(ours, mode="eager", settings=f"{ours.precision}, channels_last", fused=False, gpu=()))
        elif other == "limit":
            bare = replace(spec, unit=replace(spec.unit, order=Order(pre="", between="", end="", after_add="")))
            settings = f"{ours.precision}, channels_last, norms and ReLUs removed"
            found.append(replace(ours, system="limit", mode="best", settings=settings, network=to_json(bare)))
        else:
            theirs = replace(
                ours, gpu=(), system=other, network=_name_at(other, name), settings="float32, default layout"
            )
            found.append(replace(theirs, precision="float32", channels_last=False))
            best = f"{ours.precision}, channels_last"
            found.append(replace(theirs, mode="best", settings=best))
            found.append(replace(theirs, mode="compiled", settings=f"{best}, torch.compile", runner="compiled"))
            if not training and device.type == "cpu":
                _require("onnxruntime")
                exported = replace(theirs, precision="float32", channels_last=False, runner="onnxruntime")
                found.append(replace(exported, mode="onnxruntime", settings="float32, onnxruntime"))
    return found


def _mechanisms(gpu: Sequence[Mechanism], device: torch.device) -> list[tuple[Mechanism, ...]]:
    """Each mechanism alone, and all together."""
    alone: list[tuple[Mechanism, ...]] = [("tensor-lr", "capture") if one == "capture" else (one,) for one in gpu]
    together: tuple[Mechanism, ...] = tuple(dict.fromkeys(name for some in alone for name in some))
    found = list(dict.fromkeys([*alone, together])) if gpu else []
    for one in found:
        check_mechanisms(one, device)
    return found


def measure(work: Sequence[Setup], rounds: int, steps: int, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run all setups in interleaved rounds.

    Args:
        work: from `setups`.
        rounds: timed rounds.
        steps: of each system in a round; more where they last less than `ROUND_S`.
        report: is told what is going on.

    Returns:
        A row for each setup that worked: ``system``, ``mode``, ``settings``, ``images_per_s`` (median), ``peak_bytes``
        (memory beyond that of the bare process), ``predicted_bytes`` (for ours in training), ``first_step_s``
        (building apart), ``rounds`` (images/s of each).
        The fastest setting of another system is called ``best``, the rest by what they are: ``eager``, ``compiled``,
        ``onnxruntime``.

    Raises:
        RuntimeError: one of ours failed.
    """
    context = multiprocessing.get_context("spawn")
    running: list[tuple[Setup, Any, Any]] = []
    rows: dict[Setup, dict[str, Any]] = {}
    try:
        for setup in work:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, setup), daemon=True)
            with held_back():
                process.start()
            there.close()
            running.append((setup, here, process))
            answer = _ask(setup, here, process, report)
            if answer is None:
                running.pop()
                continue
            rows[setup] = {
                "system": setup.system,
                "mode": setup.mode,
                "settings": setup.settings,
                **answer,
                "rounds": [],
            }
            report(f"{setup.name}: first step {answer['first_step_s']:.1f} s")
        for number in range(rounds):
            for setup, pipe, process in running:
                pipe.send(steps)
                answer = _ask(setup, pipe, process, report)
                assert answer is not None, f"{setup.name} stopped in round {number}"
                rows[setup]["rounds"].append(round(setup.batch / answer["seconds"], 1))
            report(f"round {number + 1} of {rounds}")
        for setup, pipe, process in running:
            pipe.send(0)
            answer = _ask(setup, pipe, process, report)
            assert answer is not None
            rows[setup]["peak_bytes"] = answer["peak_bytes"]
            if setup.system == "preresnet" and setup.training:
                spec = from_json(NetSpec, setup.network)
                fused = setup.fused and (setup.device == "cpu" or "compiled" in setup.gpu)
                predicted = memory.predict(spec, setup.size, setup.batch, setup.precision, setup.plan, fused=fused)
                rows[setup]["predicted_bytes"] = predicted["peak_bytes"]
            rows[setup]["images_per_s"] = round(statistics.median(rows[setup]["rounds"]), 1)
            process.join()
    finally:
        for _, _, process in running:
            process.kill()
    return _name_best(list(rows.values()))


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ours over every other row: ``images_per_s`` and ``peak_bytes``, by the names of both."""

    def name(row: dict[str, Any]) -> str:
        return f"{row['system']} {row['mode']}"

    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["system"] != "preresnet" or row["mode"] == "eager":
            continue
        for other in rows:
            if other is not row:
                found[f"{name(row)} / {name(other)}"] = {
                    key: round(row[key] / other[key], 3) for key in ("images_per_s", "peak_bytes") if other[key]
                }
    return found


def bench(
    name: str,
    batch: int,
    against: Sequence[Other],
    plans: Sequence[MemoryPlan] = (),
    precision: Precision = "auto",
    device: str = "auto",
    *,
    training: bool = True,
    gpu: Sequence[Mechanism] = (),
    rounds: int = 7,
    steps: int = 3,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a network beside others.

    Args:
        name: of the network.
        batch: images in a step.
        against: ``pytorchcv`` and ``timm``, as their users run them (``default``) and at their best settings;
            ``eager``, ours with PyTorch's own operations; ``limit``, ours with norms and ReLUs removed.
        plans: memory plans of ours, a row each; none: ``plain`` alone, called ``default``.
        precision: of all but the others' default.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        training: or answers alone.
        gpu: mechanisms of ours on a CUDA device: a row with each alone (capture with tensor-lr), and one with all.
        rounds: interleaved rounds.
        steps: of each system in a round; more where they last less than `ROUND_S`.
        report: is told what is going on.

    Returns:
        ``network``, ``task``, ``batch``, ``device``, ``versions``, ``rows`` (`measure`) and ``ratios``.

    Raises:
        ValueError: bad input.
    """
    for field, value in (("batch", batch), ("rounds", rounds), ("steps", steps)):
        if value < 1:
            raise UserError(f"{field} {value}; it must be 1 or more")
    if gpu and not training:
        raise UserError("--gpu is for training steps; leave out --inference, or --gpu")
    if training and batch < 2:
        raise UserError("batch 1; a batch norm cannot train on one image, use 2 or more")
    chosen = devices.choose(device)
    work = setups(name, batch, against, plans, precision, chosen, training=training, gpu=gpu)
    rows = measure(work, rounds, steps, report)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    measured = [*against, *(row["mode"] for row in rows), *(row["settings"].split(", ")[-1] for row in rows)]
    for package in ("pytorchcv", "timm", "onnxruntime"):
        if package in measured:
            versions[package] = importlib.metadata.version(package)
    return {
        "network": name,
        "task": "training" if training else "inference",
        "batch": batch,
        "device": devices.describe(chosen),
        "versions": versions,
        "rows": rows,
        "ratios": ratios(rows),
    }


def _name_best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for system in ("pytorchcv", "timm"):
        tuned = [row for row in rows if row["system"] == system and row["mode"] != "default"]
        if tuned:
            for row in tuned:
                row["mode"] = "eager" if row["mode"] == "best" else row["mode"]
            max(tuned, key=lambda row: row["images_per_s"])["mode"] = "best"
    return rows


def _ask(setup: Setup, pipe: Any, process: Any, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The next answer of a worker; None where another system cannot do it."""
    try:
        answer = pipe.recv()
    except EOFError:
        process.join()
        answer = {"error": f"its process ended with exit code {process.exitcode} (out of memory?)"}
    if "error" not in answer:
        return answer
    if setup.runner == "eager":
        raise RuntimeError(f"{setup.name} failed: {answer['error']}")
    report(f"{setup.name} left out: {answer['error']}")
    return None


# Their names of our networks; both build theirs with projections where ours pads with zeros at 6n+2 layers.
_NAMES = {
    "pytorchcv": {
        **{f"resnet{d}-preact": f"preresnet{d}_cifar10" for d in (20, 56, 110, 1001, 1202)},
        **{f"resnet{d}-original": f"resnet{d}_cifar10" for d in (20, 56, 110, 1001, 1202)},
        "resnet164-preact": "preresnet164bn_cifar10",
        "resnet164-original": "resnet164bn_cifar10",
    },
    "timm": {
        **{f"resnet{d}-preact": f"resnetv2_{d}" for d in (50, 101, 152)},
        **{f"resnet{d}-original": f"resnet{d}" for d in (18, 34, 50, 101, 152)},
    },
}


def _name_at(system: str, name: str) -> str:
    known = _NAMES[system]
    if name not in known:
        raise UserError(f"{system} has no {name}; it is compared on {', '.join(known)}")
    _require(system)
    return known[name]


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{package} is not installed; pip install 'preresnet[peers]', or compare with less in --against"
        )


def as_json(result: dict[str, Any]) -> str:
    """A result as the text of a record."""
    return json.dumps(result, indent=1) + "\n"
