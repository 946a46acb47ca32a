"""What reaches unit L from unit l, forward and backward, in one network on some batches.

| measured | equation | how |
|---|---|---|
| x_L - x_l against the sum of residuals | 4, 6, 7 | the error of a step; inner products give that of a pair |
| the gradient's straight part, and the rest | 5, 8 | twice: Jacobian products; autograd with residuals cut |
| factor of every shortcut, and their product | 6 to 8 | the share of x_l that the shortcut keeps |

Where a ReLU (or anything else) stands between y_l and x_{l+1}, both parts of the gradient pass through it: the straight
part is then what a network without its residual branches, but with those masks, would transport.

Norms use the statistics of the batch, as in training, because that is the network that training sees; then samples of
a batch are coupled, and the gradient "of a sample" is the row of the gradient of the summed loss with respect to x_l.
All sums are kept in float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preresnet.model.preactivation import Norm
from preresnet.propagation import backward, inputs, pairs, streams
from preresnet.propagation.additions import Addition, Pass
from preresnet.propagation.inputs import Batch
from preresnet.propagation.operands import ALONG
from preresnet.spec import UserError


@dataclass(frozen=True)
class Probe:
    """What was measured; lists run along depth, one entry a unit.

    Args:
        network: the class of the module.
        training: whether norms used the statistics of the batch.
        images: samples in all batches.
        loss: mean over them.
        units: names.
        shortcuts: of each unit, in words: ``x`` (an identity), ``0.5 x``, ``a x, a of 64 numbers``, ``no multiple of
            x`` (a gate, a convolution, a dropout), ``of another shape``, ``none``. Only multiples have ``pairs``.
        doubts: units where it is uncertain which operand is the shortcut: ``unit``, ``shortcut`` (what was taken for
            it), ``residual`` and ``why``. Empty for networks of this package.
        forward: ``x_``, ``residual_`` and ``sum_`` followed by ``mean``, ``variance``, ``negative_share`` and ``rms``;
            ``shortcut_rms``; ``changed``: length of x_{l+1} - y_l over that of y_l, what f does (None where shapes
            differ, and for the last unit).
        joins: ``factor``: share of x_l that the shortcut keeps, ``<h(x), x> / <x, x>`` (None where it changes
            the shape, or turns x_l, as a convolution does: a cosine below 1/2);
            ``gain``: rms of h(x) over rms of x; ``product``: of the factors from this unit to the last one.
        pairs: for each run of units with shortcuts lambda x (a constant: number, parameter or buffer): ``units`` and
            ``deviation[l][L]``, the length of x_L - (product of lambda) x_l - (scaled residuals) over that of x_L;
            position L = number of units is the last sum.
        backward: one entry more than units, the last one for the last sum. ``gradient``, ``straight`` and ``rest``:
            root mean square, over samples, of the length of the gradient and of its parts; ``cosine``: mean cosine
            between the parts; ``cancelled_share``: samples where the sum is less than a tenth of what both measure;
            ``rest_along_straight``: mean of ``<rest, straight> / <straight, straight>``, -1 where they cancel.
        agreement: the largest difference between the two ways, over the length of what is compared: ``straight``,
            ``rest``, ``gradient``.
        weights: by parameter of two or more dimensions: ``gradient`` (length, of the mean loss), ``weight`` (length),
            ``ratio``.
        dead: by ReLU, its channels that no sample made positive, and all its ``channels``.
        norms: by batch norm, its scales that are exactly 1 or 0, where they started, and all of them.
    """

    network: str
    training: bool
    images: int
    loss: float
    units: tuple[str, ...]
    shortcuts: tuple[str, ...]
    doubts: list[dict[str, str]]
    forward: dict[str, list[float | None]]
    joins: dict[str, list[float | None]]
    pairs: list[dict[str, Any]]
    backward: dict[str, list[float | None]]
    agreement: dict[str, float]
    weights: dict[str, dict[str, float]]
    dead: dict[str, dict[str, int]]
    norms: dict[str, dict[str, int]]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def probe(
    model: nn.Module,
    *batches: Batch,
    units: Sequence[str] = (),
    loss: Callable[[Tensor, Any], Tensor] | None = None,
    training: bool = True,
    seed: int = 0,
) -> Probe:
    """Measure how signal and gradient travel through a network.

    The network is left exactly as it was: parameters, buffers, gradients, hooks, modes, random state. It works inside
    ``torch.no_grad()`` and ``torch.inference_mode()`` too.

    Paper: Sections 2 and 3.

    Args:
        model: any module with residual additions; of another package too. What is measured is a copy that shares its
            parameters' values; forward hooks run on the copy.
        batches: one or more: x, or (x, y), or a mapping of keyword arguments with labels under ``labels``. Their first
            dimension counts samples. Without labels, some are drawn from the seed.
        units: names of modules that each compute x + F(x), where the additions cannot be found.
        loss: of output and labels, a mean over samples; cross entropy by default.
        training: norms use the statistics of the batch and dropout drops; False: as in evaluation.
        seed: of dropout masks, and of labels where none are given.

    Returns:
        The measurements.

    Raises:
        UserError: no residual addition was found, something was not finite, or a batch or its labels do not fit.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"a model of type {type(model).__name__}; give a torch.nn.Module")
    if not batches:
        raise UserError("no batch given; give at least one: images, or (images, labels)")
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given
    units = (units,) if isinstance(units, str) else units
    sums = _Sums()
    stream: streams.Stream | None = None
    shapes: list[Any] = []
    with torch.inference_mode(False), torch.enable_grad():
        for number, batch in enumerate(batches):
            args, kwargs, target = inputs.split(batch)
            with streams.same_randomness(seed + number, inputs.first_tensor(args, kwargs).device):
                if stream is None or shapes != inputs.shapes(args, kwargs):  # an exported graph holds for one shape
                    stream = streams.find(model, args, kwargs, units, training=training)
                    shapes = inputs.shapes(args, kwargs)
                _measure(sums, model, stream, (args, kwargs, target), loss or cross_entropy, seed + number)
        return _result(sums, model, training)


