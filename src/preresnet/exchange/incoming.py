"""Networks of other libraries brought in: every tensor is used once, or an error names it."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preresnet.exchange import keras_files, torch7, torch7_modules, torch_files
from preresnet.exchange.shapes import differences, infer
from preresnet.exchange.tables import LINEAR, TABLES, Table
from preresnet.exchange.torch_files import SHOWN, some
from preresnet.model.network import Network, meta
from preresnet.paper.networks import ORDERS, network, network_names
from preresnet.spec import Dialect, NetSpec, StemSpec, UserError

COUNTER = "num_batches_tracked"
FORMATS = (*TABLES, "torch7", "safetensors")


@dataclass(frozen=True)
class Brought:
    """A network from a file of another library.

    Args:
        model: in evaluation mode, in float32.
        title: of the table that its names are of.
        said: what was found and assumed, a sentence each.
        digest: SHA-256 of the file.
        num_tensors: that were read, each used once.
    """

    model: Network
    title: str
    said: tuple[str, ...]
    digest: str
    num_tensors: int


def bring(path: Path, source: str, given: NetSpec | str | None = None) -> Brought:
    """Read a network.

    Args:
        path: of the file.
        source: one of `FORMATS`.
        given: the network, or the name of one, with as many classes as the file has; None: as its tensors say.

    Raises:
        UserError: no whole file of that format, or tensors that are missing, left over or of another shape.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; give a file of weights")
    said: list[str] = []
    if source == "torch7":
        found, arrays = _named(path, lambda: torch7_modules.network_of(torch7.read(path)))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        names, title = {layer: layer for layer in layers_of(tensors)}, "a Torch 7 network"
        spec = _specified(given, tensors, LINEAR, "stem.conv")
        if spec is not None and (apart := differences(spec, found)):
            raise UserError(f"{path} holds another network than --spec: {'; '.join(apart[:SHOWN])}")
        found = spec or found
    else:
        tensors, layers = _read(path, source, said)
        table = _table(path, source, tensors)
        title = table.title
        ends = (_of_kind(tensors, 2)[-1:], _of_kind(tensors, 4)[:1]) if table.ordinal else None
        linear, stem = (one[0] if one else "" for one in ends) if ends else map(table.theirs, (LINEAR, "stem.conv"))
        spec = _specified(given, tensors, linear or "", stem or "")
        names, found = _named(path, lambda: _recognised(tensors, layers, table, spec))
        said += _assumed(found, table) if spec is None else []
    state = fit(found, tensors, names, str(path))
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path} holds values that are infinite or not numbers, first in {name}; export it again")
    with torch.device("meta"):
        model = Network(found)
    model.load_state_dict(state, assign=True)
    known = known_name(found)
    said.insert(0, f"{title}: {known or f'{found.depth} layers'}, {found.num_classes} classes")
    model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Brought(model, title, tuple(said), digest, len(tensors))


def _specified(given: NetSpec | str | None, tensors: Mapping[str, Tensor], linear: str, stem: str) -> NetSpec | None:
    """The network that was asked for; of one by name, classes and channels are as many as the tensors have."""
    if not isinstance(given, str):
        return given
    last, first = tensors.get(f"{linear}.weight"), tensors.get(f"{stem}.weight")
    channels = first.shape[1] if first is not None and first.ndim == 4 else 3
    return network(given, num_classes=None if last is None or not last.ndim else last.shape[0], in_channels=channels)


def _named(path: Path, do: Any) -> Any:
    """What a call gives; an error of it begins with the file's name."""
    try:
        return do()
    except UserError as error:
        words = str(error)
        raise UserError(words if str(path) in words else f"{path}: {words}") from None


# --- reading ------------------------------------------------------------------------------------------------------


def _read(path: Path, source: str, said: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if source == "keras":
        arrays, layers = keras_files.read(path)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, layers
    packed = path.suffix == ".safetensors" or source == "safetensors"
    found = torch_files.read_safetensors(path) if packed else torch_files.read_pickled(path, said)
    for name, tensor in found.items():
        if tensor.numel() * tensor.element_size() > path.stat().st_size:  # a view of one number as if of many
            raise UserError(f"{path}: {name} of shape {tuple(tensor.shape)} is larger than the file; export it again")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}, {}


# --- recognising --------------------------------------------------------------------------------------------------


