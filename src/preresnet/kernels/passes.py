"""Which passes over memory make up a batch norm, its ReLU, a residual addition and a gate, forward and backward?

| function | passes |
|---|---|
| `normalise` | one for the statistics, one to normalise |
| `apply` | the second of these, with statistics already known |
| `differentiate` | one to reduce, one to apply; mask and normalised value are recomputed from the input |
| `add` | one, for the sum and for its statistics, which the `normalise` that follows then need not form |
| `gate` | one, for the gate and what it opens and closes |
| `differentiate_gate` | one, which computes the gate again |

On a CPU they are ``kernels.cpp``, compiled at first use; on a GPU the functions of this file, which `torch.compile`
turns into Triton. (What it makes of them for a CPU took 2 to 4 times as long as the kernels: docs/log.md.)
"""

import math
import threading
import warnings
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from preresnet.kernels import native

Statistics = tuple[Tensor, Tensor]
"""Mean and 1 / std of a batch, (c,) each."""

ROW = 256  # entries of a row on a GPU, see `rows`
CHUNK = 32  # rows that one program sums; more chunks mean more parallel work
MIN_CHUNK = 16  # below, the partial sums of all chunks would weigh as much as the input

_broken: set[str] = set()  # device types on which compiling has failed


def available(x: Tensor) -> bool:
    """Whether there are passes for a feature map's type and device."""
    kind = x.device.type
    return x.dtype in native.TYPES and (
        (kind == "cpu" and native.available()) or (kind == "cuda" and kind not in _broken) or kind == "meta"
    )


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics and parameters beside feature maps of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    *,
    momentum: float,
    eps: float,
    relu: bool,
    moments: Tensor | None = None,
    passing: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """BN with the statistics of this batch, then ReLU where asked for.

    Args:
        x: (n, c, h, w), channels_last, more than one value a channel.
        weight: (c,), the scale.
        bias: (c,), the shift.
        running: mean and variance, (c,), updated in place.
        momentum: the share of the new statistics.
        eps: added to the variance.
        relu: whether negative results become 0.
        moments: (2, c), mean and variance of x where `add` has formed them.
        passing: whether y may be overwritten by the next call that says so.

    Returns:
        y as x, and the batch's mean and 1 / std, (c,).
    """
    if not x.is_cuda:
        y, (mean, inv_std) = _room(x) if passing else torch.empty_like(x), weight.new_empty(2, x.shape[1])
        pointers = weight, bias, moments, mean, inv_std, *running
        native.call("normalise", x.dtype, x, y, _positions(x), x.shape[1], *pointers, momentum, eps, relu)
        return y, mean, inv_std
    affine = weight.detach(), bias.detach()
    y, mean, inv_std, *_ = _run(_normalise, x.device, rows(x), *affine, *running, moments, momentum, eps, relu)
    return _as_map(y, x), mean, inv_std


def apply(
    x: Tensor, weight: Tensor, bias: Tensor, statistics: Statistics, *, relu: bool, passing: bool = False
) -> Tensor:
    """As `normalise`, with its mean and 1 / std given: the same y, bit for bit."""
    if not x.is_cuda:
        y = _room(x) if passing else torch.empty_like(x)
        native.call("apply", x.dtype, x, y, _positions(x), x.shape[1], weight, bias, *statistics, relu)
        return y
    y, *_ = _run(_apply, x.device, rows(x), weight.detach(), bias.detach(), *statistics, relu)
    return _as_map(y, x)


