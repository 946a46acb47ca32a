"""The layers of other libraries' networks beside ours: one table a format, read in both directions."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from preresnet.paper import peers
from preresnet.paper.networks import ORDERS
from preresnet.spec import BiasPosition, Dialect, NetSpec, StageSpec, StemSpec, UnitKind, UnitSpec, UserError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Table:
    """How a library names the layers of a network, and what it builds that shapes do not tell.

    Args:
        title: of the networks, for messages.
        layers: a layer of ours and theirs; ``{s}``, ``{u}`` and ``{i}`` count stages, units and layers of a unit, and
            ``{s+1}`` counts them otherwise. The first that fits a name is meant.
        order: of `preresnet.paper.networks.ORDERS`.
        dialect: what shapes do not tell of it.
        stems: by the kernel size of the stem, what shapes do not tell of it.
        unseen: what could be otherwise in a bottleneck network without a trace in its tensors.
        spatial_depths: layers of bottleneck networks that certainly stride in their 3x3 convolutions.
        ordinal: their layers have numbers instead of places: each kind is counted in the order of definition.
    """

    title: str
    layers: tuple[tuple[str, str], ...]
    order: str
    dialect: Dialect
    stems: dict[int, StemSpec] = field(default_factory=dict)
    unseen: str = ""
    spatial_depths: tuple[int, ...] = ()
    ordinal: bool = False

    @cached_property
    def _readers(self) -> list[tuple[re.Pattern[str], str, re.Pattern[str], str]]:
        return [(_pattern(ours), ours, _pattern(theirs), theirs) for ours, theirs in self.layers]

    def theirs(self, layer: str) -> str | None:
        """Their name of a layer of ours; None where they have no such layer."""
        return next((_filled(b, found) for a, _, _, b in self._readers if (found := _places(a, layer))), None)

    def ours(self, layer: str) -> str | None:
        """Our name of a layer of theirs; None where we have no such layer."""
        return next((_filled(a, found) for _, a, b, _ in self._readers if (found := _places(b, layer))), None)


_PLACE = re.compile(r"\\\{([a-z])(?:\\\+(\d))?\\\}")


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(_PLACE.sub(lambda m: f"(?P<{m[1]}{m[2] or 0}>\\d+)", re.escape(template)))


def _places(pattern: re.Pattern[str], name: str) -> dict[str, int] | None:
    """Where a name is that of a layer, which: places counted from 0, layers of a unit from 1."""
    if (match := pattern.fullmatch(name)) is None:
        return None
    found = {place[0]: int(value) - int(place[1:]) for place, value in match.groupdict().items()}
    fits = all(value >= (place == "i") for place, value in found.items())
    return found | {"": 0} if fits else None


def _filled(template: str, places: Mapping[str, int]) -> str:
    return re.sub(r"\{([a-z])(?:\+(\d))?\}", lambda m: str(places[m[1]] + int(m[2] or 0)), template)


UNIT, LINEAR = "stages.{s}.units.{u}", "head.linear"


def _units(**theirs: str) -> tuple[tuple[str, str], ...]:
    """The layers of a unit, in ours and in theirs."""
    ours = {
        "pre": ".pre",
        "shortcut": ".join.shortcut.conv",
        "shortcut_norm": ".join.shortcut.norm",
        "norm": ".residual.norm{i}",
        "conv": ".residual.conv{i}",
    }
    return tuple((UNIT + ours[name], layer) for name, layer in theirs.items())


IMAGENET_STEM = {7: StemSpec(width=64, kernel=7, stride=2, activated=True)}
CIFAR_STEM = {3: StemSpec(width=16, kernel=3)}
TORCHVISION = Table(
    "resnet of torchvision and timm",
    (
        ("stem.conv", "conv1"),
        ("stem.norm", "bn1"),
        *_units(
            shortcut="layer{s+1}.{u}.downsample.0",
            shortcut_norm="layer{s+1}.{u}.downsample.1",
            norm="layer{s+1}.{u}.bn{i}",
            conv="layer{s+1}.{u}.conv{i}",
        ),
        (LINEAR, "fc"),
    ),
    "original",
    Dialect(dimension_change="projection", stride_position="spatial"),
    IMAGENET_STEM,
)
TIMM = Table(
    "resnetv2 of timm",
    (
        ("stem.conv", "stem.conv"),
        *_units(
            pre="stages.{s}.blocks.{u}.norm1",
            shortcut="stages.{s}.blocks.{u}.downsample.conv",
            norm="stages.{s}.blocks.{u}.norm{i+1}",
            conv="stages.{s}.blocks.{u}.conv{i}",
        ),
        ("head.norm", "norm"),
        (LINEAR, "head.fc"),
    ),
    "preact",
    peers.TIMM,
    {7: peers.RAW_STEM},
)
_PYTORCHCV_UNIT = "features.stage{s+1}.unit{u+1}"
_PYTORCHCV_ORIGINAL = _units(
    shortcut=f"{_PYTORCHCV_UNIT}.identity_conv.conv",
    shortcut_norm=f"{_PYTORCHCV_UNIT}.identity_conv.bn",
    norm=f"{_PYTORCHCV_UNIT}.body.conv{{i}}.bn",
    conv=f"{_PYTORCHCV_UNIT}.body.conv{{i}}.conv",
)
_PYTORCHCV_PREACT = _units(
    pre=f"{_PYTORCHCV_UNIT}.body.conv1.bn",
    shortcut=f"{_PYTORCHCV_UNIT}.identity_conv",
    norm=f"{_PYTORCHCV_UNIT}.body.conv{{i+1}}.bn",
    conv=f"{_PYTORCHCV_UNIT}.body.conv{{i}}.conv",
)
_PYTORCHCV = Dialect(dimension_change="projection", shared_preactivation="channel_change", stride_position="spatial")
_PYTORCHCV_FIRST = replace(_PYTORCHCV, stride_position="first")
_UNSEEN = "bottlenecks stride in their first 1x1 convolution, as in {} (those of {}b stride in the 3x3)"
_ONLY_B = (14, 26, 38, 269)
PYTORCHCV = (
    Table(
        "resnet of pytorchcv for ImageNet",
        (
            ("stem.conv", "features.init_block.conv.conv"),
            ("stem.norm", "features.init_block.conv.bn"),
            *_PYTORCHCV_ORIGINAL,
            (LINEAR, "output"),
        ),
        "original",
        _PYTORCHCV_FIRST,
        IMAGENET_STEM,
        _UNSEEN.format("resnet50", "resnet50"),
        _ONLY_B,
    ),
    Table(
        "preresnet of pytorchcv for ImageNet",
        (
            ("stem.conv", "features.init_block.conv"),
            ("stem.norm", "features.init_block.bn"),
            *_PYTORCHCV_PREACT,
            ("head.norm", "features.post_activ.bn"),
            (LINEAR, "output"),
        ),
        "preact",
        _PYTORCHCV_FIRST,
        {7: StemSpec(width=64, kernel=7, stride=2, activated=True, first_preactivated=True)},
        _UNSEEN.format("preresnet50", "preresnet50"),
        _ONLY_B,
    ),
    Table(
        "resnet of pytorchcv for CIFAR",
        (
            ("stem.conv", "features.init_block.conv"),
            ("stem.norm", "features.init_block.bn"),
            *_PYTORCHCV_ORIGINAL,
            (LINEAR, "output"),
        ),
        "original",
        _PYTORCHCV,
        CIFAR_STEM,
    ),
    Table(
        "preresnet of pytorchcv for CIFAR",
        (
            ("stem.conv", "features.init_block"),
            *_PYTORCHCV_PREACT,
            ("head.norm", "features.post_activ.bn"),
            (LINEAR, "output"),
        ),
        "preact",
        _PYTORCHCV,
        CIFAR_STEM,
    ),
)
KERAS = (
    Table(
        "ResNetV2 of Keras",
        (
            ("stem.conv", "conv1_conv"),
            *_units(
                pre="conv{s+2}_block{u+1}_preact_bn",
                shortcut="conv{s+2}_block{u+1}_0_conv",
                norm="conv{s+2}_block{u+1}_{i}_bn",
                conv="conv{s+2}_block{u+1}_{i}_conv",
            ),
            ("head.norm", "post_bn"),
            (LINEAR, "predictions"),
        ),
        "preact",
        peers.KERAS,
        {7: replace(peers.RAW_STEM, pool_padding="zero")},
    ),
    *(
        Table(
            f"cifar10_resnet.py of Keras, version {version}",
            (),
            order,
            peers.KERAS_CIFAR,
            CIFAR_STEM,
            ordinal=True,
        )
        for version, order in ((1, "original"), (2, "preact"))
    ),
)
TABLES: dict[str, tuple[Table, ...]] = {
    "timm": (TIMM, TORCHVISION),
    "torchvision": (TORCHVISION,),
    "pytorchcv": PYTORCHCV,
    "keras": KERAS,
}


# --- from shapes to a specification -------------------------------------------------------------------------------

_UNIT_LAYER = re.compile(r"stages\.(\d+)\.units\.(\d+)\.(.+)")


def infer(shapes: Shapes, table: Table) -> NetSpec:
    """The network that has tensors of these shapes, as a table's library builds it.

    Args:
        shapes: of tensors, by our names.
        table: says what shapes do not tell.

    Raises:
        UserError: no network has such tensors; what is missing or odd is named.
    """
    conv = _of(shapes, "stem.conv.weight", 4)
    stem = table.stems.get(conv[2])
    if stem is None:
        sizes = " and ".join(f"{size}x{size}" for size in table.stems)
        raise UserError(f"the first convolution is {conv[2]}x{conv[3]}, and {table.title} has {sizes}")
    counts: dict[int, int] = {}
    for name in shapes:
        if match := _UNIT_LAYER.match(name):
            counts[int(match[1])] = max(counts.get(int(match[1]), 0), int(match[2]) + 1)
    if sorted(counts) != list(range(len(counts))) or not counts:
        raise UserError(f"stages {sorted(counts)} have tensors; they must be counted without a gap from the first")
    kinds: dict[tuple[int, ...], UnitKind] = {(3, 3): "basic", (1, 3, 1): "bottleneck", (3,): "single"}
    first = _residual(shapes, 0, 0)
    kernels = tuple(shape[2] for shape in first)
    if kernels not in kinds:
        raise UserError(
            f"the first unit has convolutions of kernel sizes {kernels}; there are {', '.join(map(str, kinds))}"
        )
    kind, stages, ratios = kinds[kernels], [], []
    for stage, count in sorted(counts.items()):
        found = _residual(shapes, stage, 0)
        width = found[-1][0]
        ratios.append(width // found[0][0] if kind == "bottleneck" else 1)
        late = table.dialect.strided_unit == "last"
        stride = 2 if (stage < len(counts) - 1 if late else stage > 0) else 1
        stages.append(StageSpec(num_units=count, width=width, stride=stride))
    if len(set(ratios)) > 1:
        stages = [replace(stage, bottleneck_ratio=ratio) for stage, ratio in zip(stages, ratios, strict=True)]
    linear = _of(shapes, f"{LINEAR}.weight", 2)
    projected = any(".join.shortcut.conv." in name for name in shapes)
    normed = any(".join.shortcut.norm." in name for name in shapes)
    ends_in_norm = bool(ORDERS[table.order].end)
    dialect = replace(
        table.dialect,
        dimension_change="projection" if projected else table.dialect.dimension_change,
        projection_norm="as_residual" if not projected or normed == ends_in_norm else "always" if normed else "never",
        last_activation=not ORDERS[table.order].pre or "head.norm.weight" in shapes,
        conv_bias=_biases(shapes, len(kernels)),
    )
    found = NetSpec(
        stem=replace(stem, width=conv[0]),
        stages=tuple(stages),
        unit=UnitSpec(kind=kind, order=ORDERS[table.order], bottleneck_ratio=ratios[0] if kind == "bottleneck" else 4),
        dialect=dialect,
        in_channels=conv[1],
        num_classes=linear[0],
    )
    if found.depth in table.spatial_depths:
        return replace(found, dialect=replace(dialect, stride_position="spatial"))
    return found


def _of(shapes: Shapes, name: str, ndim: int) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"there is no {name}")
    if len(shapes[name]) != ndim or 0 in shapes[name]:
        raise UserError(f"{name} has shape {shapes[name]}; it must have {ndim} dimensions")
    return shapes[name]


def _residual(shapes: Shapes, stage: int, unit: int) -> list[tuple[int, ...]]:
    """The shapes of the convolutions of a unit's residual branch."""
    prefix, found = f"stages.{stage}.units.{unit}.residual.conv", list[tuple[int, ...]]()
    while (name := f"{prefix}{len(found) + 1}.weight") in shapes:
        found.append(_of(shapes, name, 4))
    if not found:
        raise UserError(f"there is no {prefix}1.weight")
    return found


