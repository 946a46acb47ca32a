"""What stem, units and head of a network compute and keep, counted on tensors without memory, once for like units."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from preresnet.model.network import Head, Stem, set_fused
from preresnet.model.preactivation import Norm
from preresnet.model.units import ResidualUnit
from preresnet.spec import NetSpec, UnitShape

BFLOAT16 = "bfloat16"


class Saved:
    """What autograd keeps while this is in use: each storage once, without parameters.

    Args:
        model: whose parameters are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: dict[int, Tensor] = {}
        self._parameters = {p.untyped_storage()._cdata for p in model.parameters()}

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a tensor's storage is kept."""
        return tensor.untyped_storage()._cdata in self._kept

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        return sum(self.sizes())

    def sizes(self, *others: Tensor) -> list[int]:
        """Bytes of each storage that is kept, but those of other tensors."""
        left_out = {tensor.untyped_storage()._cdata for tensor in others}
        return [tensor.untyped_storage().nbytes() for key, tensor in self._kept.items() if key not in left_out]

    def _add(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self._parameters:
            self._kept.setdefault(key, tensor)  # kept alive, so that no other storage takes its place
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count all that is saved inside."""
        with torch.autograd.graph.saved_tensors_hooks(self._add, lambda tensor: tensor):
            yield


class _Work(TorchFunctionMode):
    """Counts the multiply-adds of convolutions, and gives for each a map of its shape, which keeps what it would keep.

    Without memory, a convolution forgets its layout and loads half of PyTorch's compiler, which takes seconds; to move
    running statistics does the latter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d:
            return self._convolve(args[0], *args)
        if func is torch.ops.preresnet.norm.default:
            y, x, *statistics = func(
                *args[:RUNNING], None, None, *args[RUNNING + 2 : KERNEL], None, None, (), (), (), 1
            )
            if args[KERNEL] is not None:  # computes again what it reads
                y = self._convolve(None, y, *args[KERNEL:])
            return y, x, *statistics
        return func(*args, **(kwargs or {}))

    def _convolve(
        self,
        kept: Tensor | None,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = (1, 1),
        padding: Any = (0, 0),
        dilation: Any = (1, 1),
        groups: int = 1,
    ) -> Tensor:
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        size = [(n + 2 * border - apart * (k - 1) - 1) // step + 1 for n, k, step, border, apart in sizes]
        result: Any = _Convolved.apply(kept, weight, (len(x), len(weight), *size))
        self.multiply_adds += result.numel() * weight[0].numel()
        return result


RUNNING, KERNEL = 3, 11  # their places among the arguments of the operation


class _Convolved(torch.autograd.Function):
    """Stands for a convolution, forward alone."""

    @staticmethod
    def forward(ctx: Any, kept: Tensor | None, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(kept, weight)
        return torch.empty(shape, dtype=weight.dtype, device="meta", memory_format=torch.channels_last)


@dataclass(frozen=True)
class Counts:
    """What one part of a network has, computes and keeps.

    Args:
        parameters: of the part.
        multiply_adds: of its convolutions and its classifier, for one image.
        output: shape of what leaves it, without the batch.
        kept: bytes of each tensor that autograd keeps for the backward pass, but what enters and leaves the part.
        keeps_input: whether what enters is kept.
        keeps_output: whether what leaves is kept by this part.
        norms: norms, each with the ReLU right behind it.
        lone_relus: ReLUs without a norm before them.
        convolutions: convolutions.
        recomputing: of those, how many can compute again what they read.
    """

    parameters: int
    multiply_adds: int
    output: tuple[int, ...]
    kept: tuple[int, ...]
    keeps_input: bool
    keeps_output: bool
    norms: int
    lone_relus: int
    convolutions: int
    recomputing: int


@dataclass(frozen=True)
class Step:
    """A training step as far as it decides what is kept.

    Args:
        batch: images that pass at once.
        precision: ``float32`` or ``bfloat16`` (autocast).
        fused: whether passes of our own are used.
        recompute: whether what the convolutions of a residual branch read is computed again.
    """

    batch: int
    precision: str = "float32"
    fused: bool = True
    recompute: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The type of feature maps."""
        return torch.bfloat16 if self.precision == BFLOAT16 else torch.float32


@dataclass(frozen=True)
class Parts:
    """The counts of a whole network, in the order of execution.

    Args:
        stem: what comes before the first stage.
        stages: of each, its units.
        head: what comes after the last.
    """

    stem: Counts
    stages: list[list[Counts]]
    head: Counts

    def all(self) -> list[Counts]:
        """Every part."""
        return [self.stem, *(unit for stage in self.stages for unit in stage), self.head]


def count(spec: NetSpec, size: int, step: Step) -> Parts:
    """Count a network part by part.

    Args:
        spec: the network.
        size: height and width of its images.
        step: the training step.
    """
    stem = _count_end(Stem, spec, (spec.in_channels, size, size), step)
    stages: list[list[Counts]] = [[] for _ in spec.stages]
    shape = stem.output
    for stage, _, unit in spec.units():
        stages[stage].append(_count_unit(unit, spec, shape, step))
        shape = stages[stage][-1].output
    return Parts(stem, stages, _count_end(Head, spec, shape, step))


@cache
def _count_end(kind: type[Stem] | type[Head], spec: NetSpec, shape: tuple[int, ...], step: Step) -> Counts:
    with torch.device("meta"):
        return _count(kind(spec), shape, step, is_first=kind is Stem)


def _count_unit(unit: UnitShape, spec: NetSpec, shape: tuple[int, ...], step: Step) -> Counts:
    return _count_like_units(unit, spec.unit, spec.dialect, shape, step)


@cache
def _count_like_units(unit: UnitShape, common: Any, dialect: Any, shape: tuple[int, ...], step: Step) -> Counts:
    with torch.device("meta"):
        module = ResidualUnit(unit, common, dialect)
    module.recompute = step.recompute
    return _count(module, shape, step)


def _count(module: nn.Module, shape: tuple[int, ...], step: Step, *, is_first: bool = False) -> Counts:
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_fused(module, step.fused)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if step.precision == BFLOAT16:  # as autocast would: norms stay in float32
        for layer in layers:
            layer.to(torch.bfloat16)
    x = torch.empty(step.batch, *shape, device="meta", dtype=step.dtype, memory_format=torch.channels_last)
    x.requires_grad_(not is_first)
    saved, work = Saved(module), _Work()
    with saved.counting(), work:
        y = _classified(module, x) if isinstance(module, Head) else module(x)
    return Counts(
        parameters=sum(p.numel() for p in module.parameters()),
        multiply_adds=work.multiply_adds // step.batch,
        output=tuple(y.shape[1:]),
        kept=tuple(saved.sizes(x, y)),
        keeps_input=x in saved,
        keeps_output=y in saved,
        norms=sum(isinstance(layer, Norm) for layer in module.modules()),
        lone_relus=sum(isinstance(layer, nn.ReLU) for layer in module.modules()),
        convolutions=sum(isinstance(layer, nn.Conv2d) for layer in layers),
        recomputing=_recomputing(module) if isinstance(module, ResidualUnit) else 0,
    )


def _classified(head: Head, x: Tensor) -> Tensor:
    """As the head, its classifier as a 1x1 convolution of the mean: other ways would load PyTorch's compiler."""
    head.norm(x)
    mean = torch.empty(*x.shape[:2], 1, 1, dtype=x.dtype, device="meta", requires_grad=True)
    return F.conv2d(mean, head.linear.weight[:, :, None, None], head.linear.bias).flatten(1)


def _recomputing(unit: ResidualUnit) -> int:
    """Convolutions right behind a norm."""
    layers = [nn.Identity() if unit.shared else unit.pre, *unit.residual]
    return sum(isinstance(a, Norm) and type(b) is nn.Conv2d for a, b in pairwise(layers))
