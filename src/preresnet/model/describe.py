"""The description of a network: parameters, multiply-adds and memory, part by part, and what of it runs fused."""

import math
from typing import Any

from preresnet.model import memory
from preresnet.model.counts import BFLOAT16, Counts, Parts, Step, count
from preresnet.spec import MEMORY_PLANS, NetSpec, UserError

IMAGENET_SIZE, CIFAR_SIZE = 224, 32
PRECISIONS = "float32", BFLOAT16


def default_size(spec: NetSpec) -> int:
    """Height and width that the paper trains a network of this kind at."""
    return IMAGENET_SIZE if spec.stem.pooled else CIFAR_SIZE


def describe(
    spec: NetSpec, size: int | None = None, batch: int = 128, precision: str = "float32", *, fused: bool = True
) -> dict[str, Any]:
    """Count a network by running its parts without memory (on PyTorch's meta device), like units once.

    Multiply-adds are those of convolutions and the classifier, as papers count them. Saved activations are what
    autograd keeps for the backward pass of a plain training step, each storage once, without parameters; they decide
    how much memory training takes.

    Args:
        spec: the network.
        size: height and width of the input; by default 224 for an ImageNet stem and 32 otherwise.
        batch: images of the training step whose memory is predicted.
        precision: of that step, ``float32`` or ``bfloat16``.
        fused: whether training uses passes of our own, as it does on a CPU.

    Returns:
        ``depth``, ``input`` (c, h, w), ``parameters``, ``multiply_adds`` (of one image), ``activation_bytes`` (of one
        image, by precision), ``parts``: the same for stem, each stage and head, with ``output`` shapes; ``training``:
        ``batch``, ``precision`` and ``peak_bytes`` of a step by memory plan (`preresnet.model.memory`); and ``fused``:
        ``norms`` (each in one operation with its ReLU), ``lone_relus`` (without a norm before them: plain),
        ``convolutions``, and of those ``recomputing``: whose input the plan ``recompute`` computes again.

    Raises:
        ValueError: a size or a batch below 1.
    """
    size = default_size(spec) if size is None else size
    for name, value in (("input size", size), ("batch", batch)):
        if value < 1:
            raise UserError(f"{name} {value}; it must be 1 or more")
    # A batch norm refuses a single value a channel, which a small input can come down to: never one image alone.
    steps = {kind: Step(2, kind, fused) for kind in PRECISIONS}
    counted = {kind: count(spec, size, step) for kind, step in steps.items()}
    saved = {kind: _saved_bytes(counted[kind], (spec.in_channels, size, size), steps[kind]) for kind in PRECISIONS}
    parts = [
        {
            "part": name,
            "units": None if name in ("stem", "head") else len(members),
            "output": list(members[-1].output),
            "parameters": sum(part.parameters for part in members),
            "multiply_adds": sum(part.multiply_adds for part in members),
            "activation_bytes": {kind: saved[kind][name] for kind in PRECISIONS},
        }
        for name, members in _named(counted["float32"]).items()
    ]
    batch = max(batch, 2)
    return {
        "depth": spec.depth,
        "input": [spec.in_channels, size, size],
        "parameters": sum(part["parameters"] for part in parts),
        "multiply_adds": sum(part["multiply_adds"] for part in parts),
        "activation_bytes": {kind: sum(part["activation_bytes"][kind] for part in parts) for kind in PRECISIONS},
        "parts": parts,
        "training": {
            "batch": batch,
            "precision": precision,
            "peak_bytes": {
                plan: memory.predict(spec, size, batch, precision, plan, fused=fused)["peak_bytes"]
                for plan in MEMORY_PLANS
            },
        },
        "fused": {
            key: sum(getattr(part, key) for part in counted["float32"].all())
            for key in ("norms", "lone_relus", "convolutions", "recomputing")
        },
    }


def multiply_adds(spec: NetSpec, size: int | None = None) -> int:
    """Those of convolutions and the classifier for one image, as papers count them.

    Args:
        spec: the network.
        size: height and width of the input; by default as in `describe`.
    """
    return sum(part.multiply_adds for part in count(spec, size or default_size(spec), Step(2)).all())


def _named(parts: Parts) -> dict[str, list[Counts]]:
    stages = {f"stage {number}": units for number, units in enumerate(parts.stages, start=1)}
    return {"stem": [parts.stem], **stages, "head": [parts.head]}


def _saved_bytes(parts: Parts, image: tuple[int, ...], step: Step) -> dict[str, int]:
    """What each part keeps of one image; what two parts keep belongs to the first."""
    found, x, is_known = {}, image, False
    for name, members in _named(parts).items():
        found[name] = 0
        for part in members:
            found[name] += sum(size // step.batch for size in part.kept)
            if part.keeps_input and not is_known:
                found[name] += math.prod(x) * step.dtype.itemsize
            x, is_known = part.output, part.keeps_output
            if is_known:
                found[name] += math.prod(x) * step.dtype.itemsize
    return found