def cross_entropy(output: Tensor, labels: Any) -> Tensor:
    """Mean cross entropy: (n, ..., classes) logits with (n, ...) labels, integers.

    Raises:
        UserError: labels of another type or shape, or one that is no class.
    """
    return F.cross_entropy(
        output.flatten(0, -2), inputs.labels_of(labels, output).flatten(), ignore_index=inputs.IGNORED
    )


# --- one batch ----------------------------------------------------------------------------------------------------


@dataclass
class _Sums:
    """What all batches add up to, in Python's floats and float64 tensors."""

    units: list[str] = field(default_factory=list)
    shortcuts: list[str] = field(default_factory=list)
    doubts: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: list[pairs.Run] = field(default_factory=list)
    factors: list[float | None] = field(default_factory=list)
    images: int = 0
    loss: float = 0.0
    columns: dict[str, list[float]] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    active: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, unit: int, value: float) -> None:
        column = self.columns.setdefault(name, [0.0] * (len(self.units) + 1))
        column[unit] += value


def _measure(
    sums: _Sums,
    model: nn.Module,
    stream: streams.Stream,
    batch: tuple[tuple[Any, ...], dict[str, Any], Any],
    loss: Callable[[Tensor, Any], Tensor],
    seed: int,
) -> None:
    args, kwargs, target = batch
    first = inputs.first_tensor(args, kwargs)
    images = len(first)

    def run(cut: bool) -> tuple[Pass, Tensor]:
        nonlocal target
        with streams.same_randomness(seed, first.device):
            taken = Pass(cut)
            ready = tuple(inputs.differentiable(value) for value in args)
            named = {name: inputs.differentiable(one) for name, one in kwargs.items()}
            output = inputs.output(inputs.call(lambda *a, **k: stream.run(a, k, taken), model, ready, named))
            if target is None:
                target = inputs.draw_labels(output, seed)
            value = loss(output, target)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise UserError(
                    f"the loss is {_kind(value)}; it has to be a tensor with one number, a mean over samples"
                )
            return taken, images * value.squeeze()

    taken, total = run(False)
    additions = taken.additions
    if not additions:
        raise UserError("no residual addition was passed; name modules that each compute x + F(x) in units=(...)")
    names = [one.name for one in additions]
    if not sums.units:
        sums.units, sums.shortcuts, sums.runs = names, [_words(one) for one in additions], pairs.runs(additions)
        sums.factors = [one.factor if isinstance(one.factor, float) else None for one in additions]
    assert names == sums.units
    sums.doubts |= {one["unit"]: one for one in stream.doubts}
    _forward(sums, additions)
    if not torch.isfinite(total):
        raise UserError(f"the loss is {total.item()}, though all units are finite; look at the head, or the loss")
    cut_taken, cut_total = run(True)
    parameters = {name: one for name, one in stream.parameters.items() if one.requires_grad}
    parts = backward.split(additions, total, cut_taken.additions, cut_total, list(parameters.values()))
    sums.images += images
    sums.loss += float(total.detach())
    for position, at in enumerate(parts.positions):
        for name, value in at.items():
            sums.add(name, position, value)
    for name, value in parts.agreement.items():
        sums.agreement[name] = max(value, sums.agreement.get(name, 0.0))
    for name, gradient in zip(parameters, parts.parameters, strict=True):
        if gradient is not None and gradient.ndim >= 2:
            gradient = gradient.double()
            sums.gradients[name] = sums.gradients[name] + gradient if name in sums.gradients else gradient
    for name, alive in taken.active.items():
        sums.active[name] = sums.active[name] | alive if name in sums.active else alive


