"""Weights of other libraries brought in, and ours taken out: every tensor is used once, or an error names it."""

import difflib
import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from preresnet.exchange import keras_files, torch7
from preresnet.exchange.tables import LINEAR, TABLES, Table, differences, in_definition_order, infer
from preresnet.model.network import Network, meta
from preresnet.paper.networks import ORDERS, network, network_names
from preresnet.spec import Dialect, NetSpec, StemSpec, UserError
from preresnet.train import checkpoint

COUNTER = "num_batches_tracked"
FORMATS = (*TABLES, "torch7", "safetensors")
WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "weights")
SHOWN = 3  # names in a message


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


def bring(path: Path, source: str, spec: NetSpec | None = None) -> Brought:
    """Read a network.

    Args:
        path: of the file.
        source: one of `FORMATS`.
        spec: the network; None: as its tensors say.

    Raises:
        UserError: no whole file of that format, or tensors that are missing, left over or of another shape.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; give a file of weights")
    said: list[str] = []
    if source == "torch7":
        found, arrays = _named(path, lambda: torch7.network_of(torch7.read(path)))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        table, names = None, {layer: layer for layer in _layers(tensors)}
        title = "a Torch 7 network"
    else:
        tensors, layers = _read(path, source, said)
        table = _table(path, source, tensors)
        title = table.title
        names, found = _named(path, lambda: _recognised(tensors, layers, table, spec))
        said += _assumed(found, table) if spec is None else []
    if spec is not None:
        if table is None and (apart := differences(spec, found)):
            raise UserError(f"{path} holds another network than --spec: {'; '.join(apart[:SHOWN])}")
        found = spec
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
    found = _safetensors(path) if path.suffix == ".safetensors" or source == "safetensors" else _pickled(path, said)
    for name, tensor in found.items():
        if tensor.numel() * tensor.element_size() > path.stat().st_size:  # a view of one number as if of many
            raise UserError(f"{path}: {name} of shape {tuple(tensor.shape)} is larger than the file; export it again")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}, {}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole .safetensors file ({error}); restore or export it again") from None


def _pickled(path: Path, said: list[str]) -> dict[str, Tensor]:
    """The tensors of a file of ``torch.save``; whatever else it would build is refused unseen."""
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened:
                if sum(info.file_size for info in opened.infolist()) > size:
                    raise UserError("it is compressed, as torch.save does not do")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UserError as error:
        raise UserError(f"{path}: {error}; export it again") from None
    except pickle.UnpicklingError as error:
        reason = "it holds code or objects beside its tensors" if "Unsupported" in str(error) else "it is damaged"
        raise UserError(
            f"{path} was not loaded: {reason}, and no code of a file is run; save model.state_dict() instead"
        ) from None
    except Exception as error:  # whatever a damaged file does to the reader
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no whole file of torch.save ({words}); export it again") from None
    while isinstance(content, Mapping) and not any(isinstance(one, Tensor) for one in content.values()):
        inner = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            raise UserError(f"{path} holds no tensors, but {_some(map(str, content))}; save model.state_dict()")
        said.append(f"of {_some(map(str, content))} in the file, {inner} is taken")
        content = content[inner]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; save model.state_dict()")
    strange = [str(name) for name, one in content.items() if not (isinstance(name, str) and isinstance(one, Tensor))]
    if strange:
        raise UserError(f"{path} holds more than tensors: {_some(strange)}; save model.state_dict()")
    if content and all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "") or "nothing"


# --- recognising --------------------------------------------------------------------------------------------------


def _layers(names: Iterable[str]) -> list[str]:
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
    layers = _layers(tensors)
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
        f"{path}: none of its layers ({_some(layers)}) is one of {' or '.join(one.title for one in tables)}; "
        "give another --from"
    )


def _version(tensors: Mapping[str, Tensor]) -> int:
    convs = _of_kind(tensors, 4)
    return 2 if len(convs) > 1 and tensors[f"{convs[1]}.weight"].shape[2] == 1 else 1


def _of_kind(tensors: Mapping[str, Tensor], ndim: int) -> list[str]:
    """Numbered layers whose weights have so many dimensions, in the order of definition."""
    return in_definition_order(
        name.removesuffix(".weight") for name, one in tensors.items() if name.endswith(".weight") and one.ndim == ndim
    )


def _recognised(
    tensors: Mapping[str, Tensor], layers: Mapping[str, Any], table: Table, spec: NetSpec | None
) -> tuple[dict[str, str], NetSpec]:
    """Their layer for each of ours, and the network."""
    if table.ordinal:
        numbered = _numbered(tensors)
        if spec is None:
            spec = infer({name: tuple(tensors[key].shape) for name, key in numbered.items()}, table)
        return _by_count(spec, tensors), _as_configured(spec, layers)
    if spec is not None:
        return _by_name(spec, table), spec
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
        raise UserError(f"no layer of {table.title} is called {_some(strange)}; give another --from, or leave them out")
    try:
        spec = infer(shapes, table)
    except UserError as error:
        raise UserError(f"its tensors make no {table.title}: {error}; give --spec if it is one") from None
    return _by_name(spec, table), _as_configured(spec, layers)


def _by_name(spec: NetSpec, table: Table) -> dict[str, str]:
    found = {}
    for layer in _layers(meta(spec).state_dict()):
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


def _as_configured(spec: NetSpec, layers: Mapping[str, Any]) -> NetSpec:
    """With the number that a file's configuration adds to variances."""
    found = {said["epsilon"] for said in layers.values() if isinstance(said.get("epsilon"), float)}
    if len(found) > 1:
        raise UserError(f"its norms have epsilon {sorted(found)}; it must be the same everywhere")
    return replace(spec, dialect=replace(spec.dialect, norm_eps=found.pop())) if found else spec


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


