"""The joins of shortcut and residual (Fig. 2), and what carries a shortcut across a change of dimension."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preresnet import distributed, spec
from preresnet.kernels import operations, passes
from preresnet.model.preactivation import activation, is_hooked
from preresnet.spec import ConvPadding, Dialect, UnitShape


def conv(
    in_width: int, width: int, kernel: int, stride: int = 1, *, bias: bool = False, padding: ConvPadding = "symmetric"
) -> nn.Conv2d:
    """A convolution padded so that stride alone decides the output size: (h, w) -> (ceil(h/s), ceil(w/s))."""
    if padding == "same" and stride > 1 and kernel > 1:
        return SameConv2d(in_width, width, kernel, stride=stride, bias=bias)
    return nn.Conv2d(in_width, width, kernel, stride=stride, padding=kernel // 2, bias=bias)


class SameConv2d(nn.Conv2d):
    """A strided convolution that pads as TensorFlow's SAME does (`same_border`), by the size of what it gets."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, ceil(h / stride), ceil(w / stride))."""
        return super().forward(F.pad(input, same_border(input.shape[2:], self.kernel_size[0], self.stride[0])))


class SameMaxPool2d(nn.Module):
    """A 3x3/2 max-pool over a border as `SameConv2d` has it, which no maximum comes from."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, ceil(h / 2), ceil(w / 2))."""
        return F.max_pool2d(F.pad(x, same_border(x.shape[2:], 3, 2), value=-math.inf), 3, 2)


def same_border(size: Sequence[int], kernel: int, stride: int) -> list[int]:
    """What SAME adds to a map at its left, right, top and bottom: half each, an odd pixel at the right and bottom.

    Source: TensorFlow's documentation of ``tf.nn.convolution``, ``padding="SAME"``.

    Args:
        size: (h, w) of the map.
        kernel: of the operation that reads it.
        stride: the same.
    """
    border: list[int] = []
    for length in reversed(size):
        total = max(kernel - (length % stride or stride), 0)
        border += [total // 2, total - total // 2]
    return border


class ZeroPad(nn.Module):
    """Subsampling, then zeros as the new channels: an identity shortcut without parameters.

    Paper: option A of the 2015 paper, Section 4.1; the zeros come after the kept channels, as in fb.resnet.torch.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c + new, ceil(h / stride), ceil(w / stride))."""
        # A mean over one element is that element; unlike a strided view, its gradient keeps the memory layout of x.
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, 0, self.new_channels))


class Projection(nn.Module):
    """A strided 1x1 convolution and, where the dialect asks for it, its batch norm."""

    def __init__(self, shape: UnitShape, dialect: Dialect, *, norm: bool) -> None:
        super().__init__()
        self.conv = conv(shape.in_width, shape.width, 1, shape.stride, bias="shortcut" in dialect.conv_bias)
        self.norm = activation("B" if norm else "", shape.width, dialect)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, ceil(h / stride), ceil(w / stride))."""
        return self.norm(self.conv(x))


class Gate(nn.Module):
    """g(x) = sigmoid(W_g x + b_g), W_g a 1x1 convolution on the unit's input.

    Evaluated in float32 under autocast: bfloat16 cannot hold 1 - g for the g of about 0.0025 that b_g = -6 starts with.

    Paper: Section 3.
    """

    def __init__(self, shape: UnitShape, dialect: Dialect, initial_bias: float, *, norm: bool) -> None:
        super().__init__()
        self.conv = conv(shape.in_width, shape.width, 1, shape.stride)
        self.norm = activation("B" if norm else "", shape.width, dialect)
        self.bias = nn.Parameter(torch.full((shape.width,), initial_bias))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, ceil(h / stride), ceil(w / stride)), in (0, 1)."""
        return torch.sigmoid(self.logit(x).to(self.bias.dtype) + self.bias.view(-1, 1, 1))

    def logit(self, x: Tensor) -> Tensor:
        """W_g x: (n, c_in, h, w) -> (n, c_out, ceil(h / stride), ceil(w / stride))."""
        return self.norm(self.conv(x))


