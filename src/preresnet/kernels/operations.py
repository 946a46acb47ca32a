"""The operations that a network calls, each beside what it means in PyTorch's own operations.

| operation | means | made of |
|---|---|---|
| `norm` | ReLU(BN(x)), or a convolution of it; and x for other readers | `normalise` or `apply`; `differentiate` |
| `addition` | a + b, and mean and variance of the sum | `add`; its gradient is passed on |
| `gated` | (1 - g) shortcut + g residual, g = sigmoid(logit + bias) | `gate`; `differentiate_gate` |

They save their inputs and some vectors alone, and compute the rest again from them. Each is registered as a composite
operation: where gradients are recorded it is a node of autograd made of passes (`preresnet.kernels.passes`), which
tracers and compilers see. Where derivatives of another kind are taken (forward mode, a second derivative, any transform
of ``torch.func``) it is what it means: plain operations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from preresnet.kernels import passes

_ops: Any = torch.ops.preresnet


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor | None, Tensor | None],
    *,
    momentum: float,
    eps: float,
    relu: bool,
    moments: Tensor | None = None,
    known: passes.Statistics | None = None,
    conv: torch.nn.Conv2d | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ReLU(BN(x)) with the statistics of this batch, or conv(ReLU(BN(x))) without saving what the convolution reads.

    The second result stands for x: who else reads x reads that, and the gradients are then added in the pass that
    makes one of them.

    Args:
        x: (n, c, h, w).
        weight: (c,), the scale.
        bias: (c,), the shift.
        running: mean and variance that move towards the batch's, (c,); None for none.
        momentum: how far they move.
        eps: added to the variance.
        relu: whether the ReLU is included.
        moments: (2, c), statistics of x where `addition` has formed them.
        known: mean and 1 / std of x, where all is computed again; nothing moves then.
        conv: the convolution that follows, padded with zeros, computed in the type of x.

    Returns:
        The result; x; and mean and 1 / std of x, (c,).

    Raises:
        ValueError: one value a channel.
        RuntimeError: shapes, types or devices that do not fit together.
    """
    mean, inv_std = known or (None, None)
    if known is not None:
        running = None, None
    convolution: tuple[Any, ...] = None, None, (), (), (), 1
    if conv is not None:
        kernel_bias = None if conv.bias is None else conv.bias.to(x.dtype)
        convolution = conv.weight.to(x.dtype), kernel_bias, conv.stride, conv.padding, conv.dilation, conv.groups
    return _ops.norm.default(x, weight, bias, *running, moments, mean, inv_std, momentum, eps, relu, *convolution)


