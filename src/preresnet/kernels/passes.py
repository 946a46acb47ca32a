"""The passes over memory that make up a batch norm, its ReLU, a residual addition and a gate, forward and backward.

| operation | passes |
|---|---|
| `normalise` | one for the statistics, one to normalise |
| `apply` | the second of these, with statistics already known |
| `differentiate` | one to reduce, one to apply; mask and normalised value are recomputed from the input |
| `add` | one, for the sum and for its statistics, which the `normalise` that follows then need not form |
| `gate` | one, for the gate and what it opens and closes |
| `differentiate_gate` | one, which computes the gate again |

Each is an operation of PyTorch (``torch.ops.preresnet``) that changes none of its arguments, so that `torch.compile`
and tensors without memory can handle it; none is differentiated as it stands (`preresnet.kernels.operations`). Here
arguments are checked, once: shapes, types and devices that do not fit together raise RuntimeError as PyTorch's own
operations do, and any layout of memory is brought to channels_last. On a CPU they are ``norm.cpp`` and ``gate.cpp``,
compiled at first use; on a GPU, and where there is no compiler, the functions of `preresnet.kernels.compiled`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from preresnet.kernels import compiled, native
from preresnet.kernels.compiled import sum_type

Statistics = tuple[Tensor, Tensor]
"""Mean and 1 / std of a batch, (c,) each."""

library = torch.library.Library("preresnet", "DEF")  # its operations live as long as it does


def available(x: Tensor) -> bool:
    """Whether a feature map's type and device have passes that are proven: a CPU's, where they could be compiled."""
    return x.device.type == "cpu" and x.dtype in native.TYPES and native.available()


def used(fused: bool | None, *maps: Tensor) -> bool:
    """Whether an operation on feature maps is to be computed by passes.

    Args:
        fused: None: where they are proven; True: also on a GPU; False: never.
        maps: what it reads, (n, c, h, w) each.
    """
    first = maps[0]
    return (
        fused is not False
        and all(
            x.ndim == 4
            and x.shape == first.shape
            and x.dtype == first.dtype
            and x.is_contiguous(memory_format=torch.channels_last)
            for x in maps
        )
        and first.numel() > 0
        and not torch.compiler.is_exporting()  # what leaves for a file needs nothing of ours to run
        and _usable(first, asked=fused is True)
    )


def _usable(x: Tensor, *, asked: bool) -> bool:
    if x.device.type == "cpu" and torch.compiler.is_compiling():  # the operation itself looks for kernels when it runs
        return x.dtype in native.TYPES
    on_gpu = x.device.type == "cuda" and x.device.type not in compiled.broken
    return available(x) or (asked and (on_gpu or x.device.type == "meta") and x.dtype in native.TYPES)


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor | None, eps: float, relu: bool, *, dry: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """BN with the statistics of this batch, then ReLU where asked for.

    Args:
        x: (n, c, h, w), more than one value a channel.
        weight: (c,), the scale.
        bias: (c,), the shift.
        moments: (2, c), mean and variance of x where `add` has formed them.
        eps: added to the variance.
        relu: whether negative results become 0.
        dry: shapes and types alone, as for all of these operations: nothing is computed.

    Returns:
        y as x; and the batch's mean, 1 / std and unbiased variance, (c,).
    """
    (x,), (weight, bias) = _maps(x=x), _vectors(x, weight=weight, bias=bias)
    moments = _moments(x, moments)
    if not (dry or _has_kernels(x)):
        return compiled.normalise(x, weight, bias, moments, eps, relu)
    y, mean, inv_std = _like(x), _like(weight), _like(weight)
    # The kernel moves running statistics by a share of the way; all the way, they are those of the batch.
    share, running = 1.0, weight.new_zeros(2, len(weight))
    pointers = weight, bias, moments, mean, inv_std, *running
    if not dry:
        native.call("normalise", x.dtype, x, y, _positions(x), x.shape[1], *pointers, share, eps, relu)
    return y, mean, inv_std, running[1]


def apply(x: Tensor, weight: Tensor, bias: Tensor, statistics: Statistics, *, relu: bool) -> Tensor:
    """As `normalise`, with its mean and 1 / std given: the same y, bit for bit."""
    return torch.ops.preresnet.apply(x, weight, bias, *statistics, relu)


def _apply(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv_std: Tensor, relu: bool, *, dry: bool = False
) -> Tensor:
    (x,) = _maps(x=x)
    weight, bias, mean, inv_std = vectors = _vectors(x, weight=weight, bias=bias, mean=mean, inv_std=inv_std)
    if not (dry or _has_kernels(x)):
        return compiled.apply(x, weight, bias, mean, inv_std, relu)
    y = _like(x)
    if not dry:
        native.call("apply", x.dtype, x, y, _positions(x), x.shape[1], *vectors, relu)
    return y


def differentiate(
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    other: Tensor | None,
    relu: bool,
    *,
    dry: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `normalise`.

    Args:
        x: its input.
        grad: (n, c, h, w), the gradient of its result.
        weight: its scale.
        bias: its shift.
        mean: as it returned.
        inv_std: as it returned.
        other: None, or a gradient (n, c, h, w) to be added to that of x.
        relu: as there.

    Returns:
        The gradients of x, weight and bias.
    """
    x, grad, *others = _maps(x=x, grad=grad, other=other)
    weight, bias, mean, inv_std = vectors = _vectors(x, weight=weight, bias=bias, mean=mean, inv_std=inv_std)
    beside = others[0] if others else None
    if not (dry or _has_kernels(x)):
        return compiled.differentiate(x, grad, weight, bias, mean, inv_std, beside, relu)
    d_x, d_weight, d_bias = _like(x), _like(weight), _like(bias)
    pointers = *vectors, d_weight, d_bias
    if not dry:
        native.call("differentiate", x.dtype, x, grad, beside, d_x, _positions(x), x.shape[1], *pointers, relu)
    return d_x, d_weight, d_bias


