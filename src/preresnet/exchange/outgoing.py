"""Networks taken out: their weights by the names of other libraries, where these can express them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from preresnet.exchange import keras_files
from preresnet.exchange.incoming import COUNTER, by_name, layers_of
from preresnet.exchange.shapes import Shapes, differences, infer
from preresnet.exchange.tables import LINEAR, TABLES, Table
from preresnet.exchange.torch_files import SHOWN, some
from preresnet.fields import read_json
from preresnet.model.network import Network
from preresnet.spec import NetSpec, UserError
from preresnet.train import checkpoint, folder

RECORDED = ("name", "error_pct", "split", "num_images", "steps", "seed", "precision", "device", "versions")


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
        is_built, apart = _apart(model.spec, shapes, table)
        if not apart:
            names = by_name(model.spec, table)
            found = {}
            for name, tensor in state.items():
                layer, _, leaf = name.rpartition(".")
                found[f"{names[layer]}.{leaf}"] = tensor
            if table.linear_is_conv:
                weight = f"{names[LINEAR]}.weight"
                found[weight] = found[weight][:, :, None, None]
            return found, table
        tried.append((not is_built, len(apart), table, apart))
    _, _, table, apart = min(tried, key=lambda one: one[:2])
    raise UserError(f"{target} cannot express this network; nearest is {table.title}, where {'; '.join(apart[:SHOWN])}")


def _apart(spec: NetSpec, shapes: Shapes, table: Table) -> tuple[bool, list[str]]:
    """Whether a library has networks with such tensors, and in what the nearest of them differs."""
    if strange := [layer for layer in layers_of(shapes) if table.theirs(layer) is None]:
        return False, [f"there is no layer for {some(strange)}"]
    try:
        built = _built(infer(shapes, table), table)
    except UserError as error:
        return False, [str(error)]
    return True, min((differences(spec, one) for one in built), key=len)


def _built(spec: NetSpec, table: Table) -> list[NetSpec]:
    """The networks that a library builds with the same tensors."""
    others: list[Literal["first", "spatial"]] = ["first", "spatial"] if table.unseen else []
    return [spec, *(replace(spec, dialect=replace(spec.dialect, stride_position=other)) for other in others)]


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
        order = sorted(layers_of(arrays), key=_keras_place)
        by_layer = {name: arrays[name] for layer in order for name in arrays if name.rpartition(".")[0] == layer}
        checkpoint.write_atomically(path, lambda partial: keras_files.write(partial, by_layer))
        return table.title
    kept = {name: one.detach().contiguous() for name, one in tensors.items()}
    if path.suffix == ".safetensors":
        checkpoint.write_atomically(path, lambda partial: safetensors.torch.save_file(kept, partial, {"format": "pt"}))
    else:
        checkpoint.write_atomically(path, lambda partial: torch.save(kept, partial))
    return table.title


def record_of(run: Path) -> dict[str, str]:
    """What a file of weights says of the run that they come from: ``{"record": JSON}``, empty without a result."""
    if not (run / folder.RESULT_FILE).is_file():
        return {}
    result = read_json(run / folder.RESULT_FILE, "the result")
    return {"record": json.dumps({name: result[name] for name in RECORDED if name in result})}


def _keras_place(layer: str) -> tuple[int, int, int]:
    """Where a layer stands in ``model.layers``: by its distance from the output, so that a shortcut comes late."""
    ends = {"conv1_conv": 0, "post_bn": 1000, "predictions": 1001}
    if layer in ends:
        return ends[layer], 0, 0
    stage, unit, what = layer.removeprefix("conv").split("_", 2)
    within = ("preact_bn", "1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv").index(what)
    return int(stage), int(unit.removeprefix("block")), within
