"""How do a batch norm, its ReLU and the convolution behind them become one operation that saves little?

The reference is PyTorch: ``relu(batch_norm(x))``. The fused operation computes the same from `passes`: it saves its
input and two vectors, and recomputes mask and normalised value from them. It may also include

- the convolution that follows, whose input is then recomputed in the backward pass instead of being saved;
- the shortcut that leaves x beside it (a fork): the two gradients of x are then added in the pass that makes one;
- the addition before it (`add`): the statistics are then formed in the pass that adds.

The reference is taken in evaluation mode, for memory layouts and devices without passes, and wherever a tracer or a
transform of PyTorch has to see plain operations (`torch.compile`, `torch.export`, `torch.func`, FX).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from preresnet.kernels import passes
from preresnet.kernels.passes import Statistics
from preresnet.spec import Dialect


class Norm(nn.BatchNorm2d):
    """BN(x), or ReLU(BN(x)) where the order puts a ReLU right behind.

    Paper: the pre-activation of Eq. 9 and Fig. 4(e); Fig. 4 for the other places.

    Args:
        width: channels.
        relu: whether the ReLU is included.
        dialect: epsilon and momentum of the norm.

    Attributes:
        fused: False to compute with PyTorch's own operations always.
    """

    def __init__(self, width: int, dialect: Dialect, *, relu: bool) -> None:
        super().__init__(width, eps=dialect.norm_eps, momentum=dialect.norm_momentum)
        self.relu = relu
        self.fused = True

    def extra_repr(self) -> str:
        """As PyTorch's, and whether a ReLU is included."""
        return f"{super().extra_repr()}, relu={self.relu}"

    def forward(self, input: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w), with the ReLU all entries at least 0."""
        if self.fuses(input):
            return _call(self, input, None, fork=False)[0]
        if self.training and (tape := _tape.get()) is not None and tape.replaying:
            y = reference(input, self.weight, self.bias, self.eps, relu=False)  # the statistics have moved already
        else:
            y = super().forward(input)
        # The norm's output is a fresh tensor that its own backward does not need: ReLU may overwrite it.
        return F.relu(y, inplace=True) if self.relu else y

    def fuses(self, x: Tensor) -> bool:
        """Whether the fused operation computes this call."""
        return (
            self.fused
            and self.training
            and self.track_running_stats
            and self.momentum is not None
            and self.affine
            and is_map(x)
            and x.numel() > x.shape[1]
            and self.weight.dtype == passes.sum_type(x.dtype)
            and passes.available(x)
            and _executes()
        )


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, relu: bool) -> Tensor:
    """What the fused operation computes, in PyTorch's own operations: (n, c, h, w) -> (n, c, h, w)."""
    y = F.batch_norm(x, None, None, weight, bias, True, eps=eps)
    return F.relu(y) if relu else y