def add(a: Tensor, b: Tensor, *, dry: bool = False) -> tuple[Tensor, Tensor]:
    """The sum of two feature maps, and its statistics.

    Args:
        a: (n, c, h, w).
        b: as a.

    Returns:
        a + b, and (2, c): mean and variance (not the unbiased one) of each channel of it.
    """
    a, b = _maps(a=a, b=b)
    if not (dry or _has_kernels(a)):
        return compiled.add(a, b)
    y, moments = _like(a), a.new_empty(2, a.shape[1], dtype=sum_type(a.dtype))
    if not dry:
        native.call("add", a.dtype, a, b, y, _positions(a), a.shape[1], moments)
    return y, moments


def gate(
    logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor, exclusive: bool, *, dry: bool = False
) -> Tensor:
    """(1 - g) shortcut + g residual with g = sigmoid(logit + bias), rounded once.

    Args:
        logit: (n, c, h, w).
        bias: (c,), in the type of sums.
        shortcut: as logit.
        residual: as logit.
        exclusive: False: the residual has no gate.

    Returns:
        As logit.
    """
    logit, shortcut, residual = _maps(logit=logit, shortcut=shortcut, residual=residual)
    (bias,) = _vectors(logit, bias=bias)
    if not (dry or _has_kernels(logit)):
        return compiled.gate(logit, bias, shortcut, residual, exclusive)
    y = _like(logit)
    if not dry:
        maps, sizes = (shortcut, residual, y), (_positions(logit), logit.shape[1])
        native.call("gate", logit.dtype, logit, *maps, *sizes, bias, exclusive)
    return y


