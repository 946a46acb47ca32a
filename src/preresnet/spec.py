"""A residual network as plain data, which needs no torch to be read, checked, stored or compared."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal, get_args

import pydantic
from pydantic.dataclasses import dataclass

from preresnet.fields import STRICT as STRICT
from preresnet.fields import UserError as UserError
from preresnet.fields import explain as explain
from preresnet.fields import from_json as from_json
from preresnet.fields import require as require
from preresnet.fields import to_json as to_json

Pattern = Literal["", "B", "R", "BR"]
"""Batch norm (B) and ReLU (R), in the order in which they are executed."""

UnitKind = Literal["basic", "bottleneck", "single"]
RESIDUAL_KERNELS: dict[UnitKind, tuple[int, ...]] = {
    "basic": (3, 3),
    "bottleneck": (1, 3, 1),
    "single": (3,),
}


MemoryPlan = Literal["plain", "recompute", "units", "sqrt"]
"""What the backward pass of a training step computes again to save memory, from least to most: `model.memory`."""

MEMORY_PLANS: tuple[MemoryPlan, ...] = get_args(MemoryPlan)


@dataclass(frozen=True, config=STRICT)
class Order:
    """Where batch norms and ReLUs sit in a residual unit.

    Paper: Section 4 and Fig. 4. What ends a unit also ends the stem (``end`` then ``after_add``), and what starts a
    unit also ends the network (``pre``): the five orders hold the same components, moved by half a unit. This is the
    appendix's rule for the first and last unit, stated once.

    Args:
        pre: before the first convolution of the residual branch.
        between: between two convolutions of the residual branch.
        end: after the last convolution, before the addition.
        after_add: after the addition, the paper's f.
    """

    pre: Pattern
    between: Pattern
    end: Pattern
    after_add: Pattern

    def __post_init__(self) -> None:
        require(
            self.end + self.after_add in ("", "B", "R", "BR"),
            f"end={self.end!r} with after_add={self.after_add!r} would repeat a norm or a ReLU around the addition; "
            "together they may hold at most one B followed by at most one R",
        )

    @property
    def stem(self) -> str:
        """What follows the stem's convolution."""
        return self.end + self.after_add


@dataclass(frozen=True, config=STRICT)
class Identity:
    """y = x + F(x). Paper: Eq. 1 with h(x) = x, Fig. 2(a)."""

    kind: Literal["identity"] = "identity"


@dataclass(frozen=True, config=STRICT)
class ConstantScale:
    """y = shortcut * x + residual * F(x). Paper: Eq. 6, Fig. 2(b).

    ``shortcut=0`` is a plain network (Table 1, second row): no shortcut is built at all.
    """

    shortcut: float
    residual: float = 1.0
    kind: Literal["constant_scale"] = "constant_scale"


@dataclass(frozen=True, config=STRICT)
class ExclusiveGate:
    """y = (1 - g) x + g F(x), g = sigmoid(W_g x + bias). Paper: Section 3, Fig. 2(c).

    Args:
        bias: initial bias b_g of the gate; the paper searched 0, -1, ..., -10.
        norm: batch norm after W_g. The paper does not say; a norm would hide the initial bias, so none by default.
    """

    bias: float
    norm: bool = False
    kind: Literal["exclusive_gate"] = "exclusive_gate"


@dataclass(frozen=True, config=STRICT)
class ShortcutOnlyGate:
    """y = (1 - g) x + F(x), g as in `ExclusiveGate`. Paper: Section 3, Fig. 2(d)."""

    bias: float
    norm: bool = False
    kind: Literal["shortcut_only_gate"] = "shortcut_only_gate"


@dataclass(frozen=True, config=STRICT)
class Conv1x1:
    """y = W_s x + F(x) in every unit. Paper: Section 3, Fig. 2(e) (option C of the 2015 paper).

    Args:
        norm: batch norm after W_s; the caption of Fig. 2 puts one right after each weight layer.
    """

    norm: bool = True
    kind: Literal["conv1x1"] = "conv1x1"