def layers_of(names: Iterable[str]) -> list[str]:
    """The layers that tensors are of, each once, in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def own_table(layers: Iterable[str]) -> Table:
    """That of our own names, for files that do not say which network they are of."""
    layers = list(layers)
    preact = any(layer.endswith(".pre") for layer in layers)
    activated = preact and "stem.norm" in layers
    stems = {
        3: StemSpec(kernel=3),
        7: StemSpec(
            kernel=7, stride=2, activated=activated or not preact, pool=None if activated or not preact else True
        ),
    }
    return Table("preresnet", tuple((one, one) for one in layers), "preact" if preact else "original", Dialect(), stems)


def _table(path: Path, source: str, tensors: Mapping[str, Tensor]) -> Table:
    layers = layers_of(tensors)
    if source == "safetensors":
        return own_table(layers)
    tables = TABLES[source]
    known = {table.title: sum(table.ours(layer) is not None for layer in layers) for table in tables}
    best = max(tables, key=lambda table: known[table.title])
    if known[best.title]:
        return best
    numbered = [table for table in tables if table.ordinal]
    if numbered and any(layer.startswith("conv2d") for layer in layers):
        return numbered[_version(tensors) - 1]
    raise UserError(
        f"{path}: none of its layers ({some(layers)}) is one of {' or '.join(one.title for one in tables)}; "
        "give another --from"
    )


def _version(tensors: Mapping[str, Tensor]) -> int:
    convs = _of_kind(tensors, 4)
    return 2 if len(convs) > 1 and tensors[f"{convs[1]}.weight"].shape[2] == 1 else 1


def _of_kind(tensors: Mapping[str, Tensor], ndim: int) -> list[str]:
    """Numbered layers whose weights have so many dimensions, in the order of definition."""
    return _in_definition_order(
        name.removesuffix(".weight") for name, one in tensors.items() if name.endswith(".weight") and one.ndim == ndim
    )


def _in_definition_order(names: Iterable[str]) -> list[str]:
    """Names of layers with the numbers that Keras gives them, in that order: ``conv2d``, ``conv2d_1``, ..."""

    def key(name: str) -> tuple[str, int]:
        head, _, tail = name.rpartition("_")
        return (head, int(tail)) if head and tail.isdigit() else (name, 0)

    return sorted(names, key=key)


def _recognised(
    tensors: Mapping[str, Tensor], layers: Mapping[str, Any], table: Table, spec: NetSpec | None
) -> tuple[dict[str, str], NetSpec]:
    """Their layer for each of ours, and the network."""
    if table.ordinal:
        numbered = _numbered(tensors)
        found = spec or infer({name: tuple(tensors[key].shape) for name, key in numbered.items()}, table)
        return _by_count(found, tensors), _as_configured(found, layers, spec)
    if spec is not None:
        return by_name(spec, table), _as_configured(spec, layers, spec)
    shapes, strange = {}, []
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        ours = table.ours(layer)
        if ours is None:
            strange.append(name)
            continue
        shape = tuple(tensor.shape)
        shapes[f"{ours}.{leaf}"] = shape[:2] if ours == LINEAR and shape[2:] == (1, 1) else shape
    if strange:
        raise UserError(f"no layer of {table.title} is called {some(strange)}; give another --from, or leave them out")
    try:
        found = infer(shapes, table)
    except UserError as error:
        raise UserError(f"its tensors make no {table.title}: {error}; give --spec if it is one") from None
    return by_name(found, table), _as_configured(found, layers, None)


def by_name(spec: NetSpec, table: Table) -> dict[str, str]:
    """A table's name for each layer of a network.

    Raises:
        UserError: the table has no such layer.
    """
    found = {}
    for layer in layers_of(meta(spec).state_dict()):
        theirs = table.theirs(layer)
        if theirs is None:
            raise UserError(f"{table.title} has no {layer}; give another --spec")
        found[layer] = theirs
    return found


def _numbered(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of ours for the convolutions and the classifier of ``cifar10_resnet.py``, from their shapes and order."""
    convs = [f"{name}.weight" for name in _of_kind(tensors, 4)]
    kernels = [tensors[name].shape[2] for name in convs]
    count = 3 if _version(tensors) == 2 else 2
    found = {"stem.conv.weight": convs[0]} if convs else {}
    stage, unit, width, at = -1, 0, 0, 1
    while at + count <= len(convs):
        out = tensors[convs[at + count - 1]].shape[0]
        stage, unit = (stage, unit + 1) if out == width else (stage + 1, 0)
        width = out
        prefix = f"stages.{stage}.units.{unit}"
        found |= {f"{prefix}.residual.conv{i + 1}.weight": convs[at + i] for i in range(count)}
        at += count
        behind = kernels[at + 1] if at + 1 < len(kernels) else 0
        if at < len(kernels) and kernels[at] == 1 and (count == 2 or behind != 3):
            found[f"{prefix}.join.shortcut.conv.weight"] = convs[at]
            at += 1
    found |= {name.replace(".weight", ".bias"): key.replace(".weight", ".bias") for name, key in list(found.items())}
    dense = _of_kind(tensors, 2)
    if len(dense) == 1:
        found[f"{LINEAR}.weight"] = f"{dense[0]}.weight"
    if count == 3:
        found["head.norm.weight"] = next(iter(found.values()))  # of any shape: it is there
    return {name: key for name, key in found.items() if key in tensors}