def differentiate_gate(
    logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor | None, grad: Tensor, *, dry: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `gate` with respect to logit, bias, shortcut and residual.

    Args:
        logit: what `gate` read.
        bias: the same.
        shortcut: the same.
        residual: the same; None where it has no gate. Its gradient is then ``grad``, and what stands for it is empty.
        grad: of the result.
    """
    logit, shortcut, grad, *others = _maps(logit=logit, shortcut=shortcut, grad=grad, residual=residual)
    (bias,), behind = _vectors(logit, bias=bias), others[0] if others else None
    if not (dry or _has_kernels(logit)):
        found = compiled.differentiate_gate(logit, bias, shortcut, behind, grad)
        return *found[:3], found[3] if others else logit.new_empty(0)  # type: ignore[return-value]
    d_logit, d_bias, d_shortcut = _like(logit), _like(bias), _like(logit)
    d_residual = logit.new_empty(0) if behind is None else _like(logit)
    maps, sizes = (shortcut, behind, grad, d_logit, d_shortcut), (_positions(logit), logit.shape[1])
    if not dry:
        of_residual = None if behind is None else d_residual
        native.call("differentiate_gate", logit.dtype, logit, *maps, of_residual, *sizes, bias, d_bias, bool(others))
    return d_logit, d_bias, d_shortcut, d_residual


# --- arguments ----------------------------------------------------------------------------------------------------


def _maps(**maps: Tensor | None) -> list[Tensor]:
    """Those of the feature maps that are given, in channels_last memory; they have to fit the first of them."""
    (name, first), *others = [(name, x) for name, x in maps.items() if x is not None]
    if first.ndim != 4:
        raise RuntimeError(f"expected 4D {name} (got {first.ndim}D {name})")
    if first.dtype not in native.TYPES:
        # in PyTorch's words for a type that an operation does not take
        raise RuntimeError(f"not implemented for feature maps of {first.dtype}")
    if first.numel() == 0:
        raise RuntimeError(f"{name} of shape {tuple(first.shape)} has no values")
    for other, x in others:
        if x.shape != first.shape:
            raise RuntimeError(f"expected {other} of shape {tuple(first.shape)} as {name}, got {tuple(x.shape)}")
        if x.dtype != first.dtype:
            raise RuntimeError(f"expected {other} of scalar type {first.dtype} as {name}, found {x.dtype}")
        _check_device(first, x)
    return [x.contiguous(memory_format=torch.channels_last) for x in (first, *(x for _, x in others))]


def _vectors(like: Tensor, **vectors: Tensor) -> list[Tensor]:
    """Vectors without gaps in memory, one value for each channel of a feature map, in the type of its sums."""
    check_vectors(like, **vectors)
    return [vector.contiguous() for vector in vectors.values()]


def check_vectors(like: Tensor, **vectors: Tensor) -> None:
    """Raise RuntimeError unless each holds one value for each channel of a feature map, in the type of its sums."""
    channels, dtype = like.shape[1], sum_type(like.dtype)
    for name, vector in vectors.items():
        if vector.shape != (channels,):
            raise RuntimeError(f"{name} should contain {channels} elements not {vector.numel()}")
        if vector.dtype != dtype:
            raise RuntimeError(f"expected {name} of scalar type {dtype} beside {like.dtype}, found {vector.dtype}")
        _check_device(like, vector)


def _moments(like: Tensor, moments: Tensor | None) -> Tensor | None:
    if moments is None:
        return None
    if moments.shape != (2, like.shape[1]):
        raise RuntimeError(f"moments should have shape (2, {like.shape[1]}), not {tuple(moments.shape)}")
    check_vectors(like, mean=moments[0], variance=moments[1])
    return moments.contiguous()


def _check_device(first: Tensor, other: Tensor) -> None:
    if other.device != first.device:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{first.device} and {other.device}!"
        )


def _like(x: Tensor) -> Tensor:
    """A new tensor as one of `_maps` or `_vectors`; with its layout said, a tensor without memory needs no sympy."""
    return torch.empty_like(x, memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu" and native.available()


def _positions(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _register(schema: str, run: Callable[..., Any]) -> None:
    library.define(schema)
    name = schema.partition("(")[0]
    for key in ("CPU", "CUDA"):
        library.impl(name, run, key)
    torch.library.register_fake(f"preresnet::{name}", partial(run, dry=True), lib=library)


_register(
    "normalise(Tensor x, Tensor weight, Tensor bias, Tensor? moments, float eps, bool relu)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    normalise,
)
_register(
    "apply(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor inv_std, bool relu) -> Tensor",
    _apply,
)
_register(
    "differentiate(Tensor x, Tensor grad, Tensor weight, Tensor bias, Tensor mean, Tensor inv_std, Tensor? other,"
    " bool relu) -> (Tensor, Tensor, Tensor)",
    differentiate,
)
_register("add(Tensor a, Tensor b) -> (Tensor, Tensor)", add)
_register("gate(Tensor logit, Tensor bias, Tensor shortcut, Tensor residual, bool exclusive) -> Tensor", gate)
_register(
    "differentiate_gate(Tensor logit, Tensor bias, Tensor shortcut, Tensor? residual, Tensor grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    differentiate_gate,
)