@dataclass(frozen=True, config=STRICT)
class Dropout:
    """y = dropout(x) + F(x). Paper: Section 3, Fig. 2(f).

    Args:
        p: share of dropped elements.
        rescale: divide kept elements by 1 - p while training. The paper speaks of a shortcut scaled by an expected
            0.5, so the mask is not rescaled by default; in evaluation the shortcut is then multiplied by 1 - p.
    """

    p: float = 0.5
    rescale: bool = False
    kind: Literal["dropout"] = "dropout"

    def __post_init__(self) -> None:
        require(0 <= self.p < 1, f"dropout p={self.p}; it must be at least 0 and below 1")


Shortcut = Annotated[
    Identity | ConstantScale | ExclusiveGate | ShortcutOnlyGate | Conv1x1 | Dropout,
    pydantic.Field(discriminator="kind"),
]


@dataclass(frozen=True, config=STRICT)
class UnitSpec:
    """Eq. 1-2 as data: the residual branch, the order of activations, and the join.

    Args:
        kind: ``basic`` (3x3, 3x3), ``bottleneck`` (1x1, 3x3, 1x1) or ``single`` (3x3; Table 3's 1-layer skip).
        order: where norms and ReLUs sit (Fig. 4).
        shortcut: how shortcut and residual are joined (Fig. 2).
        bottleneck_ratio: unit width over inner width of a bottleneck, in stages that name no ratio of their own.
    """

    kind: UnitKind
    order: Order
    shortcut: Shortcut = Identity()
    bottleneck_ratio: int = 4

    def __post_init__(self) -> None:
        require(self.bottleneck_ratio >= 1, f"bottleneck_ratio={self.bottleneck_ratio}; it must be 1 or more")

    @property
    def kernels(self) -> tuple[int, ...]:
        """Kernel sizes of the residual branch, first to last."""
        return RESIDUAL_KERNELS[self.kind]


@dataclass(frozen=True, config=STRICT)
class StemSpec:
    """The layers before the first stage.

    Args:
        width: channels out of the stem's convolution.
        kernel: its kernel size.
        stride: its stride.
        activated: BN and ReLU follow, whatever the order, and the first unit then has no pre-activation of its own (the
            authors' ImageNet stem; fb.resnet.torch calls that unit ``no_preact``). Otherwise as the order says.
        pool: whether a 3x3/2 max-pool ends the stem; None where it is activated, and nowhere else. ``True`` without
            ``activated`` pools the convolution as it is, and the first unit of a pre-activation network is
            pre-activated (timm ``resnetv2_50``, Keras ``ResNet50V2``).
        pool_padding: border of the max-pool. ``ignored``: one pixel on each side that no maximum can come from (minus
            infinity; Torch 7, PyTorch). ``zero``: one pixel of zeros on each side (Keras ``ResNet50V2``). ``same``:
            ignored too, but placed as ``Dialect.conv_padding`` of that name says (TensorFlow).
        first_preactivated: whether the first unit has its own pre-activation behind an activated stem all the same
            (pytorchcv's ``preresnet*`` for ImageNet).
    """

    width: int = 16
    kernel: int = 3
    stride: int = 1
    activated: bool = False
    pool: bool | None = None
    pool_padding: Literal["ignored", "zero", "same"] = "ignored"
    first_preactivated: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "kernel", "stride"):
            require(getattr(self, name) >= 1, f"stem {name}={getattr(self, name)}; it must be 1 or more")
        require(self.kernel % 2 == 1, f"stem kernel={self.kernel}; it must be odd, so that its padding is symmetric")
        require(
            self.pooled or self.pool_padding == "ignored",
            f"stem pool_padding={self.pool_padding!r}, but this stem does not pool; set pool=true or leave it out",
        )

        require(
            self.activated or not self.first_preactivated,
            "stem first_preactivated=true, but this stem is not activated, so that the first unit has its "
            "pre-activation anyway; leave the field out",
        )

    @property
    def pooled(self) -> bool:
        """Whether a max-pool ends the stem."""
        return self.activated if self.pool is None else self.pool

    @property
    def reduction(self) -> int:
        """Height of an image over height of what leaves the stem."""
        return self.stride * (2 if self.pooled else 1)