def _by_count(spec: NetSpec, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    model = meta(spec)
    found = {}
    for kind, ndim in ((nn.Conv2d, 4), (nn.Linear, 2), (nn.BatchNorm2d, 1)):
        mine = [name for name, one in model.named_modules() if _is(one, kind)]
        theirs = _of_kind(tensors, ndim)
        if len(mine) != len(theirs):
            raise UserError(
                f"it has {len(theirs)} layers with weights of {ndim} dimensions, and a network of {spec.depth} layers "
                f"has {len(mine)}"
            )
        found |= dict(zip(mine, theirs, strict=True))
    return found


def _is(module: nn.Module, kind: type) -> bool:
    if kind is nn.BatchNorm2d:
        return "running_mean" in dict(module.named_buffers(recurse=False))
    return isinstance(module, kind)


def _as_configured(spec: NetSpec, layers: Mapping[str, Any], given: NetSpec | None) -> NetSpec:
    """With the number that a file's configuration adds to variances, which one that was given must have."""
    found = {said["epsilon"] for said in layers.values() if isinstance(said.get("epsilon"), float)}
    if len(found) > 1:
        raise UserError(f"its norms have epsilon {sorted(found)}; it must be the same everywhere")
    eps = found.pop() if found else spec.dialect.norm_eps
    if given is not None and eps != given.dialect.norm_eps:
        raise UserError(f"its norms have epsilon {eps:g}, and --spec has norm_eps={given.dialect.norm_eps:g}")
    return replace(spec, dialect=replace(spec.dialect, norm_eps=eps))


def _assumed(spec: NetSpec, table: Table) -> list[str]:
    unseen = table.unseen and spec.unit.kind == "bottleneck" and spec.depth not in table.spatial_depths
    return [f"assumed: {table.unseen}; --spec says otherwise"] if unseen else []


def known_name(spec: NetSpec) -> str | None:
    """The name of a network of the paper that computes the same; None where there is none."""
    for name in network_names():
        if differences_free(spec, name):
            return name
    order = next((name for name, order in ORDERS.items() if order == spec.unit.order), None)
    names = {"basic": "basic", "bottleneck": "bottleneck", "single": "1layer"}
    made = f"resnet{spec.depth}-{order}-{names[spec.unit.kind]}"
    tried = [made, f"{made}-projected", f"{made}-spatial", f"{made}-projected-spatial"]
    tried += [one.replace(f"-{names[spec.unit.kind]}", "") for one in tried]
    return next((name for name in tried if differences_free(spec, name)), None)


def differences_free(spec: NetSpec, name: str) -> bool:
    """Whether a network by its name computes the same as a specification."""
    try:
        other = network(name, num_classes=spec.num_classes, in_channels=spec.in_channels)
    except UserError:
        return False
    return not differences(spec, other)


# --- tensors ------------------------------------------------------------------------------------------------------


def fit(spec: NetSpec, tensors: Mapping[str, Tensor], names: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """The tensors of a network by our names, each of theirs used exactly once.

    Args:
        spec: the network.
        tensors: theirs, by their names.
        names: their layer for each of ours.
        where: they come from, for messages.

    Raises:
        UserError: one is missing, left over or of another shape; it is named, with those that may be meant.
    """
    wanted = {}
    for name, one in meta(spec).state_dict().items():
        layer, _, leaf = name.rpartition(".")
        wanted[f"{names[layer]}.{leaf}"] = (name, tuple(one.shape))
    left = [name for name in tensors if name not in wanted]
    missing = [name for name in wanted if name not in tensors and not name.endswith(COUNTER)]
    problems = []
    for name in missing[:SHOWN]:
        near = difflib.get_close_matches(name, left, n=2, cutoff=0.7)
        problems.append(
            f"there is no {name} of shape {wanted[name][1]}" + (f" (is it {' or '.join(near)}?)" if near else "")
        )
    if len(missing) > SHOWN:
        problems.append(f"{len(missing) - SHOWN} more are missing")
    for name in left[:SHOWN] if len(left) > len(missing) or not missing else ():
        near = difflib.get_close_matches(name, missing or list(wanted), n=2, cutoff=0.7)
        problems.append(f"{name} is left over" + (f" (nearest: {', '.join(near)})" if near else ""))
    found: dict[str, Tensor] = {}
    for name, (ours, shape) in wanted.items():
        if name not in tensors:
            if name.endswith(COUNTER):
                found[ours] = torch.zeros(shape, dtype=torch.int64)
            continue
        tensor = tensors[name]
        if ours == f"{LINEAR}.weight" and tuple(tensor.shape) == (*shape, 1, 1):
            tensor = tensor.flatten(1)
        if tuple(tensor.shape) != shape:
            if len(problems) < 2 * SHOWN:
                problems.append(f"{name} has shape {tuple(tensor.shape)}, and the network takes {shape}")
            continue
        found[ours] = tensor
    if problems:
        raise UserError(
            f"{where} does not fit a network of {spec.depth} layers: {'; '.join(problems)}; give another --spec or "
            "--from"
        )
    return found
