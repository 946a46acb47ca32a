"""Every network of the paper as an exact specification, by a name whose grammar covers more."""

import difflib
import re
from dataclasses import replace

from preresnet.spec import (
    ConstantScale,
    Conv1x1,
    Dialect,
    Dropout,
    ExclusiveGate,
    Identity,
    NetSpec,
    Order,
    Shortcut,
    ShortcutOnlyGate,
    StageSpec,
    StemSpec,
    UnitKind,
    UnitSpec,
    UserError,
)

# Fig. 4, (a) to (e)
ORDERS: dict[str, Order] = {
    "original": Order(pre="", between="BR", end="B", after_add="R"),
    "bn-after": Order(pre="", between="BR", end="", after_add="BR"),
    "relu-before": Order(pre="", between="BR", end="BR", after_add=""),
    "relu-only": Order(pre="R", between="BR", end="B", after_add=""),
    "preact": Order(pre="BR", between="BR", end="", after_add=""),
}

# Section 3 searched the initial gate bias from 0 to -10.
GATE_BIASES = tuple(range(0, -11, -1))

# Fig. 2 (b) to (f) with every setting of Table 1. A gate's number is its initial bias: "exclusive-gate-6" starts at -6.
SHORTCUTS: dict[str, Shortcut] = {
    "scale-0-1": ConstantScale(shortcut=0.0, residual=1.0),
    "scale-0.5-1": ConstantScale(shortcut=0.5, residual=1.0),
    "scale-0.5-0.5": ConstantScale(shortcut=0.5, residual=0.5),
    **{f"exclusive-gate-{-bias}": ExclusiveGate(bias=float(bias)) for bias in GATE_BIASES},
    **{f"shortcut-gate-{-bias}": ShortcutOnlyGate(bias=float(bias)) for bias in GATE_BIASES},
    "conv1x1": Conv1x1(),
    "dropout-0.5": Dropout(p=0.5),
}

CIFAR_DEPTHS = (20, 32, 44, 56, 110, 164, 1001, 1202)
CIFAR_BOTTLENECK_DEPTHS = (164, 1001)
CIFAR_INNER_WIDTHS = (16, 32, 64)
PLAIN_DEPTHS = (20, 32, 44, 56, 110)

IMAGENET_UNITS: dict[int, tuple[UnitKind, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),  # footnote 3: 152 with 16 more units at 28x28
}
IMAGENET_INNER_WIDTHS = (64, 128, 256, 512)

_UNITS = {"basic": "basic", "bottleneck": "bottleneck", "1layer": "single"}
_LAYERS: dict[str, int] = {"basic": 2, "bottleneck": 3, "single": 1}
_NAME = re.compile(
    r"resnet(?P<depth>[1-9]\d*)"
    rf"-(?P<order>{'|'.join(ORDERS)}|plain)"
    rf"(?:-(?P<unit>{'|'.join(_UNITS)}))?"
    rf"(?:-(?P<shortcut>{'|'.join(map(re.escape, sorted(SHORTCUTS, key=len, reverse=True)))}))?"
    r"(?P<projected>-projected)?"
    r"(?P<spatial>-spatial)?"
)
NAME_FORM = (
    "resnet<depth>-<order>[-basic|-bottleneck|-1layer][-<shortcut>][-projected][-spatial], with an order of "
    f"{', '.join(ORDERS)}, plain"
)


def network_names() -> list[str]:
    """Every network of the paper by name: CIFAR, Table 1's shortcuts at 110 layers, ImageNet."""
    cifar = [f"resnet{depth}-{order}" for depth in CIFAR_DEPTHS for order in ORDERS]
    cifar += [f"resnet110-{order}-1layer" for order in ("original", "preact")]
    cifar += [f"resnet110-{order}-projected" for order in ("original", "preact")]
    cifar += [f"resnet{depth}-plain" for depth in PLAIN_DEPTHS]
    cifar += [f"resnet110-original-{shortcut}" for shortcut in SHORTCUTS]
    imagenet = [f"resnet{depth}-{order}" for depth in IMAGENET_UNITS for order in ORDERS]
    return [*cifar, *imagenet, "resnet200-preact-spatial"]