def fork(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``norm(x)``, and x for whatever else uses it: their gradients are then added inside the norm's backward pass.

    The second result stands for x: the gradient with respect to it is only that of its own uses.

    Args:
        norm: what `activation` makes.
        x: (n, c, h, w).

    Returns:
        Two tensors of the shape of x.
    """
    if isinstance(norm, Norm) and not observed(norm) and norm.fuses(x):
        return _call(norm, x, None, fork=True)
    return norm(x), x


def convolve(norm: nn.Module, conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``conv(norm(x))`` without saving ``norm(x)``, and x as `fork` gives it.

    Args:
        norm: what `activation` makes.
        conv: the convolution that follows.
        x: (n, c, h, w).

    Returns:
        The result of the convolution, and a tensor of the shape of x.
    """
    if (
        isinstance(norm, Norm)
        and type(conv) is nn.Conv2d
        and isinstance(conv.padding, tuple)
        and conv.padding_mode == "zeros"
        and not observed(norm, conv)
        and norm.fuses(x)
    ):
        return _call(norm, x, conv, fork=True)
    y, x = fork(norm, x)
    return conv(y), x


def add(a: Tensor, b: Tensor) -> Tensor:
    """``a + b``, keeping the statistics of the sum for the norm that reads it next.

    Args:
        a: (n, c, h, w).
        b: as a.

    Returns:
        As a.
    """
    if not alike(a, b):
        return a + b
    y, moments = _Addition.apply(a, b)
    if not y.is_inference():
        y.__dict__["moments"] = moments, y._version
    return y


def _moments(x: Tensor) -> Tensor | None:
    """Mean and variance that `add` has formed, unless x was changed since."""
    moments, version = x.__dict__.get("moments", (None, None))
    return moments if moments is not None and version == x._version else None


def activation(pattern: str, width: int, dialect: Dialect) -> nn.Module:
    """The module of one field of an `Order`.

    Args:
        pattern: ``""``, ``"B"``, ``"R"`` or ``"BR"``.
        width: channels.
        dialect: epsilon and momentum of the norm.
    """
    if "B" not in pattern:
        return nn.ReLU() if pattern else nn.Identity()
    return Norm(width, dialect, relu="R" in pattern)


def observed(*modules: nn.Module) -> bool:
    """Whether someone has hooked one of these modules, so that it has to be called as a module."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def is_map(x: Tensor) -> bool:
    """Whether x is a feature map in the memory layout that the passes read (without memory, any layout will do)."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.ndim == 4
        and (x.is_contiguous(memory_format=torch.channels_last) or x.is_meta)
    )


def alike(*maps: Tensor) -> bool:
    """Whether feature maps of one shape and type can be read by one pass."""
    first = maps[0]
    return (
        all(is_map(x) and x.shape == first.shape and x.dtype == first.dtype for x in maps)
        and first.numel() > 0
        and passes.available(first)
        and _executes()
    )


def _executes() -> bool:
    """Whether operations run as they are called: no tracer, no transform and no forward-mode derivative."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _get_current_dispatch_mode() is not None
    )


# --- recomputed parts: statistics are those of the first time -----------------------------------------------------


@dataclass
class Tape:
    """The batch statistics of all fused norms of a part of the network, in the order of execution."""

    statistics: list[Statistics] = field(default_factory=list)
    replaying: bool = False
    position: int = 0


_tape: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def taped(tape: Tape, *, replaying: bool) -> Iterator[None]:
    """Record the statistics of a forward pass, or repeat the pass with them.

    A repetition gives the same values bit for bit, moves no running statistics, and saves the pass that forms them.
    """
    tape.replaying, tape.position = replaying, 0
    token = _tape.set(tape)
    try:
        yield
    finally:
        _tape.reset(token)


def recomputed(parts: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Modules one after the other, keeping x alone: their forward pass is repeated when the backward pass needs it.

    Source: Chen et al., 2016, "Training deep nets with sublinear memory cost".

    Args:
        parts: whose result is wanted; norms keep the statistics of the first time, dropout its masks.
        x: what enters the first of them.

    Returns:
        What leaves the last of them.
    """
    tape = Tape()

    def run(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)
        return x

    result = checkpoint(
        run,
        x,
        use_reentrant=False,
        context_fn=lambda: (taped(tape, replaying=False), taped(tape, replaying=True)),
        # Reading the generators' state costs time, on a GPU a synchronisation.
        preserve_rng_state=any(isinstance(module, nn.Dropout) for part in parts for module in part.modules()),
    )
    assert isinstance(result, Tensor)
    return result


# --- the operation ------------------------------------------------------------------------------------------------


