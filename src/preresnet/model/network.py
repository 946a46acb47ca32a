"""The network that a specification describes, with reproducible weights and named intermediates."""

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from preresnet.model import preactivation
from preresnet.model.preactivation import Norm, activation, is_hooked
from preresnet.model.recomputation import recomputed
from preresnet.model.shortcuts import GatedJoin, IdentityJoin, SameMaxPool2d, conv
from preresnet.model.units import ResidualUnit
from preresnet.spec import NetSpec, StemSpec, UserError


class Stem(nn.Module):
    """The first convolution and what the order, or the ImageNet stem, puts after it."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        stem = spec.stem
        bias, padding = "stem" in spec.dialect.conv_bias, spec.dialect.conv_padding
        self.conv = conv(spec.in_channels, stem.width, stem.kernel, stem.stride, bias=bias, padding=padding)
        self.norm = activation("BR" if stem.activated else spec.unit.order.stem, stem.width, spec.dialect)
        self.pool = _pool(stem) if stem.pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, stem width, ceil(h / s), ceil(w / s)), s as `StemSpec.reduction`."""
        y = self.conv(x)
        # As the weights of a convolution lie in memory, so does its result; those of one channel lie both ways.
        if self.conv.weight.is_contiguous(memory_format=torch.channels_last):
            y = y.contiguous(memory_format=torch.channels_last)
        return self.pool(self.norm(y))


def _pool(stem: StemSpec) -> nn.Module:
    if stem.pool_padding == "zero":
        return nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, stride=2))
    return SameMaxPool2d() if stem.pool_padding == "same" else nn.MaxPool2d(3, stride=2, padding=1)


class Stage(nn.Module):
    """Residual units that share one resolution.

    Attributes:
        segment: how many units are recomputed together in the backward pass, from what enters the first of them; 0
            recomputes none (`preresnet.model.memory`).
        last: whether nothing but the head follows; the last segment is then kept, since it is needed again at once.
    """

    def __init__(self, units: list[ResidualUnit]) -> None:
        super().__init__()
        self.segment, self.last = 0, False
        self.units = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, h / stride, w / stride)."""
        return self.advance(x, None)[0]

    def advance(self, x: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `forward`, with the statistics of x and of the result handed on, where they are known."""
        if is_hooked(self.units):
            return self.units(x), None
        units = list(self.units)
        # A compiler decides by itself what it computes again.
        segmented = self.segment and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        size = self.segment if segmented else len(units)
        for first in range(0, len(units), size):
            part = units[first : first + size]
            if not segmented or (self.last and first + size >= len(units)):
                x, moments = in_order(part, x, moments)
            else:
                x, moments = recomputed(partial(in_order, part), part, x, moments)
        return x, moments