@dataclass(frozen=True, config=STRICT)
class StageSpec:
    """Units that share one resolution.

    Args:
        num_units: residual units.
        width: channels of each unit's output.
        stride: of the stage's striding unit.
        bottleneck_ratio: width over inner width of this stage's bottlenecks; None for that of `UnitSpec` (Keras'
            ``cifar10_resnet.py`` version 2 has 4, 2, 2).
    """

    num_units: int
    width: int
    stride: int = 1
    bottleneck_ratio: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_units", "width", "stride", "bottleneck_ratio"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"stage {name}={value}; it must be 1 or more")


BiasPosition = Literal["stem", "shortcut", "residual_inner", "residual_last"]
ConvPadding = Literal["symmetric", "same"]


@dataclass(frozen=True, config=STRICT)
class Dialect:
    """Where implementations of "the same network" differ silently. Defaults are the paper's.

    Args:
        dimension_change: shortcut of a unit that changes channels: ``zero_pad`` (option A of the 2015 paper; every
            6n+2 CIFAR network) or ``projection`` (option B, 1x1 convolution; bottleneck networks). A unit that only
            strides subsamples (fb.resnet.torch).
        projection_norm: batch norm after such a projection: ``as_residual`` gives it one exactly when the residual
            branch ends in one, as fb.resnet.torch's ``resnet.lua`` (has one) and ``preresnet.lua`` (has none) do.
        shared_preactivation: units whose pre-activation feeds both branches. ``stage_first``: the first of each stage
            (the paper's appendix; fb.resnet.torch). ``channel_change``: only units that change channels
            (resnet-1k-layers; pytorchcv, whose first 16-to-16 unit thus passes the raw stem on; timm; Keras
            ``ResNet50V2``). ``network_first``: the network's first unit alone (Keras' ``cifar10_resnet.py`` version 2,
            which writes that activation behind the stem). ``never``.
        stride_position: convolution of a bottleneck that strides: ``first`` 1x1 (2015 paper, resnet-1k-layers) or
            the ``spatial`` 3x3 (fb.resnet.torch, timm, torchvision).
        strided_unit: unit of a stage that strides: ``first`` or ``last`` (Keras ``ResNet50V2``).
        conv_padding: zeros around a strided convolution whose kernel is larger than 1. ``symmetric``: kernel // 2 on
            each side. ``same``: TensorFlow's rule of that name, also in Keras: as few as give ceil(size / stride)
            outputs, the odd one at the bottom or right. For a 3x3 of stride 2 that is none above and one below an even
            size, and one on each side of an odd size, so that the two differ for even sizes alone.
        join_at_dimension_change: whether a scaled, gated or dropped shortcut is also used where dimensions change.
            The paper modifies all units; ``False`` keeps the plain shortcut of ``dimension_change`` there.
        last_activation: the extra pre-activation after the last addition (appendix). Some public code forgets it.
        conv_bias: convolutions that have a bias. None in the authors' code; Keras has ``stem``, ``shortcut`` and
            ``residual_last``.
        norm_eps: added to the variance; 1e-5 in Torch 7 and PyTorch, 1.001e-5 in Keras.
        norm_momentum: weight of the new batch in the running statistics; 0.1 in Torch 7 and PyTorch.
    """

    dimension_change: Literal["zero_pad", "projection"] = "zero_pad"
    projection_norm: Literal["as_residual", "always", "never"] = "as_residual"
    shared_preactivation: Literal["stage_first", "channel_change", "network_first", "never"] = "stage_first"
    stride_position: Literal["first", "spatial"] = "first"
    strided_unit: Literal["first", "last"] = "first"
    conv_padding: ConvPadding = "symmetric"
    join_at_dimension_change: bool = True
    last_activation: bool = True
    conv_bias: tuple[BiasPosition, ...] = ()
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        require(self.norm_eps > 0, f"norm_eps={self.norm_eps}; it must be above 0")
        require(0 < self.norm_momentum <= 1, f"norm_momentum={self.norm_momentum}; it must be in (0, 1]")