@dataclass
class _Settings:
    """Everything about one call that is not a tensor to be differentiated."""

    norm: Norm
    conv: nn.Conv2d | None
    fork: bool
    moments: Tensor | None

    def convolution(self, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.conv is not None
        bias = None if bias is None else bias.to(y.dtype)
        return F.conv2d(
            y,
            weight.to(y.dtype),
            bias,
            self.conv.stride,
            self.conv.padding,
            self.conv.dilation,
            self.conv.groups,  # type: ignore[arg-type]
        )


def _call(norm: Norm, x: Tensor, conv: nn.Conv2d | None, *, fork: bool) -> tuple[Tensor, Tensor]:
    kernel, conv_bias = (None, None) if conv is None else (conv.weight, conv.bias)
    settings = _Settings(norm, conv, fork, _moments(x))
    return _Activation.apply(x, norm.weight, norm.bias, kernel, conv_bias, settings)


class _Activation(torch.autograd.Function):
    """ReLU(BN(x)), or conv(ReLU(BN(x))); the second result is x where it forks and None otherwise."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor | None,
        conv_bias: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor | None]:
        norm, tape = settings.norm, _tape.get()
        passing = kernel is not None  # the convolution reads y here, and nobody after it
        if tape is not None and tape.replaying:
            mean, inv_std = tape.statistics[tape.position]
            tape.position += 1
            y = passes.apply(x, weight, bias, (mean, inv_std), relu=norm.relu, passing=passing)
        else:
            running: Any = norm.running_mean, norm.running_var
            momentum: Any = norm.momentum
            y, mean, inv_std = passes.normalise(
                x,
                weight,
                bias,
                running,
                momentum=momentum,
                eps=norm.eps,
                relu=norm.relu,
                moments=settings.moments,
                passing=passing,
            )
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
            if tape is not None:
                tape.statistics.append((mean, inv_std))
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, mean, inv_std, kernel, conv_bias)
        if kernel is not None:
            y = settings.convolution(y, kernel, conv_bias)
        return y, x if settings.fork else None

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, grad_fork = grad_outputs
        x, weight, bias, mean, inv_std, kernel, conv_bias = ctx.saved_tensors
        settings: _Settings = ctx.settings
        if grad is None:
            return grad_fork, None, None, None, None, None
        if torch.is_grad_enabled():  # create_graph=True: this pass will itself be differentiated
            d_x, *others = _differentiable(settings, grad, x, weight, bias, kernel, conv_bias)
            assert d_x is not None
            return d_x if grad_fork is None else d_x + grad_fork, *others, None
        d_kernel, d_conv_bias = None, None
        if kernel is not None:
            grad, d_kernel, d_conv_bias = _differentiate_convolution(
                settings,
                grad,
                passes.apply(x, weight, bias, (mean, inv_std), relu=settings.norm.relu, passing=True),
                kernel,
                conv_bias,
            )
        d_x, d_weight, d_bias = passes.differentiate(
            x,
            grad,
            weight,
            bias,
            (mean, inv_std),
            grad_fork,
            relu=settings.norm.relu,
            overwrite=kernel is not None,  # the gradient was made here
        )
        return d_x, d_weight, d_bias, d_kernel, d_conv_bias, None


class _Addition(torch.autograd.Function):
    """a + b; the second result is mean and variance of the sum."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        y, moments = passes.add(a, b)
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        return y, moments

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return grad_outputs[0], grad_outputs[0]


def _differentiate_convolution(
    settings: _Settings, grad: Tensor, y: Tensor, kernel: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    conv = settings.conv
    assert conv is not None
    d_y, d_kernel, d_bias = torch.ops.aten.convolution_backward(
        grad,
        y,
        kernel.to(y.dtype),
        None if bias is None else [len(bias)],
        conv.stride,
        conv.padding,
        conv.dilation,
        False,
        [0, 0],
        conv.groups,
        [True, True, bias is not None],
    )
    return d_y, d_kernel.to(kernel.dtype), None if bias is None else d_bias.to(bias.dtype)


def _differentiable(
    settings: _Settings,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    kernel: Tensor | None,
    conv_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients through the reference, so that they can be differentiated again."""
    y = reference(x, weight, bias, settings.norm.eps, relu=settings.norm.relu)
    if kernel is not None:
        y = settings.convolution(y, kernel, conv_bias)
    inputs = [
        tensor if tensor is not None and tensor.requires_grad else None
        for tensor in (x, weight, bias, kernel, conv_bias)
    ]
    found = iter(torch.autograd.grad(y, [tensor for tensor in inputs if tensor is not None], grad, create_graph=True))
    return tuple(None if tensor is None else next(found) for tensor in inputs)
