"""The network that a tree of Torch 7's ``nn`` modules is, and its tensors by our names."""

from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from preresnet.exchange.torch7 import DEPTH, Tensor, Thing
from preresnet.spec import BiasPosition, Dialect, NetSpec, Order, StageSpec, StemSpec, UnitKind, UnitSpec, UserError

MODULES = 100_000
NORMS = ("SpatialBatchNormalization", "SBatchNorm", "BatchNormalization")


def model_of(value: Any) -> Thing:
    """The network in what a file holds: itself, what a checkpoint calls ``model``, or what runs on several GPUs.

    Raises:
        UserError: there is none.
    """
    for _ in range(8):
        if isinstance(value, dict):
            value = next(
                (value[name] for name in ("model", "net", "network") if isinstance(value.get(name), Thing)), None
            )
        if not isinstance(value, Thing):
            break
        modules = value.get("modules")
        if value.kind.endswith("DataParallelTable") or (value.kind == "nn.Sequential" and _only(modules)):
            value = modules.get(1) if isinstance(modules, dict) else value.get("flattenedParams")
            continue
        if isinstance(modules, dict):
            return value
        break
    raise UserError("it holds no nn.Sequential; give the file of a trained network, not of its training")


def _only(modules: Any) -> bool:
    inner = modules.get(1) if isinstance(modules, dict) and len(modules) == 1 else None
    return isinstance(inner, Thing) and isinstance(inner.get("modules"), dict)


def children(thing: Thing) -> list[Thing]:
    """The modules in a container, in order."""
    modules = thing.get("modules")
    if not isinstance(modules, dict):
        return []
    found = [modules[number] for number in sorted(key for key in modules if isinstance(key, int))]
    if not all(isinstance(one, Thing) for one in found):
        raise UserError(f"a {thing.kind} holds something that is no module")
    return found


def parts(thing: Thing) -> list[Thing]:
    """The modules of nested sequences in order; a sequence that adds branches up is a unit, and stays whole."""
    found: list[Thing] = []
    waiting, seen = [(thing, 0)], 0
    while waiting:
        one, depth = waiting.pop()
        seen += 1  # also those that hold nothing: a module may be named in many places
        if one.kind != "nn.Sequential" or any(child.kind == "nn.CAddTable" for child in children(one)):
            found.append(one)
        else:
            waiting += [(child, depth + 1) for child in reversed(children(one))]
        if depth > DEPTH or seen + len(waiting) > MODULES:
            raise UserError(f"modules lie over {DEPTH} deep in each other, or there are over {MODULES:,}")
    return found


@dataclass
class Unit:
    """A residual unit as its modules say it: of each convolution, what is done before it."""

    convs: list[Thing]
    patterns: list[str]
    norms: list[list[Thing]]
    shared: bool
    shortcut: list[Thing]
    after: str
    after_norms: list[Thing]