def network(name: str, num_classes: int | None = None, in_channels: int = 3) -> NetSpec:
    """The specification that a name stands for.

    Beside the names of `network_names`, any depth 6n+2 (basic), 9n+2 (bottleneck) or 3n+2 (single, ``-1layer``) is
    understood. Without a unit in the name, 18, 34, 50, 101, 152 and 200 are the ImageNet networks, and a depth that
    is both 6n+2 and 9n+2 is basic, except 164; ``resnet164-preact-basic`` says otherwise. ``-projected`` puts 1x1
    convolutions on shortcuts where channels change (option B of the 2015 paper), and ``-spatial`` lets bottlenecks
    stride in their 3x3 convolution instead of the first 1x1 (fb.resnet.torch).

    Paper: Sections 3 to 5 and the appendix. Depth rules: 2015 paper, Section 4.2.

    Args:
        name: for example ``resnet164-preact`` or ``resnet110-original-exclusive-gate-6``.
        num_classes: outputs; 1,000 for an ImageNet network and 10 otherwise when not given.
        in_channels: channels of an input image.

    Raises:
        ValueError: no such name (the nearest are suggested), or no such depth (the nearest depths are).
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"no network {name!r}{_suggest(name)}; the form is {NAME_FORM}")
    plain = match["order"] == "plain"
    if plain and match["shortcut"]:
        raise UserError(f"no network {name!r}: a plain network has no shortcut to modify; drop -{match['shortcut']}")
    order = ORDERS["original" if plain else match["order"]]
    shortcut = SHORTCUTS["scale-0-1"] if plain else SHORTCUTS.get(match["shortcut"] or "", Identity())
    depth = int(match["depth"])
    build = _imagenet if depth in IMAGENET_UNITS and match["unit"] is None else _cifar
    spec = build(depth, match["unit"], order, shortcut)
    if match["projected"]:
        spec = replace(spec, dialect=replace(spec.dialect, dimension_change="projection"))
    if match["spatial"]:
        if spec.unit.kind != "bottleneck":
            raise UserError(f"no network {name!r}: only a bottleneck can stride in another convolution; drop -spatial")
        spec = replace(spec, dialect=replace(spec.dialect, stride_position="spatial"))
    return replace(spec, num_classes=spec.num_classes if num_classes is None else num_classes, in_channels=in_channels)


def at_depth(name: str, depth: int) -> str:
    """The name of the same network with another number of layers; the kind of its residual units stays.

    Args:
        name: for example ``resnet164-preact``.
        depth: for example 29, which gives ``resnet29-preact-bottleneck``.

    Raises:
        ValueError: no such name, or no such depth for its kind of unit.
    """
    spec = network(name)
    match = _NAME.fullmatch(name)
    assert match is not None
    is_imagenet = spec.stem.activated
    if is_imagenet and depth not in IMAGENET_UNITS:
        raise UserError(f"no ImageNet network of {depth} layers; there are {', '.join(map(str, IMAGENET_UNITS))}")
    order, shortcut, projected = match["order"], match["shortcut"], match["projected"] or ""
    is_bottleneck = IMAGENET_UNITS[depth][0] == "bottleneck" if is_imagenet else True  # of 18 and 34 layers: basic
    end = (f"-{shortcut}" if shortcut else "") + projected + ((match["spatial"] or "") if is_bottleneck else "")
    plain = f"resnet{depth}-{order}{end}"
    kind = next(word for word, kind in _UNITS.items() if kind == spec.unit.kind)
    explicit = f"resnet{depth}-{order}-{kind}{end}"
    if is_imagenet or (depth not in IMAGENET_UNITS and _default_kind(depth) == spec.unit.kind):
        explicit = plain
    network(explicit)
    return explicit


def _imagenet(depth: int, _unit: str | None, order: Order, shortcut: Shortcut) -> NetSpec:
    kind, units = IMAGENET_UNITS[depth]
    expansion = 4 if kind == "bottleneck" else 1
    return NetSpec(
        stem=StemSpec(width=64, kernel=7, stride=2, activated=True),
        stages=tuple(
            StageSpec(num_units=count, width=inner * expansion, stride=1 if index == 0 else 2)
            for index, (count, inner) in enumerate(zip(units, IMAGENET_INNER_WIDTHS, strict=True))
        ),
        unit=UnitSpec(kind=kind, order=order, shortcut=shortcut),
        # option B; fb.resnet.torch uses it for 18 and 34 layers too
        dialect=Dialect(dimension_change="projection"),
        num_classes=1000,
    )


def _cifar(depth: int, unit: str | None, order: Order, shortcut: Shortcut) -> NetSpec:
    kind: UnitKind = _UNITS[unit] if unit else _default_kind(depth)  # type: ignore[assignment]
    step = 3 * _LAYERS[kind]
    if depth < step + 2 or (depth - 2) % step:
        lower = max(1, (depth - 2) // step)
        raise UserError(
            f"no {kind} network of {depth} layers: the depth must be {step}n+2; "
            f"the nearest are {lower * step + 2} and {(lower + 1) * step + 2}"
        )
    expansion = 4 if kind == "bottleneck" else 1
    return NetSpec(
        stem=StemSpec(width=16),
        stages=tuple(
            StageSpec(num_units=(depth - 2) // step, width=inner * expansion, stride=1 if index == 0 else 2)
            for index, inner in enumerate(CIFAR_INNER_WIDTHS)
        ),
        unit=UnitSpec(kind=kind, order=order, shortcut=shortcut),
        dialect=Dialect(dimension_change="projection" if kind == "bottleneck" else "zero_pad"),
    )


def _default_kind(depth: int) -> UnitKind:
    is_basic = (depth - 2) % 6 == 0 and depth not in CIFAR_BOTTLENECK_DEPTHS
    return "bottleneck" if not is_basic and (depth - 2) % 9 == 0 else "basic"


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name, network_names(), n=3)
    return f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
