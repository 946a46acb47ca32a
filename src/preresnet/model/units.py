"""The residual unit: what it executes, whatever its order and shortcut."""

from collections import OrderedDict

from torch import Tensor, nn

from preresnet.model import preactivation
from preresnet.model.preactivation import activation, is_hooked
from preresnet.model.shortcuts import add_up, conv, join
from preresnet.spec import Dialect, UnitShape, UnitSpec


class ResidualUnit(nn.Module):
    """x -> after_add(join(x, residual(pre(x)))), every part read from the spec.

    Paper: Eq. 1, 2 and 9; Fig. 1, 2, 4. A shared pre-activation replaces x for both branches (appendix).

    Args:
        shape: this unit's channels, stride, pre-activation and shortcut.
        unit: what all units of the network have in common.
        dialect: details in which implementations differ.

    Attributes:
        recompute: whether what the convolutions of the residual branch read is recomputed in the backward pass.
    """

    def __init__(self, shape: UnitShape, unit: UnitSpec, dialect: Dialect) -> None:
        super().__init__()
        self.shared = shape.shared
        self.recompute = False
        self.pre = activation(shape.pre, shape.in_width, dialect)
        self.residual = _residual(shape, unit, dialect)
        self.join = join(shape, unit, dialect)
        self.after_add = activation(unit.order.after_add, shape.width, dialect)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, ceil(h / stride), ceil(w / stride))."""
        return self.advance(x, None)[0]

    def advance(self, x: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `forward`, with the statistics of x and of the result handed on, where they are known.

        Args:
            x: (n, c_in, h, w).
            moments: (2, c_in), mean and variance of x.

        Returns:
            What `forward` returns, and (2, c_out).
        """
        if self.recompute and not is_hooked(self.residual, self.join):
            residual, x = self._recomputing(x, moments)
        elif self.shared or is_hooked(self.join):  # who looks at the join wants x_l itself, not what stands for it
            activated = preactivation.apply(self.pre, x, moments)
            residual = self.residual(activated)
            x = activated if self.shared else x
        else:
            activated, x = preactivation.with_shortcut(self.pre, x, moments)
            residual = self.residual(activated)
        if isinstance(self.after_add, nn.ReLU):  # which no statistics survive
            return self.after_add(self.join(x, residual)), None
        y, moments = add_up(self.join, x, residual)
        if isinstance(self.after_add, nn.Identity) and not is_hooked(self.after_add):
            return y, moments
        return preactivation.apply(self.after_add, y, moments), None

    def _recomputing(self, x: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual and what enters the shortcut; each norm and the convolution behind it are one operation."""
        norm: nn.Module = self.pre
        if self.shared:
            x, norm, moments = preactivation.apply(self.pre, x, moments), _NOTHING, None
        shortcut = h = x
        for number, layer in enumerate(self.residual):
            if not isinstance(layer, nn.Conv2d):
                norm = layer
                continue
            h, source = preactivation.convolve(norm, layer, h, moments)
            if number == 0:
                shortcut = source
            norm, moments = _NOTHING, None
        return norm(h), shortcut


_NOTHING = nn.Identity()


def _residual(shape: UnitShape, unit: UnitSpec, dialect: Dialect) -> nn.Sequential:
    """F as ``conv1 norm1 conv2 norm2 ...``: ``norm{i}`` is what follows ``conv{i}``, and carries its ReLU."""
    kernels = unit.kernels
    last = len(kernels)
    striding = kernels.index(3) + 1 if dialect.stride_position == "spatial" else 1
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    in_width = shape.in_width
    for number, kernel in enumerate(kernels, start=1):
        width = shape.width if number == last else shape.inner_width
        bias = ("residual_last" if number == last else "residual_inner") in dialect.conv_bias
        stride = shape.stride if number == striding else 1
        layers[f"conv{number}"] = conv(in_width, width, kernel, stride, bias=bias, padding=dialect.conv_padding)
        pattern = unit.order.end if number == last else unit.order.between
        if pattern:
            layers[f"norm{number}"] = activation(pattern, width, dialect)
        in_width = width
    return nn.Sequential(layers)