class IdentityJoin(nn.Module):
    """y = h(x) + F. Paper: Eq. 1 and 3.

    Attributes:
        fused: as that of a `preresnet.model.preactivation.Norm`.
    """

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.fused: bool | None = None

    def parts(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The two summands: h(x) and F."""
        return self.shortcut(x), residual

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Both (n, c, h, w) after the shortcut -> (n, c, h, w)."""
        return self.shortcut(x) + residual

    def advance(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `forward`; and in training, where the sum is formed by a pass, its mean and variance: (2, c)."""
        shortcut = self.shortcut(x)
        if self.training and passes.used(self.fused, shortcut, residual):
            return operations.addition(shortcut, residual)
        return shortcut + residual, None


def add_up(join: nn.Module, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor | None]:
    """``join(x, residual)``, and mean and variance of the sum where a pass forms them and nobody looks at the join."""
    if type(join) is IdentityJoin and not is_hooked(join):
        return join.advance(x, residual)
    return join(x, residual), None


class ScaledJoin(nn.Module):
    """y = a h(x) + b F. Paper: Eq. 6."""

    def __init__(self, shortcut: nn.Module, scale: spec.ConstantScale) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.scale = scale

    def parts(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The two summands: a h(x) and b F."""
        return self.scale.shortcut * self.shortcut(x), self.scale.residual * residual

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Both (n, c, h, w) after the shortcut -> (n, c, h, w)."""
        shortcut, residual = self.parts(x, residual)
        return shortcut + residual


class PlainJoin(nn.Module):
    """y = b F: a plain network. No shortcut is computed, so that an infinite x cannot become 0 * x = NaN."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def parts(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The two summands: 0 and b F."""
        residual = self(x, residual)
        return torch.zeros_like(residual), residual

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """The residual alone: (n, c, h, w) -> (n, c, h, w)."""
        return residual if self.scale == 1 else self.scale * residual


class GatedJoin(nn.Module):
    """y = (1 - g(x)) h(x) + g(x) F, or + F where the gate is on the shortcut only. Paper: Fig. 2(c) and 2(d).

    Attributes:
        fused: as that of a `preresnet.model.preactivation.Norm`.
    """

    def __init__(self, shortcut: nn.Module, gate: Gate, *, exclusive: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.gate = gate
        self.exclusive = exclusive
        self.fused: bool | None = None

    def parts(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The two summands, in the gate's precision: (1 - g(x)) h(x), and g(x) F or F."""
        gate = self.gate(x)
        return (1 - gate) * self.shortcut(x), gate * residual if self.exclusive else residual

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Both (n, c, h, w) after the shortcut -> (n, c, h, w)."""
        if self.training and not is_hooked(self.gate):
            logit, shortcut, bias = self.gate.logit(x), self.shortcut(x), self.gate.bias
            if passes.used(self.fused, logit, shortcut, residual) and bias.dtype == passes.sum_type(logit.dtype):
                return operations.gated(logit, bias, shortcut, residual, exclusive=self.exclusive)
            return operations.plain_gated(logit, bias, shortcut, residual, self.exclusive)
        shortcut, scaled = self.parts(x, residual)
        return (shortcut + scaled).to(residual.dtype)


class Mask(nn.Dropout):
    """Sets elements to zero with probability p in training, and scales nothing.

    On a CPU, PyTorch draws a number for every element, one after the other: 54 masks then take longer than the rest of
    a training step of 110 layers. Here eight elements share a draw of 64 bits, where a byte can express p exactly.
    Where norms see the images of several processes, each draws for all of these and uses its own part.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(n, c, h, w) -> the same, some elements 0; in evaluation, the input."""
        x = input
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return (1 - self.p) * super().forward(x)
        if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
            x = x.contiguous()
        count, (place, places) = x.numel(), distributed.norm_place()
        mine = slice(place * count, (place + 1) * count)
        if self.p * 256 % 1:
            kept = torch.rand(places * count)[mine] >= self.p
        else:
            drawn = torch.empty(-(-places * count // 8), dtype=torch.int64)
            kept = drawn.random_(torch.iinfo(torch.int64).min, None).view(torch.uint8)[mine] >= int(self.p * 256)
        return x * kept.as_strided(x.size(), x.stride())


class DropoutJoin(nn.Module):
    """y = dropout(h(x)) + F. Paper: Fig. 2(f).

    The mask is drawn from PyTorch's default generator of the device; on a CPU, training seeds it for every batch.
    """

    def __init__(self, shortcut: nn.Module, dropout: spec.Dropout) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.rescale = dropout.rescale
        self.dropout = Mask(dropout.p)

    def parts(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The two summands: the masked h(x), and F."""
        kept = self.dropout(self.shortcut(x))
        if self.rescale and self.training:
            kept = kept / (1 - self.dropout.p)
        elif not self.rescale and not self.training:
            kept = (1 - self.dropout.p) * kept  # what the mask leaves on average
        return kept, residual

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Both (n, c, h, w) after the shortcut -> (n, c, h, w)."""
        shortcut, residual = self.parts(x, residual)
        return shortcut + residual


def _dimension_change(shape: UnitShape, unit: spec.UnitSpec, dialect: Dialect) -> nn.Module:
    """h(x) of a unit whose spec says nothing else: identity wherever the dimensions allow it."""
    if shape.in_width != shape.width and dialect.dimension_change == "projection":
        as_residual = "B" in unit.order.end
        norm = {"as_residual": as_residual, "always": True, "never": False}[dialect.projection_norm]
        return Projection(shape, dialect, norm=norm)
    if shape.in_width != shape.width or shape.stride != 1:
        return ZeroPad(shape.width - shape.in_width, shape.stride)
    return nn.Identity()


def _scaled(scale: spec.ConstantScale, shape: UnitShape, unit: spec.UnitSpec, dialect: Dialect) -> nn.Module:
    if scale.shortcut == 0:
        return PlainJoin(scale.residual)
    return ScaledJoin(_dimension_change(shape, unit, dialect), scale)


def _exclusive(gate: spec.ExclusiveGate, shape: UnitShape, unit: spec.UnitSpec, dialect: Dialect) -> nn.Module:
    module = Gate(shape, dialect, gate.bias, norm=gate.norm)
    return GatedJoin(_dimension_change(shape, unit, dialect), module, exclusive=True)


def _shortcut_only(gate: spec.ShortcutOnlyGate, shape: UnitShape, unit: spec.UnitSpec, dialect: Dialect) -> nn.Module:
    module = Gate(shape, dialect, gate.bias, norm=gate.norm)
    return GatedJoin(_dimension_change(shape, unit, dialect), module, exclusive=False)


_JOINS: dict[type, Callable[[Any, UnitShape, spec.UnitSpec, Dialect], nn.Module]] = {
    spec.Identity: lambda _, shape, unit, dialect: IdentityJoin(_dimension_change(shape, unit, dialect)),
    spec.ConstantScale: _scaled,
    spec.ExclusiveGate: _exclusive,
    spec.ShortcutOnlyGate: _shortcut_only,
    spec.Conv1x1: lambda c, shape, _, dialect: IdentityJoin(Projection(shape, dialect, norm=c.norm)),
    spec.Dropout: lambda d, shape, unit, dialect: DropoutJoin(_dimension_change(shape, unit, dialect), d),
}


def join(shape: UnitShape, unit: spec.UnitSpec, dialect: Dialect) -> nn.Module:
    """The module ``join(x, residual) -> y`` of one unit.

    It takes both operands, not h(x) alone, because the exclusive gate scales F as well.

    Args:
        shape: the unit, with the shortcut that holds at its position.
        unit: the network's unit, for what its residual branch ends in.
        dialect: how dimensions change.
    """
    return _JOINS[type(shape.shortcut)](shape.shortcut, shape, unit, dialect)
