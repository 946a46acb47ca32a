"""How many parameters, multiply-adds and bytes of memory does a network have, and what of it runs fused?"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from preresnet.model import memory
from preresnet.model.network import Network, meta
from preresnet.model.preactivation import Norm
from preresnet.model.units import ResidualUnit
from preresnet.spec import NetSpec, UserError

IMAGENET_SIZE, CIFAR_SIZE = 224, 32


def default_size(spec: NetSpec) -> int:
    """Height and width that the paper trains a network of this kind at."""
    return IMAGENET_SIZE if spec.stem.pooled else CIFAR_SIZE


def describe(spec: NetSpec, size: int | None = None, batch: int = 128) -> dict[str, Any]:
    """Count a network by running it without memory (on PyTorch's meta device).

    Multiply-adds are those of convolutions and the classifier, as papers count them. Saved activations are what
    autograd keeps for the backward pass of a plain training step, each storage once, without parameters; they decide
    how much memory training takes.

    Args:
        spec: the network.
        size: height and width of the input; by default 224 for an ImageNet stem and 32 otherwise.
        batch: images of the training step whose memory is predicted.

    Returns:
        ``depth``, ``input`` (c, h, w), ``parameters``, ``multiply_adds`` (of one image), ``activation_bytes`` (of one
        image, by precision), ``parts``: the same for stem, each stage and head, with ``output`` shapes; ``training``:
        ``batch`` and ``peak_bytes`` of a step in bfloat16 by memory plan (`preresnet.model.memory`); and ``fused``,
        what of it the fused operations compute (`fused`).

    Raises:
        ValueError: a size or a batch below 1.
    """
    size = default_size(spec) if size is None else size
    for name, value in (("input size", size), ("batch", batch)):
        if value < 1:
            raise UserError(f"{name} {value}; it must be 1 or more")
    full = _count(memory.without_memory(spec, "float32"), size, torch.float32)
    half = _count(memory.without_memory(spec, "bfloat16"), size, torch.bfloat16)
    parts = []
    for name, part in full.items():
        parts.append(
            {
                "part": name,
                **{key: part[key] for key in ("units", "output", "parameters", "multiply_adds")},
                "activation_bytes": {"float32": part["bytes"], "bfloat16": half[name]["bytes"]},
            }
        )
    return {
        "depth": spec.depth,
        "input": [spec.in_channels, size, size],
        "parameters": sum(part["parameters"] for part in parts),
        "multiply_adds": sum(part["multiply_adds"] for part in parts),
        "activation_bytes": {
            precision: sum(part["activation_bytes"][precision] for part in parts)
            for precision in ("float32", "bfloat16")
        },
        "parts": parts,
        "training": {
            "batch": batch,
            "peak_bytes": {
                plan: found["peak_bytes"] for plan, found in memory.predictions(spec, size, max(batch, 2), "bfloat16")
            },
        },
        "fused": fused(meta(spec)),
    }


def multiply_adds(spec: NetSpec, size: int | None = None) -> int:
    """Those of convolutions and the classifier for one image, as papers count them.

    Args:
        spec: the network.
        size: height and width of the input; by default as in `describe`.
    """
    parts = _count(memory.without_memory(spec, "float32"), size or default_size(spec), torch.float32)
    return sum(part["multiply_adds"] for part in parts.values())


def fused(model: Network) -> dict[str, int]:
    """What the fused operations compute in training, and what PyTorch's own do.

    Returns:
        ``norms`` (each in one operation with its ReLU), ``lone_relus`` (without a norm before them: plain),
        ``convolutions``, and of those ``recomputing``: whose input the plan ``recompute`` computes again.
    """
    recomputing = 0
    for unit in model.modules():
        if isinstance(unit, ResidualUnit):
            layers = [nn.Identity() if unit.shared else unit.pre, *unit.residual]
            recomputing += sum(isinstance(a, Norm) and type(b) is nn.Conv2d for a, b in pairwise(layers))
    return {
        "norms": sum(isinstance(module, Norm) for module in model.modules()),
        "lone_relus": sum(isinstance(module, nn.ReLU) for module in model.modules()),
        "convolutions": sum(isinstance(module, nn.Conv2d) for module in model.modules()),
        "recomputing": recomputing,
    }


def _count(model: Network, size: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    stages = [(f"stage {number}", stage) for number, stage in enumerate(model.stages, start=1)]
    named: list[tuple[str, nn.Module]] = [("stem", model.stem), *stages, ("head", model.head)]
    parts: dict[str, dict[str, Any]] = {
        name: {
            "units": len(module.units) if hasattr(module, "units") else None,  # type: ignore[arg-type]
            "parameters": sum(p.numel() for p in module.parameters()),
            "multiply_adds": 0,
            "bytes": 0,
            "output": [],
        }
        for name, module in named
    }
    batch = 2  # a batch norm refuses a single value a channel, which a small input can come down to
    saved = memory.Saved(model)
    current = "stem"

    def pack(tensor: Tensor) -> Tensor:
        before = saved.bytes
        saved.add(tensor)
        parts[current]["bytes"] += (saved.bytes - before) // batch
        return tensor

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            nonlocal current
            current = name

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            parts[name]["output"] = list(output.shape[1:])

        return hook

    def work(module: nn.Module, _: object, output: Tensor) -> None:
        per_output = module.weight[0].numel()  # type: ignore[index, operator, union-attr]
        parts[current]["multiply_adds"] += output.numel() // batch * per_output

    for name, module in named[:-1]:
        module.register_forward_pre_hook(enter(name))
        module.register_forward_hook(leave(name))
    model.head.norm.register_forward_pre_hook(enter("head"))  # the head is entered through its two halves
    model.head.linear.register_forward_hook(leave("head"))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(work)
    x = torch.empty(batch, model.spec.in_channels, size, size, device="meta", dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return parts