def network_of(value: Any) -> tuple[NetSpec, dict[str, np.ndarray]]:
    """The network in what a file holds, and its tensors by our names.

    fb.resnet.torch's ``resnet.lua`` and ``preresnet.lua`` and resnet-1k-layers' networks, of any depth and width.

    Raises:
        UserError: it is none of these; what is in the way is named.
    """
    modules = parts(model_of(value))
    places = [number for number, one in enumerate(modules) if one.kind == "nn.Sequential"]
    if not places:
        raise UserError("no residual unit in it: no nn.Sequential with an nn.CAddTable")
    before, after = modules[: places[0]], modules[places[-1] + 1 :]
    if places != list(range(places[0], places[-1] + 1)):
        raise UserError("something stands between its residual units")
    units = [_unit(one) for one in modules[places[0] : places[-1] + 1]]
    (stem_conv, *_), stem_pattern, stem_norms = _line(before, "the stem")
    kinds: dict[tuple[int, ...], UnitKind] = {(3, 3): "basic", (1, 3, 1): "bottleneck", (3,): "single"}
    kernels = tuple(_number(one, "kW") for one in units[0].convs)
    if kernels not in kinds:
        raise UserError(
            f"its first unit has convolutions of kernel sizes {kernels}; there are {', '.join(map(str, kinds))}"
        )
    order = _order(units)
    pooled = any(_name(one) == "SpatialMaxPooling" for one in before)
    first = units[0].patterns[0]
    activated = stem_pattern[-1] == "BR" and (pooled or order.stem != "BR")
    linear = [one for one in after if _name(one) == "Linear"]
    if len(linear) != 1:
        raise UserError(f"it ends in {len(linear)} nn.Linear; a classifier has one")
    head = _letters([one for one in after if _name(one) in NORMS or _name(one) == "ReLU"])
    stages: list[list[Unit]] = []
    for unit in units:
        if not stages or _number(unit.convs[-1], "nOutputPlane") != _number(stages[-1][-1].convs[-1], "nOutputPlane"):
            stages.append([])
        stages[-1].append(unit)
    ratios = [
        _number(stage[0].convs[-1], "nOutputPlane") // _number(stage[0].convs[0], "nOutputPlane") for stage in stages
    ]
    bottleneck = kinds[kernels] == "bottleneck"
    strided = next((unit for unit in units if _stride(unit) > 1), None)
    projected = [unit for unit in units if _convs(unit.shortcut)]
    normed = any(_name(one) in NORMS for unit in projected for one in unit.shortcut)
    spec = NetSpec(
        stem=StemSpec(
            width=_number(stem_conv, "nOutputPlane"),
            kernel=_number(stem_conv, "kW"),
            stride=_number(stem_conv, "dW"),
            activated=activated,
            pool=None if pooled == activated else pooled,
            first_preactivated=activated and bool(order.pre) and bool(first),
        ),
        stages=tuple(
            StageSpec(
                num_units=len(stage),
                width=_number(stage[0].convs[-1], "nOutputPlane"),
                stride=_stride(stage[0]),
                bottleneck_ratio=ratio if bottleneck and len(set(ratios)) > 1 else None,
            )
            for stage, ratio in zip(stages, ratios, strict=True)
        ),
        unit=UnitSpec(kind=kinds[kernels], order=order, bottleneck_ratio=ratios[0] if bottleneck else 4),
        dialect=Dialect(
            dimension_change="projection" if projected else "zero_pad",
            projection_norm="as_residual"
            if not projected or normed == bool(order.end)
            else "always"
            if normed
            else "never",
            stride_position="spatial" if strided and bottleneck and _number(strided.convs[0], "dW") == 1 else "first",
            last_activation=not order.pre or head == order.pre,
            conv_bias=_biases(stem_conv, units),
            norm_eps=_eps(
                [norm for norms in (*stem_norms, *(one for unit in units for one in unit.norms)) for norm in norms]
            ),
        ),
        in_channels=_number(stem_conv, "nInputPlane"),
        num_classes=len(_tensor(linear[0], "weight")),
    )
    spec = _sharing(spec, units)
    _check(spec, units)
    return spec, _tensors(spec, before, units, after)


def _name(thing: Thing) -> str:
    name = thing.kind.rpartition(".")[2]
    return "SpatialConvolution" if name == "SpatialConvolutionMM" else name


def _number(thing: Thing, name: str) -> int:
    value = thing.get(name)
    if not isinstance(value, float) or not value.is_integer() or not 0 <= value < 1 << 20:
        raise UserError(f"a {thing.kind} has {name}={value!r}; it must be a whole number")
    return int(value)


def _convs(modules: list[Thing]) -> list[Thing]:
    return [one for one in modules if _name(one) == "SpatialConvolution"]


def _letters(modules: list[Thing]) -> str:
    letters = {"ReLU": "R", **dict.fromkeys(NORMS, "B")}
    return "".join(letters[_name(one)] for one in modules)


