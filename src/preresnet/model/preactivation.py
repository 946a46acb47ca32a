"""Batch norm and ReLU as one module, and how it joins what stands before and behind it.

In training a `Norm` is one operation (`preresnet.kernels.operations`) that saves its input and some vectors. It may
take in

- the convolution that follows, whose input is then recomputed in the backward pass instead of being saved;
- the gradient of whoever else reads its input: two gradients are then added in the pass that makes one;
- the statistics of its input, where the addition before it has formed them.

Statistics are handed from function to function, never kept beside a tensor; and only from a module to the next where
nobody can have changed the tensor between them (`is_hooked`).
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from preresnet import distributed
from preresnet.kernels import operations, passes
from preresnet.model.recomputation import current_tape
from preresnet.spec import Dialect


class Norm(nn.Module):
    """BN(x), or ReLU(BN(x)) where the order puts a ReLU right behind.

    It has the tensors of ``nn.BatchNorm2d`` under the same names, but is none: what replaces or folds a BatchNorm2d
    would lose the ReLU. PyTorch's converters leave it as it is, or refuse it.

    Paper: the pre-activation of Eq. 9 and Fig. 4(e); Fig. 4 for the other places.

    Args:
        width: channels.
        relu: whether the ReLU is included.
        dialect: epsilon and momentum of the norm.

    Attributes:
        fused: whether training computes with passes of our own: None where they are proven, True also on a GPU, False
            never.
        epsilon: added to the variance.
        momentum: weight of the new batch in the running statistics; None for the mean over all batches.
    """

    _version = 2  # as a BatchNorm2d that has `num_batches_tracked`
    weight: Tensor
    bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, width: int, dialect: Dialect, *, relu: bool) -> None:
        super().__init__()
        self.width, self.relu = width, relu
        self.epsilon, self.momentum = dialect.norm_eps, dialect.norm_momentum
        self.fused: bool | None = None
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @property
    def eps(self) -> float:
        """The name under which PyTorch's functions look for `epsilon` when they fold a norm into a convolution.

        Raises:
            TypeError: the norm ends in a ReLU, which they would drop.
        """
        if self.relu:
            raise TypeError(
                "this norm ends in a ReLU, which folding it as a BatchNorm2d would drop; use "
                "preresnet.model.folding.folded for the whole network, or `epsilon` for the number"
            )
        return self.epsilon

    def __dir__(self) -> list[str]:
        """Without `eps`: `torch.jit.trace` asks a module for everything that is named here."""
        return [name for name in super().__dir__() if name != "eps"]

    def extra_repr(self) -> str:
        """Channels, settings, and whether a ReLU is included."""
        return f"{self.width}, epsilon={self.epsilon}, momentum={self.momentum}, relu={self.relu}"

    def forward(self, input: Tensor, moments: Tensor | None = None) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w), with the ReLU all entries at least 0.

        Args:
            input: the feature map.
            moments: (2, c), its mean and variance where an addition has formed them.
        """
        if self.fuses(input):
            return self.by_passes(input, moments)[0]
        if input.ndim != 4:
            raise ValueError(f"expected 4D input (got {input.ndim}D input)")
        if self.training and distributed.norms_are_shared():
            return self._over_processes(input)
        tape = current_tape() if self.training else None
        mean, var = self.running_mean, self.running_var
        batch = self.training or mean is None
        if tape is not None and tape.replaying and mean is not None and var is not None:
            mean, var, momentum = mean.clone(), var.clone(), 0.0  # they have moved already, but are saved again
        else:
            momentum = self._moving() if self.training and mean is not None else 0.0
        y = F.batch_norm(input, mean, var, self.weight, self.bias, batch, momentum, self.epsilon)
        # The norm's output is a fresh tensor that its own backward does not need: ReLU may overwrite it.
        return F.relu(y, inplace=True) if self.relu else y

    def fuses(self, x: Tensor) -> bool:
        """Whether passes of our own compute this call."""
        return self.training and not distributed.norms_are_shared() and self._has_passes(x)

    def _has_passes(self, x: Tensor) -> bool:
        return passes.used(self.fused, x) and x.numel() > x.shape[1] and self.weight.dtype == passes.sum_type(x.dtype)

    def by_passes(self, x: Tensor, moments: Tensor | None, conv: nn.Conv2d | None = None) -> tuple[Tensor, Tensor]:
        """The result of the passes, or a convolution of it; and what stands for x (`with_shortcut`)."""
        tape = current_tape()
        known = tape.next() if tape is not None and tape.replaying else None
        y, x, *statistics = operations.norm(
            x,
            self.weight,
            self.bias,
            (self.running_mean, self.running_var),
            momentum=0.0 if known else self._moving(),
            eps=self.epsilon,
            relu=self.relu,
            moments=moments,
            known=known,
            conv=conv,
        )
        if tape is not None and known is None:
            tape.statistics.append((statistics[0], statistics[1]))
        return y, x

    def _over_processes(self, x: Tensor) -> Tensor:
        """With the statistics of the images of several processes."""
        given = x, self.weight, self.bias, self.epsilon, self.relu, self._has_passes(x)
        y, mean, var = _SharedNorm.apply(*given)  # type: ignore[misc]
        tape = current_tape()
        if self.running_mean is not None and self.running_var is not None and not (tape and tape.replaying):
            momentum = self._moving()
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), momentum)
        return y

    def _moving(self) -> float:
        """How far running statistics move towards those of this batch, which is counted."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1 / float(self.num_batches_tracked)
        return self.momentum or 0.0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any) -> None:
        """As a BatchNorm2d: files that do not count batches are read, and the count stays."""
        metadata: dict[str, Any] = named["local_metadata"] if "local_metadata" in named else others[0]
        key, count = prefix + "num_batches_tracked", self.num_batches_tracked
        if count is not None and (metadata.get("version") or 0) < 2 and key not in state_dict:
            state_dict[key] = torch.zeros_like(count, device="cpu") if count.device.type == "meta" else count
        super()._load_from_state_dict(state_dict, prefix, *others, **named)


class _SharedNorm(torch.autograd.Function):
    """A norm, with its ReLU, whose statistics and their gradients are sums over several processes.

    With g the gradient behind the ReLU, N the values of a channel in all of them and x^ = (x - mean) / std,
    d x = weight / std (g - sum g / N - x^ sum g x^ / N); the sums are those of all processes. Gradients of weight and
    bias are this process's part.

    Passes of our own know sums of this process alone: what they give is that of a process alone, and the difference of
    the sums is added, which is linear in x.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, relu: bool, fused: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.relu, ctx.fused, here = relu, fused, x.numel() // x.shape[1]
        if fused:
            _, mean, _, var = passes.normalise(x, weight, bias, None, epsilon, relu=False)
            mean, var, ctx.count = distributed.moments(mean, var * ((here - 1) / here), here)
            inv_std = torch.rsqrt(var + epsilon)
            y = passes.apply(x, weight, bias, (mean, inv_std), relu=relu)
            ctx.save_for_backward(x, weight, bias, mean, inv_std)
            unbiased = var * (ctx.count / max(1, ctx.count - 1))
            ctx.mark_non_differentiable(mean, unbiased)
            return y, mean, unbiased
        values = x.to(passes.sum_type(x.dtype))
        var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        mean, var, count = distributed.moments(mean, var, here)
        inv_std = torch.rsqrt(var + epsilon)
        y = torch.addcmul(_wide(bias - mean * inv_std * weight), values, _wide(inv_std * weight))
        ctx.save_for_backward(x, weight, bias, mean, inv_std)
        ctx.count = count
        unbiased = var * (count / max(1, count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return (y.relu_() if relu else y).to(x.dtype), mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, mean, inv_std = ctx.saved_tensors
        if ctx.fused:
            here = x.numel() // x.shape[1]
            d_x, d_weight, d_bias = passes.differentiate(x, grad, weight, bias, mean, inv_std, None, ctx.relu)
            mine = torch.stack([d_bias, d_weight])
            apart = (mine / here - distributed.norm_sum(mine.clone()) / ctx.count) * (weight * inv_std)
            d_x += passes.apply(x, apart[1], apart[0], (mean, inv_std), relu=False)
            return d_x, d_weight, d_bias, None, None, None
        normal = (x.to(mean.dtype) - _wide(mean)) * _wide(inv_std)
        behind = grad.to(mean.dtype)
        if ctx.relu:
            behind = behind * (normal * _wide(weight) + _wide(bias) > 0)
        mine = torch.stack([behind.sum((0, 2, 3)), (behind * normal).sum((0, 2, 3))])
        of_all = distributed.norm_sum(mine.clone()) / ctx.count
        d_x = (behind - _wide(of_all[0]) - normal * _wide(of_all[1])) * _wide(weight * inv_std)
        return d_x.to(x.dtype), mine[1], mine[0], None, None, None


def _wide(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)


def with_shortcut(norm: nn.Module, x: Tensor, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``norm(x)``, and x for whatever else uses it: their gradients are then added inside the norm's backward pass.

    The second result stands for x: the gradient with respect to it is only that of its own uses.

    Args:
        norm: what `activation` makes.
        x: (n, c, h, w).
        moments: (2, c), mean and variance of x where an addition has formed them.

    Returns:
        Two tensors of the shape of x.
    """
    if _is_free(norm) and norm.fuses(x):
        return norm.by_passes(x, moments)
    return norm(x), x


def apply(norm: nn.Module, x: Tensor, moments: Tensor | None) -> Tensor:
    """``norm(x)``, with the statistics of x where they are known and nobody has hooked the norm."""
    return norm(x, moments) if _is_free(norm) else norm(x)


def convolve(norm: nn.Module, conv: nn.Module, x: Tensor, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``conv(norm(x))`` without saving ``norm(x)``, and x as `with_shortcut` gives it.

    Args:
        norm: what `activation` makes.
        conv: the convolution that follows.
        x: (n, c, h, w).
        moments: as for `with_shortcut`.

    Returns:
        The result of the convolution, and a tensor of the shape of x.
    """
    if (
        _is_free(norm)
        and type(conv) is nn.Conv2d
        and isinstance(conv.padding, tuple)
        and conv.padding_mode == "zeros"
        and not is_hooked(conv)
        and _computed_in(conv, x) == x.dtype
        and norm.fuses(x)
    ):
        return norm.by_passes(x, moments, conv)
    y, x = with_shortcut(norm, x, moments)
    return conv(y), x


def _is_free(norm: nn.Module) -> TypeGuard[Norm]:
    return type(norm) is Norm and not is_hooked(norm)


def _computed_in(conv: nn.Conv2d, x: Tensor) -> torch.dtype:
    """The type in which a convolution computes, where autocast may decide it."""
    kind, dtype = x.device.type, conv.weight.dtype
    casts = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else dtype


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


def is_hooked(*modules: nn.Module) -> bool:
    """Whether somebody has put a hook on one of these modules, or another forward, so that it must be called as one."""
    return bool(_has_any_global_hook()) or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
        for module in modules
    )