@dataclass(frozen=True, config=STRICT)
class UnitShape:
    """One unit of a network, with everything resolved that depends on its position.

    Args:
        in_width: channels in.
        width: channels out.
        inner_width: channels between the convolutions of the residual branch.
        stride: spatial stride of the unit.
        pre: its own activation before the residual branch.
        shared: whether that activation also feeds the shortcut.
        shortcut: how shortcut and residual are joined here.
    """

    in_width: int
    width: int
    inner_width: int
    stride: int
    pre: Pattern
    shared: bool
    shortcut: Shortcut


@dataclass(frozen=True, config=STRICT)
class NetSpec:
    """A whole network: stem, stages of residual units, head.

    Args:
        stem: layers before the first stage.
        stages: one entry per resolution.
        unit: the residual unit that every stage repeats.
        dialect: details in which implementations differ.
        in_channels: channels of an input image.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: where a field is out of range, naming it and what is allowed.
    """

    stem: StemSpec
    stages: tuple[StageSpec, ...]
    unit: UnitSpec
    dialect: Dialect = Dialect()
    in_channels: int = 3
    num_classes: int = 10

    def __post_init__(self) -> None:
        require(len(self.stages) > 0, "a network needs at least one stage; add a StageSpec to stages")
        require(self.in_channels >= 1, f"in_channels={self.in_channels}; it must be 1 or more")
        require(self.num_classes >= 1, f"num_classes={self.num_classes}; it must be 1 or more")
        for number, stage in enumerate(self.stages):
            require(
                stage.bottleneck_ratio is None or self.unit.kind == "bottleneck",
                f"stages.{number} has bottleneck_ratio={stage.bottleneck_ratio}, but unit.kind={self.unit.kind!r} has "
                "no bottleneck; leave the field out or use kind='bottleneck'",
            )
            require(
                stage.width % self._ratio(stage) == 0,
                f"stage width {stage.width} is not a multiple of bottleneck_ratio {self._ratio(stage)}; "
                "the inner width would not be whole",
            )
        widths = [self.stem.width, *(stage.width for stage in self.stages)]
        grows = all(before <= after for before, after in pairwise(widths))
        require(
            grows or self.dialect.dimension_change == "projection",
            f"widths {widths} shrink, which zero padding cannot do; use dimension_change='projection'",
        )

    @property
    def depth(self) -> int:
        """Weighted layers as the paper counts them: stem, residual convolutions and classifier."""
        return 2 + sum(stage.num_units for stage in self.stages) * len(self.unit.kernels)

    def units(self) -> Iterator[tuple[int, int, UnitShape]]:
        """Every unit in order, as (stage, position in the stage, shape)."""
        in_width = self.stem.width
        for stage_index, stage in enumerate(self.stages):
            strided = 0 if self.dialect.strided_unit == "first" else stage.num_units - 1
            for index in range(stage.num_units):
                activated = self.stem.activated and not self.stem.first_preactivated and stage_index == index == 0
                stride = stage.stride if index == strided else 1
                changes_dimension = in_width != stage.width or stride != 1
                shared = {
                    "stage_first": index == 0,
                    "channel_change": in_width != stage.width,
                    "network_first": stage_index == index == 0,
                    "never": False,
                }[self.dialect.shared_preactivation]
                plain = changes_dimension and not self.dialect.join_at_dimension_change
                yield (
                    stage_index,
                    index,
                    UnitShape(
                        in_width=in_width,
                        width=stage.width,
                        inner_width=stage.width // self._ratio(stage),
                        stride=stride,
                        pre="" if activated else self.unit.order.pre,
                        shared=shared,
                        shortcut=Identity() if plain else self.unit.shortcut,
                    ),
                )
                in_width = stage.width

    def _ratio(self, stage: StageSpec) -> int:
        """Width over inner width of a stage's units."""
        if self.unit.kind != "bottleneck":
            return 1
        return self.unit.bottleneck_ratio if stage.bottleneck_ratio is None else stage.bottleneck_ratio