def differentiate(
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Statistics,
    other: Tensor | None,
    *,
    relu: bool,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `normalise`.

    Args:
        x: its input.
        grad: (n, c, h, w), the gradient of its result.
        weight: its scale.
        bias: its shift.
        statistics: its mean and 1 / std.
        other: None, or a gradient (n, c, h, w) to be added to that of x.
        relu: as there.
        overwrite: whether nobody else needs ``grad``, so that its memory may hold the result.

    Returns:
        The gradients of x, weight and bias.
    """
    grad, other = _channels_last(grad, x), None if other is None else _channels_last(other, x)
    if not x.is_cuda:
        d_x, (d_weight, d_bias) = grad if overwrite else torch.empty_like(x), weight.new_empty(2, x.shape[1])
        pointers = weight, bias, *statistics, d_weight, d_bias
        native.call("differentiate", x.dtype, x, grad, other, d_x, _positions(x), x.shape[1], *pointers, relu)
        return d_x, d_weight, d_bias
    grads = rows(grad), None if other is None else rows(other)
    d_x, d_weight, d_bias, *_ = _run(
        _differentiate, x.device, rows(x), grads[0], weight.detach(), bias.detach(), *statistics, grads[1], relu
    )
    return _as_map(d_x, x), d_weight, d_bias


def add(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two feature maps, and its statistics.

    Args:
        a: (n, c, h, w), channels_last.
        b: as a.

    Returns:
        a + b, and (2, c): mean and variance (not the unbiased one) of each channel of it.
    """
    if not a.is_cuda:
        y = torch.empty_like(a)
        moments = a.new_empty(2, a.shape[1], dtype=sum_type(a.dtype))
        native.call("add", a.dtype, a, b, y, _positions(a), a.shape[1], moments)
        return y, moments
    y, moments, *_ = _run(_add, a.device, rows(a), rows(b), a.shape[1])
    return _as_map(y, a), moments


def gate(logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor, *, both: bool) -> Tensor:
    """(1 - g) shortcut + g residual with g = sigmoid(logit + bias), rounded once.

    Args:
        logit: (n, c, h, w), channels_last.
        bias: (c,), in the type of sums.
        shortcut: as logit.
        residual: as logit.
        both: False: the residual has no gate.

    Returns:
        As logit.
    """
    if not logit.is_cuda:
        y = torch.empty_like(logit)
        maps = shortcut, residual, y
        native.call("gate", logit.dtype, logit, *maps, _positions(logit), logit.shape[1], bias, both)
        return y
    maps = rows(logit), rows(shortcut), rows(residual)
    return _as_map(_run(_gate, logit.device, *maps, bias.detach(), both)[0], logit)


def differentiate_gate(
    logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `gate` with respect to logit, bias, shortcut and residual.

    Args:
        logit: what `gate` read.
        bias: the same.
        shortcut: the same.
        residual: the same; None where it has no gate.
        grad: of the result.
    """
    grad = _channels_last(grad, logit)
    if not logit.is_cuda:
        d_logit, d_shortcut, d_bias = torch.empty_like(logit), torch.empty_like(logit), torch.empty_like(bias)
        d_residual = None if residual is None else torch.empty_like(logit)
        maps = shortcut, residual, grad, d_logit, d_shortcut, d_residual
        sizes = _positions(logit), logit.shape[1]
        native.call("differentiate_gate", logit.dtype, logit, *maps, *sizes, bias, d_bias, residual is not None)
        return d_logit, d_bias, d_shortcut, grad if d_residual is None else d_residual
    maps = rows(logit), rows(shortcut), rows(grad), bias.detach(), None if residual is None else rows(residual)
    d_logit, d_bias, d_shortcut, _, *others = _run(_differentiate_gate, logit.device, *maps)
    d_residual = _as_map(others[0], logit) if others else grad
    return _as_map(d_logit, logit), d_bias, _as_map(d_shortcut, logit), d_residual


_shared = threading.local()


def _room(like: Tensor) -> Tensor:
    """Memory of a thread for one feature map at a time.

    It stays in the cache, and no large temporary tensor leaves a hole in the heap that small lasting ones then fill.
    (On a GPU, PyTorch's allocator keeps sizes apart.)
    """
    if like.is_meta:
        return torch.empty_like(like)
    room: Tensor | None = getattr(_shared, "room", None)
    if room is None or room.numel() < like.nbytes:
        room = _shared.room = torch.empty(like.nbytes, dtype=torch.uint8)
    return room[: like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())


def _positions(x: Tensor) -> int:
    return x.numel() // x.shape[1]


def _channels_last(grad: Tensor, like: Tensor) -> Tensor:
    return grad.to(like.dtype).contiguous(memory_format=torch.channels_last)


# --- on a GPU: plain PyTorch on rows, compiled --------------------------------------------------------------------


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
    running_mean: Tensor,
    running_var: Tensor,
    moments: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, ...]:
    """One pass for the statistics, one to normalise; the running statistics move once.

    Returns:
        y as x; mean and 1 / std, (c,); and the vectors that are as long as a row. Those leave the function only to be
        in memory when they are used: computed there, they would cost an integer division for each element.
    """
    channels = len(weight)
    mean, var, pivots = _moments(x, channels) if moments is None else (moments[0], moments[1], moments)
    count = x.numel() // channels
    inv_std = torch.rsqrt(var + eps)
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    scale, shift = _affine(weight, bias, mean, inv_std, x.shape[2])
    y = _precise(x) * scale + shift
    return (y.relu() if relu else y).to(x.dtype), mean, inv_std, scale, shift, pivots


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


def _gate(logit: Tensor, shortcut: Tensor, residual: Tensor, bias: Tensor, both: bool) -> tuple[Tensor, ...]:
    biases = bias.repeat(logit.shape[2] // len(bias))
    gate = torch.sigmoid(_precise(logit) + biases)
    behind = _precise(residual)
    y = (1 - gate) * _precise(shortcut) + (gate * behind if both else behind)
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


def _run(function: Callable[..., tuple[Tensor, ...]], device: torch.device, *args: Any) -> tuple[Tensor, ...]:
    from torch._dynamo.exc import TorchDynamoException  # here, because importing the compiler takes seconds

    if device.type in _broken:
        return function(*args)
    constants = tuple(value for value in args if value is None or isinstance(value, bool | float))
    try:
        return _compiled(function, device.type, args[0].dtype, constants)(*args)
    except TorchDynamoException as error:
        _broken.add(device.type)
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"the fused passes could not be compiled for {device.type} ({reason}); PyTorch's own operations are "
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