def addition(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of (n, c, h, w) and the same, and (2, c): its mean and variance, for the norm that reads it."""
    return _ops.addition.default(a, b)


def gated(logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor, *, exclusive: bool) -> Tensor:
    """(1 - g) shortcut + g residual, or + residual; g = sigmoid(logit + bias), (c,) beside maps (n, c, h, w)."""
    return _ops.gated.default(logit, bias, shortcut, residual, exclusive)


# --- what they mean -----------------------------------------------------------------------------------------------


def plain_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    moments: Tensor | None,
    mean: Tensor | None,
    inv_std: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
    kernel: Tensor | None,
    kernel_bias: Tensor | None,
    *convolution: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`norm` in PyTorch's own operations, which form the statistics anew."""
    weight, bias = weight.contiguous(), bias.contiguous()  # of expanded ones, PyTorch's backward pass reads beyond
    y, mean, inv_std = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
    y = F.relu(y) if relu else y
    return y if kernel is None else _convolve(y, kernel, kernel_bias, *convolution), x, mean.detach(), inv_std.detach()


def plain_addition(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`addition` in PyTorch's own operations."""
    y = a + b
    var, mean = torch.var_mean(y.detach().to(passes.sum_type(y.dtype)), (0, 2, 3), correction=0)
    return y, torch.stack([mean, var])


def plain_gated(logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor, exclusive: bool) -> Tensor:
    """`gated` in PyTorch's own operations, the gate in the type of its bias."""
    gate = torch.sigmoid(logit.to(bias.dtype) + bias.view(-1, 1, 1))
    return ((1 - gate) * shortcut + (gate * residual if exclusive else residual)).to(residual.dtype)


# --- how they are differentiated ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What of one `norm` is not a tensor."""

    eps: float
    relu: bool
    convolution: tuple[Any, ...]  # stride, padding, dilation, groups


class _Norm(torch.autograd.Function):
    """Results: y, x, mean, 1 / std and unbiased variance (0 where statistics were known)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor | None,
        kernel_bias: Tensor | None,
        moments: Tensor | None,
        known: passes.Statistics | None,
        settings: _Settings,
    ) -> tuple[Tensor, ...]:
        if known is None:
            y, mean, inv_std, var = _ops.normalise.default(x, weight, bias, moments, settings.eps, settings.relu)
        else:
            mean, inv_std = (vector.clone() for vector in known)
            y, var = _ops.apply.default(x, weight, bias, mean, inv_std, settings.relu), torch.zeros_like(mean)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, inv_std, var)
        ctx.save_for_backward(x, weight, bias, mean, inv_std, kernel, kernel_bias)
        if kernel is not None:
            y = _convolve(y, kernel, kernel_bias, *settings.convolution)
        return y, x, mean, inv_std, var

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, of_x = grad_outputs[:2]
        x, weight, bias, mean, inv_std, kernel, kernel_bias = ctx.saved_tensors
        settings: _Settings = ctx.settings
        if grad is None:
            return of_x, *[None] * 7
        if torch.is_grad_enabled():  # create_graph=True: this pass will itself be differentiated

            def plain(x: Tensor, weight: Tensor, bias: Tensor, *kernels: Tensor) -> Tensor:
                one = None, None, None, None, None, 0.0, settings.eps, settings.relu
                return plain_norm(x, weight, bias, *one, *kernels, *settings.convolution)[0]

            d_x, *others = _differentiable(plain, (x, weight, bias, kernel, kernel_bias), grad)
            return d_x if of_x is None or d_x is None else d_x + of_x, *others, None, None, None
        d_kernel, d_kernel_bias = None, None
        if kernel is not None:
            y = _ops.apply.default(x, weight, bias, mean, inv_std, settings.relu)
            sizes = None if kernel_bias is None else [len(kernel_bias)]
            stride, padding, dilation, groups = settings.convolution
            grad, d_kernel, d_kernel_bias = torch.ops.aten.convolution_backward(
                *(grad, y, kernel, sizes, stride, padding, dilation, False, [0, 0], groups),
                [True, ctx.needs_input_grad[3], ctx.needs_input_grad[4]],
            )
        found = _ops.differentiate.default(x, grad, weight, bias, mean, inv_std, of_x, settings.relu)
        return *found, d_kernel, d_kernel_bias, None, None, None


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    moments: Tensor | None,
    mean: Tensor | None,
    inv_std: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
    kernel: Tensor | None,
    kernel_bias: Tensor | None,
    *convolution: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    running = {"running_mean": running_mean, "running_var": running_var}
    passes.check_vectors(x, **{name: vector for name, vector in running.items() if vector is not None})
    if x.numel() <= x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    if _has_tangent(x, weight, bias, kernel, kernel_bias):
        more = moments, mean, inv_std, momentum, eps, relu, kernel, kernel_bias, *convolution
        return plain_norm(x, weight, bias, running_mean, running_var, *more)
    known = None if mean is None or inv_std is None else (mean, inv_std)
    of_norm = _Settings(eps, relu, convolution)
    result: Any = _Norm.apply(x, weight, bias, kernel, kernel_bias, moments, known, of_norm)
    y, x, of_batch, inv_std_of_batch, var = result
    for moved, found in ((running_mean, of_batch), (running_var, var)):
        if moved is not None:
            with torch.no_grad():
                moved.lerp_(found, momentum)
    return y, x, of_batch, inv_std_of_batch


class _Addition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        y, moments = _ops.add.default(a, b)
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        return y, moments

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return grad_outputs[0], grad_outputs[0]


def _addition(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return plain_addition(a, b) if _has_tangent(a, b) else _Addition.apply(a, b)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor, exclusive: bool) -> Tensor:
        ctx.save_for_backward(logit, bias, shortcut, residual if exclusive else None)
        ctx.set_materialize_grads(False)
        return _ops.gate.default(logit, bias, shortcut, residual, exclusive)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        logit, bias, shortcut, residual = ctx.saved_tensors
        if grad is None:
            return None, None, None, None, None
        if not torch.is_grad_enabled():
            *found, d_residual = _ops.differentiate_gate.default(logit, bias, shortcut, residual, grad)
            return *found, grad if residual is None else d_residual, None

        def plain(logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor | None) -> Tensor:
            behind = torch.zeros_like(logit) if residual is None else residual
            return plain_gated(logit, bias, shortcut, behind, residual is not None)

        *found, d_residual = _differentiable(plain, (logit, bias, shortcut, residual), grad)
        return *found, grad if residual is None else d_residual, None


def _gated(logit: Tensor, bias: Tensor, shortcut: Tensor, residual: Tensor, exclusive: bool) -> Tensor:
    if _has_tangent(logit, bias, shortcut, residual):
        return plain_gated(logit, bias, shortcut, residual, exclusive)
    return _Gated.apply(logit, bias, shortcut, residual, exclusive)


def _differentiable(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a function that can be differentiated again; None where an input needs none."""
    # Where one input was made of another, its gradient must not be counted again as the other's: views stand for them.
    given = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    wanted = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(plain(*given), wanted, grad, create_graph=True))
    return tuple(next(found) if tensor is not None and tensor.requires_grad else None for tensor in given)


def _has_tangent(*tensors: Tensor | None) -> bool:
    """Whether a derivative in forward mode is under way, which a node of autograd would drop."""
    return any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _convolve(
    y: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return F.conv2d(y, kernel, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]


def _register(schema: str, composite: Callable[..., Any], plain: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    passes.library.define(schema)
    passes.library.impl(name, composite, "CompositeImplicitAutograd")
    passes.library.impl(name, plain, "FuncTorchDynamicLayerFrontMode")  # where any transform of torch.func begins


_register(
    "norm(Tensor(a) x, Tensor weight, Tensor bias, Tensor(b!)? running_mean, Tensor(c!)? running_var, Tensor? moments,"
    " Tensor? mean, Tensor? inv_std, float momentum, float eps, bool relu, Tensor? kernel,"
    " Tensor? kernel_bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups)"
    " -> (Tensor, Tensor(a), Tensor, Tensor)",
    _norm,
    plain_norm,
)
_register("addition(Tensor a, Tensor b) -> (Tensor, Tensor)", _addition, plain_addition)
_register(
    "gated(Tensor logit, Tensor bias, Tensor shortcut, Tensor residual, bool exclusive) -> Tensor", _gated, plain_gated
)