@torch.no_grad()
def _forward(sums: _Sums, additions: list[Addition]) -> None:
    for unit, one in enumerate(additions):
        for name in ("x", "residual", "shortcut", "sum"):
            value = getattr(one, name)
            squares = _square(value)
            if not math.isfinite(squares):
                raise UserError(
                    f"{'the residual' if name == 'residual' else name} of unit {one.name!r} (number {unit + 1} of "
                    f"{len(additions)}) is not finite, and all before it is; look there first"
                )
            sums.add(f"{name}_squares", unit, squares)
            if name != "shortcut":
                sums.add(f"{name}_count", unit, value.numel())
                sums.add(f"{name}_total", unit, float(value.sum(dtype=torch.float64)))
                sums.add(f"{name}_negative", unit, float((value < 0).sum()))
        base = one.x if one.reference is None else one.reference
        sums.add("shortcut_count", unit, one.shortcut.numel())
        if base.shape == one.shortcut.shape:
            sums.add("kept", unit, float((one.shortcut.double() * base.double()).sum()))
            sums.add("base", unit, _square(base))
        after = additions[unit + 1].x if unit + 1 < len(additions) else None
        if after is not None and after.shape == one.sum.shape:
            sums.add("changed", unit, _square(after - one.sum))
            sums.add("changed_of", unit, _square(one.sum))
    for run in sums.runs:
        pairs.add(run, additions)


def _words(one: Addition) -> str:
    """What a shortcut is."""
    if one.shortcut.shape != one.x.shape:
        return "of another shape"
    if not one.shortcut.any():
        return "none"
    factor = pairs.factor(one)
    if factor is None:
        return "no multiple of x"
    if isinstance(factor, Tensor):
        return f"a x, a of {factor.numel()} numbers"
    return "x" if factor == 1 else f"{factor:g} x"


