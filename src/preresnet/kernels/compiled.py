"""The passes as functions of PyTorch, which `torch.compile` turns into Triton for a GPU.

They are the formulas that ``norm.cpp`` and ``gate.cpp`` compute for a CPU: tests hold both against each other, and both
against PyTorch. A function works on rows (`rows`); for each there is one that calls it with feature maps. (What the
compiler makes of them for a CPU took 2 to 4 times as long as the kernels: docs/log.md.)
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from preresnet.kernels import native

ROW = 256  # entries of a row, see `rows`
CHUNK = 32  # rows that one program sums; more chunks mean more parallel work
MIN_CHUNK = 16  # below, the partial sums of all chunks would weigh as much as the input

broken: set[str] = set()  # device types on which compiling has failed


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics and parameters beside feature maps of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `preresnet.kernels.passes.normalise`."""
    y, mean, inv_std, var, *_ = run(_normalise, x, rows(x), weight.detach(), bias.detach(), moments, eps, relu)
    return _as_map(y, x), mean, inv_std, var


def apply(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv_std: Tensor, relu: bool) -> Tensor:
    """As `preresnet.kernels.passes.apply`."""
    return _as_map(run(_apply, x, rows(x), weight.detach(), bias.detach(), mean, inv_std, relu)[0], x)


