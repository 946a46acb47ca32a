"""Folding: norms that disappear into convolutions when a network only answers, and what computes the rest at once.

A norm in evaluation mode is an affine map of each channel. Where it directly follows a convolution whose result nobody
else reads, it folds into the convolution's weights: in a pre-activation unit every norm but the first of the residual
branch, whose input is the sum that the shortcut carries on. That one stays, as one pass over memory with its ReLU.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preresnet.kernels import onednn, passes
from preresnet.model.network import Network, Stage
from preresnet.model.preactivation import Norm
from preresnet.model.shortcuts import Gate, IdentityJoin, Projection, SameConv2d, same_border
from preresnet.model.units import ResidualUnit


class FoldedConv(nn.Module):
    """conv(x), with what followed it: a norm in the weights, a ReLU or an addition in the same operation.

    Args:
        conv: the convolution.
        norm: the `Norm`, ReLU or identity behind it.
        dtype: in which it is to compute.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        weight = conv.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
        self.relu = isinstance(norm, nn.ReLU)
        if isinstance(norm, Norm):
            scale, shift = affine(norm)
            weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale + shift
            self.relu = norm.relu
        self.same = isinstance(conv, SameConv2d)  # the border that it adds depends on what it gets
        self.settings: list[Any] = [list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups]
        self.weight = nn.Parameter(weight.to(dtype).contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        self.packed: Tensor | None = None

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """(n, c_in, h, w), and what is added to the result -> (n, c_out, h / s, w / s).

        In bfloat16, sums are float32 and the result is rounded once, behind the ReLU and the addition. Where oneDNN
        does not compute it (without AVX-512, mostly), a convolution in float32 of the same rounded operands does.
        """
        if self.same:
            x = F.pad(x, same_border(x.shape[2:], self.weight.shape[2], self.settings[0][0]))
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
            return self._composed(x, self.weight, self.bias, plus)
        # Of a map one pixel wide, oneDNN under torch 2.11 cannot tell the memory layout.
        if min(x.shape[2:]) > 1 and onednn.convolves(x.dtype):
            if self.packed is None:  # oneDNN's own order of the weights, found once
                self.packed = onednn.reorder(x, self.weight, *self.settings)
            fused = None if self.relu else plus
            y = onednn.convolve(x, self.packed, self.bias, *self.settings, plus=fused, relu=self.relu)
            return y if plus is None or fused is not None else y + plus
        if x.dtype == torch.bfloat16 and not onednn.convolves(x.dtype):
            operands = (self.weight.float(), self.bias.float(), None if plus is None else plus.float())
            return self._composed(x.float(), *operands).bfloat16()
        return self._composed(x, self.weight, self.bias, plus)

    def _composed(self, x: Tensor, weight: Tensor, bias: Tensor, plus: Tensor | None) -> Tensor:
        """By PyTorch's own operations."""
        y = F.conv2d(x, weight, bias, *self.settings)
        y = F.relu_(y) if self.relu else y
        return y if plus is None else y + plus


class Affine(nn.Module):
    """A norm that stays: x * scale + shift, then the ReLU where it has one, in one pass.

    Args:
        norm: in evaluation mode.
    """

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        scale, shift = affine(norm)
        self.relu = norm.relu
        dtype = passes.sum_type(norm.weight.dtype)
        for name, value in (("scale", scale), ("shift", shift), ("mean", scale * 0), ("inv_std", scale * 0 + 1)):
            self.register_buffer(name, value.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        if passes.used(None, x) and scale.dtype == passes.sum_type(x.dtype):
            return passes.apply(x, scale, shift, (self.get_buffer("mean"), self.get_buffer("inv_std")), relu=self.relu)
        y = x * scale.to(x.dtype).view(-1, 1, 1) + shift.to(x.dtype).view(-1, 1, 1)
        return F.relu_(y) if self.relu else y


class FoldedUnit(nn.Module):
    """A `ResidualUnit` that only answers.

    Args:
        unit: whose norms fold.
        pre: its pre-activation, already folded or made `Affine`.
        dtype: in which convolutions compute.
    """

    def __init__(self, unit: ResidualUnit, pre: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.shared, self.pre, self.join = unit.shared, pre, unit.join
        layers = list(unit.residual)
        self.residual = nn.ModuleList(
            FoldedConv(layer, _following(layers, index), dtype)
            for index, layer in enumerate(layers)
            if isinstance(layer, nn.Conv2d)
        )
        self.after_add = _kept(unit.after_add)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, h / s, w / s)."""
        h = self.pre(x)
        x = h if self.shared else x
        *first, last = self.residual
        for conv in first:
            h = conv(h)
        if isinstance(self.join, IdentityJoin):
            return self.after_add(last(h, self.join.shortcut(x)))
        return self.after_add(self.join(x, last(h)))


@torch.no_grad()
def folded(model: Network, dtype: torch.dtype) -> nn.Module:
    """A network that computes what the given one does in evaluation mode, with fewer and larger operations.

    Args:
        model: stays as it is; the result holds copies.
        dtype: of convolutions, the classifier and what passes between them. Norms that stay are computed in float32 (or
            float64).

    Returns:
        A module (n, in_channels, h, w) -> (n, num_classes) in ``dtype``.
    """
    model = copy.deepcopy(model).eval()
    stem, head = model.stem, model.head
    units = [unit for stage in model.stages if isinstance(stage, Stage) for unit in stage.units]
    pres = [_kept(unit.pre) if isinstance(unit, ResidualUnit) else unit for unit in units]
    after_stem: nn.Module = stem.norm
    first = units[0]
    direct = isinstance(stem.norm, nn.Identity) and isinstance(stem.pool, nn.Identity)
    if direct and isinstance(first, ResidualUnit) and first.shared:
        after_stem, pres[0] = first.pre, nn.Identity()  # nobody but the shared pre-activation reads the stem
    parts: list[nn.Module] = [FoldedConv(stem.conv, after_stem, dtype), stem.pool]
    for unit, pre in zip(units, pres, strict=True):
        assert isinstance(unit, ResidualUnit)
        for module in list(unit.join.modules()):
            if isinstance(module, Projection | Gate):
                module.conv, module.norm = FoldedConv(module.conv, module.norm, dtype), nn.Identity()  # type: ignore[assignment]
        parts.append(FoldedUnit(unit, pre, dtype))
    parts += [_kept(head.norm), Classifier(head.linear.to(dtype))]
    return nn.Sequential(*parts).eval()


class Classifier(nn.Module):
    """Global average pooling and the classifier.

    Args:
        linear: the classifier's weights.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, num_classes)."""
        return self.linear(x.mean((2, 3)))


def affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """A norm in evaluation mode as x * scale + shift: two of (c,), float64."""
    mean, var = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scale = norm.weight.detach().double() * torch.rsqrt(var + norm.epsilon)
    return scale, norm.bias.detach().double() - mean * scale


def _following(layers: list[nn.Module], index: int) -> nn.Module:
    """What stands behind a convolution of the residual branch."""
    behind = layers[index + 1] if index + 1 < len(layers) else None
    return nn.Identity() if behind is None or isinstance(behind, nn.Conv2d) else behind


def _kept(module: nn.Module) -> nn.Module:
    return Affine(module) if isinstance(module, Norm) else module