def _line(modules: list[Thing], where: str) -> tuple[list[Thing], list[str], list[list[Thing]]]:
    """The convolutions of a branch; and before each and behind the last, norms and ReLUs as letters, and the norms."""
    convs: list[Thing] = []
    lines: list[list[Thing]] = [[]]
    for one in modules:
        if _name(one) == "SpatialConvolution":
            convs.append(one)
            lines.append([])
        elif _name(one) in NORMS or _name(one) == "ReLU":
            lines[-1].append(one)
        elif _name(one) == "SpatialMaxPooling" and where == "the stem":
            size = [_number(one, name) for name in ("kW", "kH", "dW", "dH", "padW", "padH")]
            if size != [3, 3, 2, 2, 1, 1]:
                raise UserError(f"its pooling has kW, kH, dW, dH, padW, padH = {size}; it must be 3, 3, 2, 2, 1, 1")
        else:
            raise UserError(f"a {one.kind} in {where}, which no network here has")
    if not convs:
        raise UserError(f"no convolution in {where}")
    for conv in convs:
        kernel = _number(conv, "kW")
        square = kernel == _number(conv, "kH") and _number(conv, "dW") == _number(conv, "dH")
        if (
            not square
            or [_number(conv, "padW"), _number(conv, "padH")] != [kernel // 2] * 2
            or (conv.get("groups") or 1) != 1
        ):
            raise UserError(f"a {conv.kind} in {where} is not square, padded by half its kernel and of one group")
    return convs, [_letters(line) for line in lines], [[one for one in line if _name(one) != "ReLU"] for line in lines]


def _unit(thing: Thing) -> Unit:
    modules = children(thing)
    names = [_name(one) for one in modules]
    if (
        names.count("ConcatTable") != 1
        or names.count("CAddTable") != 1
        or names.index("CAddTable") != names.index("ConcatTable") + 1
    ):
        raise UserError(f"a unit of {', '.join(names)}; it must have one ConcatTable with a CAddTable behind it")
    at = names.index("ConcatTable")
    before, after = modules[:at], modules[at + 2 :]
    branches = [parts(one) for one in children(modules[at])]
    if len(branches) != 2:
        raise UserError(f"a unit with {len(branches)} branches; it must have two")
    if len(_convs(branches[1])) > len(_convs(branches[0])):
        branches.reverse()
    convs, patterns, norms = _line(branches[0], "a unit")
    if before and patterns[0]:
        raise UserError("a unit with norms before its branches and at the start of one; it must have one of them")
    if before:
        patterns[0], norms[0] = (
            _line([*before, convs[0]], "a unit")[1][0],
            [one for one in before if _name(one) in NORMS],
        )
    _, _, behind = _line([convs[0], *after], "a unit")
    return Unit(convs, patterns, norms, bool(before), branches[1], _line([convs[0], *after], "a unit")[1][1], behind[1])


def _order(units: list[Unit]) -> Order:
    one = next((unit for unit in units if unit.patterns[0]), units[-1])
    between = set(one.patterns[1:-1]) or {"BR"}
    if len(between) > 1:
        raise UserError(f"its convolutions have {sorted(between)} between them; it must be the same everywhere")
    try:
        return Order(pre=one.patterns[0], between=between.pop(), end=one.patterns[-1], after_add=one.after)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(
            f"norms (B) and ReLUs (R) of its units are in no known order: {' '.join(str(error).split())}"
        ) from None


def _stride(unit: Unit) -> int:
    return max(_number(conv, "dW") for conv in unit.convs)


def _biases(stem: Thing, units: list[Unit]) -> tuple[BiasPosition, ...]:
    def there(convs: list[Thing]) -> bool:
        return any(isinstance(conv.get("bias"), Tensor) for conv in convs)

    found: dict[BiasPosition, bool] = {
        "stem": there([stem]),
        "shortcut": there([conv for unit in units for conv in _convs(unit.shortcut)]),
        "residual_inner": there([conv for unit in units for conv in unit.convs[:-1]]),
        "residual_last": there([unit.convs[-1] for unit in units]),
    }
    return tuple(position for position, is_there in found.items() if is_there)


def _eps(norms: list[Thing]) -> float:
    found = {norm.get("eps") for norm in norms}
    if len(found) != 1 or not isinstance(eps := found.pop(), float):
        raise UserError(f"its norms have eps {sorted(map(str, found))}; it must be the same everywhere")
    return eps


def _sharing(spec: NetSpec, units: list[Unit]) -> NetSpec:
    """With the rule that tells which units share their first activation between both branches."""
    for rule in get_args(Dialect.__dataclass_fields__["shared_preactivation"].type):
        made = replace(spec, dialect=replace(spec.dialect, shared_preactivation=rule))
        if all(
            shape.shared == unit.shared or not shape.pre
            for (_, _, shape), unit in zip(made.units(), units, strict=True)
        ):
            return made
    raise UserError(
        f"units {[n for n, unit in enumerate(units, 1) if unit.shared]} share their first activation between both "
        "branches, which is no rule that is known"
    )


def _check(spec: NetSpec, units: list[Unit]) -> None:
    """Hold every unit against the specification."""
    for number, ((_, _, shape), unit) in enumerate(zip(spec.units(), units, strict=True), 1):
        found = {
            "in_width": _number(unit.convs[0], "nInputPlane"),
            "width": _number(unit.convs[-1], "nOutputPlane"),
            "stride": _stride(unit),
            "pre": unit.patterns[0],
        }
        for name, value in found.items():
            if value != getattr(shape, name):
                raise UserError(
                    f"unit {number} has {name} {value!r}; {getattr(shape, name)!r} would follow from the others"
                )
        order = spec.unit.order
        if {*unit.patterns[1:-1]} - {order.between} or unit.patterns[-1] != order.end or unit.after != order.after_add:
            raise UserError(f"unit {number} has its norms and ReLUs in another order than the others")
        names = [_name(one) for one in unit.shortcut if _name(one) not in (*NORMS, "Identity")]
        changes = shape.in_width != shape.width or shape.stride != 1
        projected = spec.dialect.dimension_change == "projection" and shape.in_width != shape.width
        pooled = [["SpatialAveragePooling", "Concat"], ["SpatialAveragePooling", "Padding"]]
        wanted = [["SpatialConvolution"]] if projected else pooled if changes else [[]]
        if names not in wanted:
            raise UserError(f"unit {number} has {_words(names)} as its shortcut; it must be {_words(wanted[0])}")
        if projected and _number(_convs(unit.shortcut)[0], "dW") != shape.stride:
            raise UserError(f"unit {number}: its shortcut does not stride as its residual branch does")


def _words(names: list[str]) -> str:
    return ", ".join(names) or "nothing but an nn.Identity"


def _tensors(spec: NetSpec, before: list[Thing], units: list[Unit], after: list[Thing]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def conv(name: str, thing: Thing) -> None:
        weight = _tensor(thing, "weight")
        shape = tuple(_number(thing, one) for one in ("nOutputPlane", "nInputPlane", "kH", "kW"))
        if weight.size != int(np.prod(shape)):
            raise UserError(f"the weight of a {thing.kind} has {weight.size} values; its planes need {shape}")
        found[f"{name}.weight"] = weight.reshape(shape)
        if isinstance(thing.get("bias"), Tensor):
            found[f"{name}.bias"] = _tensor(thing, "bias")

    def norm(name: str, thing: Thing) -> None:
        for leaf in ("weight", "bias", "running_mean"):
            found[f"{name}.{leaf}"] = _tensor(thing, leaf).reshape(-1)
        if isinstance(thing.get("running_var"), Tensor):
            found[f"{name}.running_var"] = _tensor(thing, "running_var").reshape(-1)
        else:  # cudnn's norm of 2015: 1 / sqrt(var + eps)
            found[f"{name}.running_var"] = (1 / _tensor(thing, "running_std") ** 2 - spec.dialect.norm_eps).reshape(-1)

    def norms(name: str, things: list[Thing]) -> None:
        for thing in things:
            norm(name, thing)

    (stem, *_), _, stem_norms = _line(before, "the stem")
    conv("stem.conv", stem)
    norms("stem.norm", stem_norms[-1])
    for (stage, index, _), unit in zip(spec.units(), units, strict=True):
        name = f"stages.{stage}.units.{index}"
        norms(f"{name}.pre", unit.norms[0])
        for number, one in enumerate(unit.convs, 1):
            conv(f"{name}.residual.conv{number}", one)
            norms(f"{name}.residual.norm{number}", unit.norms[number])
        for one in unit.shortcut:
            if _name(one) == "SpatialConvolution":
                conv(f"{name}.join.shortcut.conv", one)
            elif _name(one) in NORMS:
                norm(f"{name}.join.shortcut.norm", one)
        norms(f"{name}.after_add", unit.after_norms)
    norms("head.norm", [one for one in after if _name(one) in NORMS])
    linear = next(one for one in after if _name(one) == "Linear")
    found["head.linear.weight"], found["head.linear.bias"] = _tensor(linear, "weight"), _tensor(linear, "bias")
    return found


def _tensor(thing: Thing, name: str) -> np.ndarray:
    value = thing.get(name)
    if not isinstance(value, Tensor):
        raise UserError(f"a {thing.kind} has no {name}; it must be saved with its weights (clearState() keeps them)")
    return value.array()