def in_order(modules: Iterable[nn.Module], x: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Stages or units one after the other, from one to the next the statistics of x that nobody can have made stale."""
    for module in modules:
        if type(module) in (Stage, ResidualUnit) and not is_hooked(module):
            x, moments = module.advance(x, moments)  # type: ignore[operator]
        else:
            x, moments = module(x), None
    return x, moments


class Head(nn.Module):
    """The extra activation after the last addition (appendix), global average pooling and the classifier."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        width = spec.stages[-1].width
        self.norm = activation(spec.unit.order.pre if spec.dialect.last_activation else "", width, spec.dialect)
        self.linear = nn.Linear(width, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, num_classes)."""
        return self.classify(self.norm(x))

    def classify(self, features: Tensor) -> Tensor:
        """(n, c, h, w), already activated -> (n, num_classes)."""
        return self.linear(features.mean((2, 3)))


class Network(nn.Module):
    """A residual network built from its specification. Weights are those of PyTorch until `initialise` is called.

    Paper: Fig. 1 and the appendix; 2015 paper, Section 4.2 (CIFAR) and Table 1 (ImageNet).

    Args:
        spec: the network as data; kept as ``spec``.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        stages: list[list[ResidualUnit]] = [[] for _ in spec.stages]
        for stage, _, shape in spec.units():
            stages[stage].append(ResidualUnit(shape, spec.unit, spec.dialect))
        self.stem = Stem(spec)
        built = [Stage(units) for units in stages]
        built[-1].last = True
        self.stages = nn.Sequential(*built)
        self.head = Head(spec)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            x: (n, in_channels, h, w), any h and w from 1 up.

        Returns:
            (n, num_classes), unnormalised.

        Raises:
            ValueError: x is not four-dimensional or has another number of channels.
        """
        return self.head.classify(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map after its final activation, before pooling.

        Args:
            x: (n, in_channels, h, w).

        Returns:
            (n, width of the last stage, h / s, w / s), s the product of all strides.

        Raises:
            ValueError: as `forward`.
        """
        self._check(x)
        x = self.stem(x)
        x, moments = (self.stages(x), None) if is_hooked(self.stages) else in_order(self.stages, x, None)
        return preactivation.apply(self.head.norm, x, moments)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The feature map of each stage, from large to small, as a detector or a segmenter reads them.

        The last is `forward_features`. The others are the sums that leave a stage, which the next one activates.

        Args:
            x: (n, in_channels, h, w).

        Returns:
            For stage s (n, its width, h / r, w / r), r the product of the strides up to it.

        Raises:
            ValueError: as `forward`.
        """
        self._check(x)
        x, found = self.stem(x), list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [*found[:-1], preactivation.apply(self.head.norm, x, None)]

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.spec.in_channels:
            raise UserError(
                f"input of shape {tuple(x.shape)}; this network takes (n, {self.spec.in_channels}, h, w). "
                "For another number of channels build it with in_channels=..."
            )

    def taps(self, x: Tensor) -> dict[str, Tensor]:
        """Every intermediate of one forward pass that the paper's equations name, in the order of execution.

        Names: ``stem``; for unit u = ``stages.<s>.units.<k>``: ``u.input`` (x_l, what enters the shortcut),
        ``u.residual`` (F(x_l)), ``u.sum`` (y_l, the result of the join), ``u`` (x_{l+1} = f(y_l)); ``head.norm``;
        ``logits``.

        Where the pre-activation is shared, ``u.input`` is the activated signal (appendix). The tensors are those of the
        graph, so gradients can be taken with respect to them; they are not copies.

        Paper: notation of Eq. 1-2.

        Args:
            x: (n, in_channels, h, w).

        Returns:
            Name -> (n, c, h, w), and ``logits`` -> (n, num_classes).
        """
        taken: dict[str, Tensor] = {}

        def keep_join(name: str, _: nn.Module, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
            taken[f"{name}.input"], taken[f"{name}.residual"] = inputs
            taken[f"{name}.sum"] = output

        def keep(name: str, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            taken[name] = output

        handles = [
            self.stem.register_forward_hook(partial(keep, "stem")),
            self.head.norm.register_forward_hook(partial(keep, "head.norm")),
        ]
        for name, module in self.named_modules():
            if isinstance(module, ResidualUnit):
                handles.append(module.join.register_forward_hook(partial(keep_join, name)))
                handles.append(module.register_forward_hook(partial(keep, name)))
        try:
            taken["logits"] = self(x)
        finally:
            for handle in handles:
                handle.remove()
        return taken


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights as the authors' code does, in the order of definition.

    | tensors | distribution | source |
    |---|---|---|
    | convolutions | normal, std sqrt(2 / (k * k * out channels)) | He et al. 2015; ``resnet-pre-act.lua`` |
    | biases of convolutions | 0 | the same |
    | classifier | uniform in +-1 / sqrt(in), bias 0 | Torch 7 default; ``resnet-pre-act.lua`` |
    | batch norms | scale 1, shift 0 | the same |
    | gates | as convolutions; bias as the spec says | Section 3; W_g's distribution is not stated |

    Drawn on the CPU in float32, so that a seed gives the same weights whatever device and precision follow.

    Args:
        model: a `Network`, or any module made of the same layers, on the CPU.
        generator: a CPU generator.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            drawn = torch.empty(module.weight.shape)  # drawn in the order of a weight's indices, however it lies
            module.weight.copy_(drawn.normal_(0.0, math.sqrt(2 / fan_out), generator=generator))
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.zero_()


def set_fused(model: nn.Module, fused: bool | None) -> None:
    """Choose whether training computes with the passes of `preresnet.kernels` or with PyTorch's own operations.

    Args:
        model: changed in place; its weights are not, and its results only by rounding.
        fused: None, a new network's setting: where they are proven, which is on a CPU. True: also on a GPU. False:
            never.
    """
    for module in model.modules():
        if isinstance(module, Norm | IdentityJoin | GatedJoin):
            module.fused = fused


def build(spec: NetSpec, seed: int | None = None) -> Network:
    """A network with initial weights.

    Args:
        spec: the network as data.
        seed: of the weights; without one, drawn from PyTorch's default generator (so ``torch.manual_seed`` decides).

    Returns:
        The network on the CPU in float32, its weights in channels_last memory, in training mode.
    """
    model = Network(spec)
    if seed is None:
        seed = int(torch.randint(2**62, ()).item())
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def meta(spec: NetSpec) -> Network:
    """The network with shapes but without memory, for counting."""
    with torch.device("meta"):
        return Network(spec)
