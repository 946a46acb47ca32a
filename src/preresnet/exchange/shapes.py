"""From the shapes of tensors to the network that they are of, and where two networks compute differently."""

import re
from collections.abc import Mapping
from dataclasses import replace

from preresnet.exchange.tables import LINEAR, Table
from preresnet.paper.networks import ORDERS
from preresnet.spec import BiasPosition, NetSpec, StageSpec, StemSpec, UnitKind, UnitSpec, UserError

Shapes = Mapping[str, tuple[int, ...]]
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