def differentiate(
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    other: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `preresnet.kernels.passes.differentiate`."""
    beside = None if other is None else rows(other)
    vectors = weight.detach(), bias.detach(), mean, inv_std
    d_x, d_weight, d_bias, *_ = run(_differentiate, x, rows(x), rows(grad), *vectors, beside, relu)
    return _as_map(d_x, x), d_weight, d_bias


def add(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """As `preresnet.kernels.passes.add`."""
    y, moments, *_ = run(_add, a, rows(a), rows(b), a.shape[1])
    return _as_map(y, a), moments


def gate(logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor, exclusive: bool) -> Tensor:
    """As `preresnet.kernels.passes.gate`."""
    maps = rows(logit), rows(shortcut), rows(residual)
    return _as_map(run(_gate, logit, *maps, bias.detach(), exclusive)[0], logit)


def differentiate_gate(
    logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor | None, grad: Tensor
) -> tuple[Tensor, ...]:
    """As `preresnet.kernels.passes.differentiate_gate`."""
    behind = None if residual is None else rows(residual)
    found = run(_differentiate_gate, logit, rows(logit), rows(shortcut), rows(grad), bias.detach(), behind)
    d_logit, d_bias, d_shortcut, _, *d_residual = found
    return _as_map(d_logit, logit), d_bias, *(_as_map(y, logit) for y in (d_shortcut, *d_residual))


def rows(x: Tensor) -> Tensor:
    """The view that the functions below work on: (n, c, h, w) channels_last -> (t, q, g * c).

    t chunks of q rows, each row g positions side by side: long rows however few the channels are.
    """
    n, c, h, w = x.shape
    positions = n * h * w
    group = 1
    while group * c < ROW and positions % (2 * group) == 0:
        group *= 2
    count = positions // group
    chunk = math.gcd(count, CHUNK)
    if chunk < MIN_CHUNK:
        chunk = count
    # Detached: of a view, the compiler would compare the sizes of its base as well, and compile anew where they differ.
    return x.permute(0, 2, 3, 1).reshape(count // chunk, chunk, group * c).detach()


def _as_map(y: Tensor, like: Tensor) -> Tensor:
    n, c, h, w = like.shape
    return y.view(n, h, w, c).permute(0, 3, 1, 2)


def _precise(x: Tensor) -> Tensor:
    """In the type in which sums are formed."""
    return x.to(sum_type(x.dtype))


def _affine(weight: Tensor, bias: Tensor, mean: Tensor, inv_std: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """BN as x * scale + shift, repeated along a row: 4 vectors of (c,) -> 2 of (g * c,)."""
    scale = weight * inv_std
    shift = bias - mean * scale
    group = row // len(weight)
    return scale.repeat(group), shift.repeat(group)


def _fold(sums: Tensor, channels: int) -> Tensor:
    """Column sums of all chunks to one sum a channel: (t, g * c) -> (c,)."""
    return sums.sum(0).view(-1, channels).sum(0)


def _moments(x: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel, (c,), and a vector as long as a row."""
    values = _precise(x)
    # Sums of x - x_0, for any one x_0 of the channel, do not cancel as those of x would where the mean is large.
    pivot = _precise(x[0, 0, :channels])
    pivots = pivot.repeat(x.shape[2] // channels)
    centred = values - pivots
    count = x.numel() // channels
    offset = _fold(centred.sum(1), channels) / count
    var = (_fold((centred * centred).sum(1), channels) / count - offset * offset).clamp_min(0)
    return pivot + offset, var, pivots


def _normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    moments: Tensor | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, ...]:
    """One pass for the statistics, one to normalise.

    Returns:
        y as x; mean, 1 / std and unbiased variance, (c,); and the vectors that are as long as a row. Those leave the
        function only to be in memory when they are used: computed there, they would cost an integer division for each
        element.
    """
    channels = len(weight)
    mean, var, pivots = _moments(x, channels) if moments is None else (moments[0], moments[1], moments)
    count = x.numel() // channels
    inv_std = torch.rsqrt(var + eps)
    scale, shift = _affine(weight, bias, mean, inv_std, x.shape[2])
    y = _precise(x) * scale + shift
    unbiased = var * (count / (count - 1))
    return (y.relu() if relu else y).to(x.dtype), mean, inv_std, unbiased, scale, shift, pivots


def _apply(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv_std: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The second pass alone, with statistics already known."""
    scale, shift = _affine(weight, bias, mean, inv_std, x.shape[2])
    y = _precise(x) * scale + shift
    return (y.relu() if relu else y).to(x.dtype), scale, shift


def _differentiate(
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    other: Tensor | None,
    relu: bool,
) -> tuple[Tensor, ...]:
    """One pass to reduce, one to apply; mask and normalised value are recomputed from x.

    With g the gradient behind the ReLU, N values a channel and x^ = (x - mean) / std::

        d bias = sum g,  d weight = sum g x^,  d x = scale (g - d bias / N - x^ d weight / N) + other

    which is ``g * scale + x * slope + level`` with two vectors.

    Args:
        other: a gradient that reaches x by another way, added in the same pass.

    Returns:
        d x as x; d weight and d bias, (c,); and the vectors that are as long as a row, for the reason above.
    """
    channels, row = len(weight), x.shape[2]
    scale, shift = _affine(weight, bias, mean, inv_std, row)
    values, behind = _precise(x), _precise(grad)
    if relu:
        behind = torch.where(values * scale + shift > 0, behind, 0.0)
    centre = mean.repeat(row // channels)
    d_bias = _fold(behind.sum(1), channels)
    d_weight = _fold((behind * (values - centre)).sum(1), channels) * inv_std
    factor = weight * inv_std / (x.numel() // channels)
    slope = -factor * inv_std * d_weight
    level = -factor * d_bias - slope * mean
    slope, level = slope.repeat(row // channels), level.repeat(row // channels)
    d_x = behind * scale + values * slope + level
    if other is not None:
        d_x = d_x + _precise(other)
    return d_x.to(x.dtype), d_weight, d_bias, scale, shift, centre, slope, level


def _add(a: Tensor, b: Tensor, channels: int) -> tuple[Tensor, ...]:
    """One pass for the sum and its statistics."""
    y = a + b
    mean, var, pivots = _moments(y, channels)
    return y, torch.stack([mean, var]), pivots


def _gate(logit: Tensor, shortcut: Tensor, residual: Tensor, bias: Tensor, exclusive: bool) -> tuple[Tensor, ...]:
    biases = bias.repeat(logit.shape[2] // len(bias))
    gate = torch.sigmoid(_precise(logit) + biases)
    behind = _precise(residual)
    y = (1 - gate) * _precise(shortcut) + (gate * behind if exclusive else behind)
    return y.to(logit.dtype), biases


def _differentiate_gate(
    logit: Tensor, shortcut: Tensor, grad: Tensor, bias: Tensor, residual: Tensor | None
) -> tuple[Tensor, ...]:
    """One pass; with g the gate, d logit = grad (residual - shortcut) g (1 - g)."""
    biases = bias.repeat(logit.shape[2] // len(bias))
    gate, behind = torch.sigmoid(_precise(logit) + biases), _precise(grad)
    kept = behind * (1 - gate)
    apart = -_precise(shortcut) if residual is None else _precise(residual) - _precise(shortcut)
    d_logit = kept * gate * apart
    d_residual = () if residual is None else ((behind * gate).to(grad.dtype),)
    d_bias = _fold(d_logit.sum(1), len(bias))
    return d_logit.to(logit.dtype), d_bias, kept.to(logit.dtype), biases, *d_residual


def run(function: Callable[..., tuple[Tensor, ...]], like: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """A function of rows, compiled for the type and the device of a feature map."""
    from torch._dynamo.exc import TorchDynamoException  # here, because importing the compiler takes seconds

    kind = like.device.type
    if kind in broken or (kind == "cpu" and not native.available()):  # which has been said, and has one cause
        return function(*args)
    constants = tuple(value for value in args if value is None or isinstance(value, bool | float))
    try:
        return _compiled(function, kind, like.dtype, constants)(*args)
    except TorchDynamoException as error:
        broken.add(kind)
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"the fused passes could not be compiled for {kind} ({reason}); PyTorch's own operations are "
            "used, which is slower. Triton is needed on a GPU",
            stacklevel=2,
        )
        return function(*args)


@cache
def _compiled(
    function: FunctionType, device_type: str, dtype: torch.dtype, constants: tuple[Any, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    # Sizes are symbols: one kernel serves all shapes. What is left to vary would still count against PyTorch's limit
    # on the versions of one code object, after which it stops compiling: each use has a code object of its own. (And
    # vectors come detached, since the sizes of a parameter are never symbols.)
    code: CodeType = function.__code__.replace(co_name=f"{function.__name__}_{device_type}_{dtype}_{constants}")
    own = FunctionType(code, function.__globals__)
    return torch.compile(own, dynamic=True, fullgraph=True)