def _biases(shapes: Shapes, last: int) -> tuple[BiasPosition, ...]:
    found: dict[BiasPosition, bool] = {
        "stem": "stem.conv.bias" in shapes,
        "shortcut": any(name.endswith(".join.shortcut.conv.bias") for name in shapes),
        "residual_inner": any(f".residual.conv{i}.bias" in name for name in shapes for i in range(1, last)),
        "residual_last": any(name.endswith(f".residual.conv{last}.bias") for name in shapes),
    }
    return tuple(position for position, there in found.items() if there)


def differences(given: NetSpec, other: NetSpec) -> list[str]:
    """The fields in which two networks differ that compute from the same tensors, each with both values.

    What has no effect in them (where a bottleneck strides, in a network without bottlenecks) is no difference; how fast
    running statistics move is none for a network that is trained already.
    """
    found = []

    def compare(name: str, mine: object, theirs: object) -> None:
        if mine != theirs:
            found.append(f"{name}={_word(mine)}, there {_word(theirs)}")

    for name in StemSpec.__dataclass_fields__:
        if name not in ("activated", "first_preactivated", "pool"):
            compare(f"stem.{name}", getattr(given.stem, name), getattr(other.stem, name))
    compare("stem.pool", given.stem.pooled, other.stem.pooled)
    compare("stem.activated", _stem(given), _stem(other))
    compare("unit.kind", given.unit.kind, other.unit.kind)
    for name in ("pre", "between", "end", "after_add"):
        compare(f"unit.order.{name}", getattr(given.unit.order, name), getattr(other.unit.order, name))
    mine, theirs = ([shape for _, _, shape in spec.units()] for spec in (given, other))
    if len(mine) != len(theirs):
        compare("stages", len(mine), len(theirs))
        return found
    for what, field_name in (
        ("stages' width", "width"),
        ("bottleneck_ratio: inner width", "inner_width"),
        ("dialect.strided_unit: stride", "stride"),
        ("stem.first_preactivated: first activation", "pre"),
        ("unit.shortcut", "shortcut"),
    ):
        for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if getattr(a, field_name) != getattr(b, field_name):
                compare(f"{what} of unit {number + 1}", getattr(a, field_name), getattr(b, field_name))
                break
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        projected = a.in_width != a.width or a.stride != 1
        if a.pre and projected and a.shared != b.shared:
            compare(
                f"dialect.shared_preactivation={given.dialect.shared_preactivation!r}: unit {number + 1} shares",
                a.shared,
                b.shared,
            )
            break
    strides = any(shape.stride > 1 for shape in mine)
    names = ["dimension_change", "join_at_dimension_change", "norm_eps", "conv_bias"]
    names += ["stride_position"] if given.unit.kind == "bottleneck" and strides else []
    names += ["conv_padding"] if strides else []
    names += ["last_activation"] if given.unit.order.pre else []
    for name in names:
        a, b = getattr(given.dialect, name), getattr(other.dialect, name)
        if name == "conv_bias":
            a, b = set(a), set(b)
        if name == "join_at_dimension_change" and given.unit.shortcut == other.unit.shortcut:
            continue
        compare(f"dialect.{name}", a, b)
    return found


def _stem(spec: NetSpec) -> str:
    return "BR" if spec.stem.activated else spec.unit.order.stem


def _word(value: object) -> str:
    return repr(sorted(value)) if isinstance(value, set) else repr(value)


def in_definition_order(names: Iterable[str]) -> list[str]:
    """Names of layers with the numbers that Keras gives them, in that order: ``conv2d``, ``conv2d_1``, ..."""

    def key(name: str) -> tuple[str, int]:
        head, _, tail = name.rpartition("_")
        return (head, int(tail)) if head and tail.isdigit() else (name, 0)

    return sorted(names, key=key)