def _built(spec: NetSpec, table: Table) -> list[NetSpec]:
    """The networks that a library builds with the same tensors."""
    others: list[Literal["first", "spatial"]] = ["first", "spatial"] if table.unseen else []
    return [spec, *(replace(spec, dialect=replace(spec.dialect, stride_position=other)) for other in others)]


def take_out(model: Network, target: str) -> tuple[dict[str, Tensor], Table]:
    """The tensors of a network by the names of another library, for PyTorch.

    Args:
        model: the network.
        target: one of `TABLES`.

    Raises:
        UserError: the library has no such network; the fields that it cannot express are named.
    """
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    tried: list[tuple[bool, int, Table, list[str]]] = []
    for table in TABLES[target]:
        if table.ordinal:
            continue
        strange = [layer for layer in _layers(state) if table.theirs(layer) is None]
        built: list[NetSpec] = []
        try:
            built = [] if strange else _built(infer(shapes, table), table)
        except UserError as error:
            apart = [str(error)]
        else:
            apart = [f"there is no layer for {_some(strange)}"]
        if built:
            apart = min((differences(model.spec, one) for one in built), key=len)
        if not apart:
            names = _by_name(model.spec, table)
            found = {}
            for name, tensor in state.items():
                layer, _, leaf = name.rpartition(".")
                found[f"{names[layer]}.{leaf}"] = tensor
            if table.title.startswith("resnetv2 of timm"):
                found["head.fc.weight"] = found["head.fc.weight"][:, :, None, None]
            return found, table
        tried.append((not built, len(apart), table, apart))
    _, _, table, apart = min(tried, key=lambda one: one[:2])
    raise UserError(f"{target} cannot express this network; nearest is {table.title}, where {'; '.join(apart[:SHOWN])}")


def write(path: Path, model: Network, target: str) -> str:
    """Write a network's weights as another library loads them.

    Args:
        path: of the file: ``.safetensors``, ``.h5`` for Keras, else one of ``torch.save``.
        model: the network.
        target: one of `TABLES`.

    Returns:
        What its networks are called.

    Raises:
        UserError: as `take_out`; for Keras, another name than ``.h5``, or no h5py.
    """
    tensors, table = take_out(model, target)
    if target == "keras":
        if path.suffix != ".h5" or path.name.endswith(".weights.h5"):
            raise UserError(f"{path}: Keras loads such weights from a name that ends in .h5 alone; give another --out")
        arrays = {name: one.detach().float().numpy() for name, one in tensors.items() if not name.endswith(COUNTER)}
        order = sorted(_layers(arrays), key=_keras_place)
        by_layer = {name: arrays[name] for layer in order for name in arrays if name.rpartition(".")[0] == layer}
        checkpoint.write_atomically(path, lambda partial: keras_files.write(partial, by_layer))
    elif path.suffix == ".safetensors":
        kept = {name: one.detach().contiguous() for name, one in tensors.items()}
        checkpoint.write_atomically(path, lambda partial: safetensors.torch.save_file(kept, partial, {"format": "pt"}))
    else:
        kept = {name: one.detach().contiguous() for name, one in tensors.items()}
        checkpoint.write_atomically(path, lambda partial: torch.save(kept, partial))
    return table.title


def _keras_place(layer: str) -> tuple[int, int, int]:
    """Where a layer stands in ``model.layers``: by its distance from the output, so that a shortcut comes late."""
    ends = {"conv1_conv": 0, "post_bn": 1000, "predictions": 1001}
    if layer in ends:
        return ends[layer], 0, 0
    stage, unit, what = layer.removeprefix("conv").split("_", 2)
    within = ("preact_bn", "1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv").index(what)
    return int(stage), int(unit.removeprefix("block")), within
