"""How much memory does a training step take, and which plan makes it fit?

| plan | what the backward pass finds in memory | what it computes again |
|---|---|---|
| plain | the input of every norm and of every convolution | nothing |
| recompute | the input of every norm | normalise and ReLU, one pass over memory each time |
| units | the input of every residual unit | the whole forward pass |
| sqrt | about sqrt(n) of n unit inputs a stage | the whole forward pass |

All give the same loss and gradients, bit for bit: what is computed again uses the batch statistics of the first time.

Source: Chen et al., 2016, "Training deep nets with sublinear memory cost", for ``units`` and ``sqrt``.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from preresnet.model.network import Network, Stage, meta, set_fused
from preresnet.model.units import ResidualUnit
from preresnet.spec import NetSpec, UnitShape, UserError

Plan = Literal["plain", "recompute", "units", "sqrt"]
PLANS: tuple[Plan, ...] = get_args(Plan)

# Of a parameter. The copy is what bfloat16 computes with, kept from forward to backward.
STATE_BYTES, COPY_BYTES, GRADIENT_BYTES = 8, 2, 4  # float32 weight and momentum; bfloat16; float32
WORKING_MAPS = 3  # of the largest size, beside what is saved: two gradients, and what is being recomputed


def set_plan(model: Network, plan: Plan) -> None:
    """Choose what the network's backward pass will recompute.

    Args:
        model: changed in place; its weights and results are not.
        plan: one of `PLANS`.

    Raises:
        ValueError: no such plan.
    """
    if plan not in PLANS:
        raise UserError(f"no memory plan {plan!r}; use {', '.join(PLANS)}")
    for stage in model.stages:
        assert isinstance(stage, Stage)
        units = list(stage.units)
        segments = {"units": len(units), "sqrt": round(math.sqrt(len(units)))}.get(plan, 0)
        stage.segment = math.ceil(len(units) / segments) if segments else 0
        for unit in units:
            assert isinstance(unit, ResidualUnit)
            unit.recompute = plan == "recompute"


class Saved:
    """What autograd keeps while this is in use: each storage once, without parameters.

    Args:
        model: whose parameters are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: dict[int, Tensor] = {}
        self._parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self.bytes = 0

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage unless it is known."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._kept and storage._cdata not in self._parameters:
            self._kept[storage._cdata] = tensor  # kept alive, so that no other storage takes its place
            self.bytes += storage.nbytes()
        return tensor

    def leave_out(self, tensor: Tensor) -> None:
        """Do not count a tensor's storage, whether it was saved or not."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._kept:
            self.bytes -= storage.nbytes()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count all that is saved inside."""
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield


def without_memory(spec: NetSpec, precision: str) -> Network:
    """The network on the meta device in training mode, its operations in the types that autocast would choose."""
    model = meta(spec)
    set_fused(model, True)
    if precision == "bfloat16":
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    return model


def predict(spec: NetSpec, size: int, batch: int, precision: str, plan: Plan) -> dict[str, int]:
    """Memory of a training step, from the shapes alone.

    Args:
        spec: the network.
        size: height and width of the images.
        batch: images in a step (those that one norm sees, where the recipe divides the batch).
        precision: ``float32`` or ``bfloat16`` (autocast).
        plan: what is recomputed.

    Returns:
        ``weights_bytes`` (weights, their copies and momentum), ``saved_bytes`` (activations held after the forward
        pass) and ``peak_bytes`` (the most held at any time: weights, gradients, saved activations, the segment that is
        being recomputed, and working space).
    """
    return _predict(without_memory(spec, precision), size, batch, precision, plan)


def _predict(model: Network, size: int, batch: int, precision: str, plan: Plan) -> dict[str, int]:
    spec = model.spec
    set_plan(model, plan)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x = torch.empty(batch, spec.in_channels, size, size, device="meta", dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    held = Saved(model)
    most = largest = held_by_units = 0
    with held.counting():
        x = model.stem(x)
    held.leave_out(x)
    shapes = [shape for _, _, shape in spec.units()]
    known: dict[tuple[UnitShape, torch.Size], tuple[int, torch.Size]] = {}  # what like units save, and their output
    for stage in model.stages:
        assert isinstance(stage, Stage)
        inside = 0
        for index, unit in enumerate(stage.units):
            key = shapes.pop(0), x.shape
            starts_segment = stage.segment and index % stage.segment == 0
            if starts_segment:
                held_by_units += x.nbytes
                inside = -x.nbytes  # the first unit of a segment would save it too
            largest = max(largest, x.nbytes)
            if key not in known:
                saved = Saved(model)
                with saved.counting():
                    y = unit(x)
                saved.leave_out(y)  # a ReLU keeps its result, but it is also what the next unit reads and keeps
                known[key] = saved.bytes, y.shape
            num_bytes, output = known[key]
            x = torch.empty(output, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)
            largest = max(largest, x.nbytes)
            if stage.segment:
                inside += num_bytes
                most = max(most, held.bytes + held_by_units + inside)
            else:
                held_by_units += num_bytes
    with held.counting():
        model.head(x)
    parameters = sum(p.numel() for p in model.parameters())
    weights = (STATE_BYTES + (COPY_BYTES if precision == "bfloat16" else 0)) * parameters
    saved = held.bytes + held_by_units
    # Gradients come as saved activations go; only segments that are recomputed late in the backward pass meet them.
    most = max(saved, most + GRADIENT_BYTES * parameters) + WORKING_MAPS * largest
    return {
        "weights_bytes": weights,
        "saved_bytes": saved,
        "peak_bytes": weights + max(most, GRADIENT_BYTES * parameters),
    }


def choose(spec: NetSpec, size: int, batch: int, precision: str, available: int) -> tuple[Plan, dict[str, int]]:
    """The plan that computes least among those that fit.

    Args:
        spec: the network.
        size: height and width of the images.
        batch: as in `predict`.
        precision: as in `predict`.
        available: bytes that a training step may take.

    Returns:
        The plan and its prediction; the leanest plan where none fits.
    """
    for plan, found in predictions(spec, size, batch, precision):
        if found["peak_bytes"] <= available or plan == PLANS[-1]:
            return plan, found
    raise AssertionError


def predictions(spec: NetSpec, size: int, batch: int, precision: str) -> Iterator[tuple[Plan, dict[str, int]]]:
    """`predict` for each plan, from the one that computes least to the leanest."""
    model = without_memory(spec, precision)
    for plan in PLANS:
        yield plan, _predict(model, size, batch, precision, plan)
