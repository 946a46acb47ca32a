"""Memory of a training step: what the backward pass computes again, and what that leaves to be held.

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

from preresnet.model.counts import BFLOAT16, Step, count
from preresnet.model.network import Network, Stage
from preresnet.model.units import ResidualUnit
from preresnet.spec import MEMORY_PLANS, MemoryPlan, NetSpec, UserError

# Of a parameter. The copy is what bfloat16 computes with, kept from forward to backward.
STATE_BYTES, COPY_BYTES, GRADIENT_BYTES = 8, 2, 4  # float32 weight and momentum; bfloat16; float32
WORKING_MAPS = 3  # of the largest size, beside what is saved: two gradients, and what is being recomputed


def set_plan(model: Network, plan: MemoryPlan) -> None:
    """Choose what the network's backward pass will recompute.

    Args:
        model: changed in place; its weights and results are not.
        plan: one of `MEMORY_PLANS`.

    Raises:
        ValueError: no such plan.
    """
    if plan not in MEMORY_PLANS:
        raise UserError(f"no memory plan {plan!r}; use {', '.join(MEMORY_PLANS)}")
    for stage in model.stages:
        assert isinstance(stage, Stage)
        units = list(stage.units)
        stage.segment = _segment(plan, len(units))
        for unit in units:
            assert isinstance(unit, ResidualUnit)
            unit.recompute = plan == "recompute"


def predict(
    spec: NetSpec, size: int, batch: int, precision: str, plan: MemoryPlan, *, fused: bool = True
) -> dict[str, int]:
    """Memory of a training step, from the shapes alone.

    Args:
        spec: the network.
        size: height and width of the images.
        batch: images in a step (those that one norm sees, where the recipe divides the batch).
        precision: ``float32`` or ``bfloat16`` (autocast).
        plan: what is recomputed.
        fused: whether the step uses passes of our own, as it does on a CPU.

    Returns:
        ``weights_bytes`` (weights, their copies and momentum), ``saved_bytes`` (activations held after the forward
        pass) and ``peak_bytes`` (the most held at any time: weights, gradients, saved activations, the segment that is
        being recomputed, and working space).
    """
    step = Step(batch, precision, fused, recompute=plan == "recompute")
    parts = count(spec, size, step)

    def nbytes(shape: tuple[int, ...]) -> int:
        return batch * math.prod(shape) * step.dtype.itemsize

    x = nbytes(parts.stem.output)
    held = sum(parts.stem.kept) + parts.stem.keeps_input * nbytes((spec.in_channels, size, size))
    largest, most = x, 0
    for units in parts.stages:
        length, inside = _segment(plan, len(units)), 0
        for index, unit in enumerate(units):
            # A ReLU at a unit's end keeps its result, but it is also what the next unit reads and keeps.
            saved = sum(unit.kept) + unit.keeps_input * x
            if not length:
                held += saved
            elif index % length == 0:
                held += x
                inside = saved - x  # the first unit of a segment would save it too
            else:
                inside += saved
            if length:
                most = max(most, held + inside)
            x = nbytes(unit.output)
            largest = max(largest, x)
    held += sum(parts.head.kept) + parts.head.keeps_input * x
    parameters = sum(part.parameters for part in parts.all())
    weights = (STATE_BYTES + (COPY_BYTES if precision == BFLOAT16 else 0)) * parameters
    # Gradients come as saved activations go; only segments that are recomputed late in the backward pass meet them.
    most = max(held, most + GRADIENT_BYTES * parameters) + WORKING_MAPS * largest
    return {
        "weights_bytes": weights,
        "saved_bytes": held,
        "peak_bytes": weights + max(most, GRADIENT_BYTES * parameters),
    }


def choose(
    spec: NetSpec, size: int, batch: int, precision: str, available: int, *, fused: bool = True
) -> tuple[MemoryPlan, dict[str, int]]:
    """The plan that computes least among those that fit.

    Args:
        spec: the network.
        size: height and width of the images.
        batch: as in `predict`.
        precision: as in `predict`.
        available: bytes that a training step may take.
        fused: as in `predict`.

    Returns:
        The plan and its prediction; the leanest plan where none fits.
    """
    for plan in MEMORY_PLANS:
        found = predict(spec, size, batch, precision, plan, fused=fused)
        if found["peak_bytes"] <= available or plan == MEMORY_PLANS[-1]:
            return plan, found
    raise AssertionError


def _segment(plan: MemoryPlan, num_units: int) -> int:
    """How many units of a stage are computed again together; 0 for none."""
    segments = {"units": num_units, "sqrt": round(math.sqrt(num_units))}.get(plan, 0)
    return math.ceil(num_units / segments) if segments else 0