def _kind(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


# --- the result ---------------------------------------------------------------------------------------------------


def _result(sums: _Sums, model: nn.Module, training: bool) -> Probe:
    depth, get = len(sums.units), sums.columns
    zeros = [0.0] * (depth + 1)

    def per(name: str, of: str, power: float = 1.0) -> list[float | None]:
        both = list(zip(get.get(name, zeros), get.get(of, zeros), strict=True))[:depth]
        return [(above / below) ** power if below else None for above, below in both]

    forward: dict[str, list[float | None]] = {}
    for name in ("x", "residual", "sum"):
        means, squares = per(f"{name}_total", f"{name}_count"), per(f"{name}_squares", f"{name}_count")
        forward[f"{name}_mean"] = means
        forward[f"{name}_variance"] = [max(0.0, s - m * m) for m, s in zip(means, squares, strict=True)]  # type: ignore[operator]
        forward[f"{name}_negative_share"] = per(f"{name}_negative", f"{name}_count")
        forward[f"{name}_rms"] = per(f"{name}_squares", f"{name}_count", 0.5)
    forward["shortcut_rms"] = per("shortcut_squares", "shortcut_count", 0.5)
    forward["changed"] = per("changed", "changed_of", 0.5)

    factors = [
        measured if exact is None else exact
        for exact, measured in zip(sums.factors, _measured(get, depth), strict=True)
    ]
    product, products = 1.0, []
    for factor in reversed(factors):
        product *= 1.0 if factor is None else factor
        products.append(product)
    joins: dict[str, list[float | None]] = {
        "factor": factors,
        "gain": [
            None if x == 0 else s / x  # type: ignore[operator]
            for s, x in zip(forward["shortcut_rms"], forward["x_rms"], strict=True)
        ],
        "product": products[::-1],
    }

    back: dict[str, list[float | None]] = {
        name: [(value / sums.images) ** 0.5 for value in get[f"{name}_squares"]]
        for name in ("gradient", "straight", "rest")
    }
    for name in ("cosine", "cancelled_share", "rest_along_straight"):
        counted = get[f"{name}_samples"]
        back[name] = [a / b if b else None for a, b in zip(get[name], counted, strict=True)]

    parameters = dict(model.named_parameters())
    weights = {}
    for name, gradient in sums.gradients.items():
        norm, size = float(gradient.norm()) / sums.images, float(torch.linalg.vector_norm(parameters[name].detach()))
        weights[name] = {"gradient": norm, "weight": size, "ratio": norm / size if size else 0.0}
    return Probe(
        network=type(model).__name__,
        training=training,
        images=sums.images,
        loss=sums.loss / sums.images,
        units=tuple(sums.units),
        shortcuts=tuple(sums.shortcuts),
        doubts=list(sums.doubts.values()),
        forward=forward,
        joins=joins,
        pairs=[_pairs(sums, run) for run in sums.runs],
        backward=back,
        agreement=sums.agreement,
        weights=weights,
        dead={name: {"dead": int((~alive).sum()), "channels": len(alive)} for name, alive in sums.active.items()},
        norms=_norms(model),
    )


def _measured(columns: dict[str, list[float]], depth: int) -> list[float | None]:
    """The share of x_l that each shortcut keeps; None for one that turns x_l, such as a convolution."""
    found: list[float | None] = []
    for unit in range(depth):
        base, kept = (columns.get(name, [0.0] * depth)[unit] for name in ("base", "kept"))
        along = kept >= ALONG * (base * columns["shortcut_squares"][unit]) ** 0.5
        found.append(kept / base if base and along else None)
    return found


def _pairs(sums: _Sums, run: pairs.Run) -> dict[str, Any]:
    squares = [sums.columns["x_squares"][unit] for unit in run.units[1:]] + [sums.columns["sum_squares"][run.units[-1]]]
    return {"units": [sums.units[unit] for unit in run.units], "deviation": pairs.deviations(run, squares)}


def _norms(model: nn.Module) -> dict[str, dict[str, int]]:
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Norm | nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            unmoved = (module.weight == 1) | (module.weight == 0)
            found[name] = {"unmoved": int(unmoved.sum()), "scales": len(module.weight)}
    return found
