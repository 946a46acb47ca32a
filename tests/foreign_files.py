"""Files as other libraries write them, made from networks of ours: Torch 7's and Keras'."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor, nn

from preresnet.exchange.tables import Table
from preresnet.model.network import Network
from preresnet.model.shortcuts import Projection, ZeroPad
from preresnet.model.units import ResidualUnit


class Torch7:
    """What ``torch.save`` of Torch 7 writes in its binary form."""

    def __init__(self) -> None:
        self.data, self.count = bytearray(), 0

    def index(self) -> int:
        self.count += 1
        return self.count

    def ints(self, *values: int) -> None:
        self.data += struct.pack(f"<{len(values)}i", *values)

    def text(self, value: str) -> None:
        self.ints(len(value.encode()))
        self.data += value.encode()

    def value(self, value: Any) -> None:
        if value is None:
            self.ints(0)
        elif isinstance(value, bool):
            self.ints(5, int(value))
        elif isinstance(value, int | float):
            self.ints(1)
            self.data += struct.pack("<d", value)
        elif isinstance(value, str):
            self.ints(2)
            self.text(value)
        elif isinstance(value, dict):
            self.ints(3, self.index(), len(value))
            for key, one in value.items():
                self.value(key)
                self.value(one)
        elif isinstance(value, Tensor):
            self.object("torch.FloatTensor")
            self.ints(value.ndim)
            self.data += struct.pack(f"<{2 * value.ndim + 1}q", *value.shape, *value.stride(), 1)
            self.object("torch.FloatStorage")
            self.data += struct.pack("<q", value.numel()) + value.detach().float().numpy().tobytes()
        else:
            kind, content = value
            self.object(kind)
            self.value(content)

    def object(self, kind: str) -> None:
        self.ints(4, self.index())
        self.text("V 1")
        self.text(kind)


def container(kind: str, *children: Any) -> Any:
    return (f"nn.{kind}", {"modules": dict(enumerate(children, 1)), "train": False})


def conv(module: nn.Conv2d) -> Any:
    kernel, stride = module.kernel_size[0], module.stride[0]
    numbers = {"nInputPlane": module.in_channels, "nOutputPlane": module.out_channels, "kW": kernel, "kH": kernel}
    numbers |= {"dW": stride, "dH": stride, "padW": kernel // 2, "padH": kernel // 2, "groups": 1}
    return ("cudnn.SpatialConvolution", {"weight": module.weight.contiguous(), **numbers})


def activation(module: nn.Module) -> list[Any]:
    """Norm and ReLU of ours, as modules."""
    found: list[Any] = []
    state = module.state_dict()
    if "running_mean" in state:
        names = ("weight", "bias", "running_mean", "running_var")
        found.append(("nn.SpatialBatchNormalization", {"eps": 1e-5, "affine": True, **{n: state[n] for n in names}}))
    if isinstance(module, nn.ReLU) or getattr(module, "relu", False):
        found.append(("cudnn.ReLU", {"inplace": True}))
    return found


def shortcut(module: nn.Module) -> Any:
    if isinstance(module, Projection):
        after = activation(module.norm)
        return container("Sequential", conv(module.conv), *after) if after else conv(module.conv)
    if isinstance(module, ZeroPad):
        stride = module.stride
        pool = ("nn.SpatialAveragePooling", {"kW": 1, "kH": 1, "dW": stride, "dH": stride})
        return container(
            "Sequential", pool, container("Concat", ("nn.Identity", {}), ("nn.MulConstant", {"constant_scalar": 0}))
        )
    return ("nn.Identity", {})


def unit(module: ResidualUnit) -> Any:
    pre, branch = activation(module.pre), []
    for layer in module.residual:
        branch += [conv(layer)] if isinstance(layer, nn.Conv2d) else activation(layer)
    before, inside = (pre, branch) if module.shared else ([], [*pre, *branch])
    table = container("ConcatTable", container("Sequential", *inside), shortcut(module.join.shortcut))  # type: ignore[arg-type]
    return container("Sequential", *before, table, ("nn.CAddTable", {"inplace": True}), *activation(module.after_add))


def torch7_model(model: Network) -> Any:
    """The tree of modules that ``resnet.lua``, ``preresnet.lua`` or ``resnet-pre-act.lua`` builds."""
    stem = [conv(model.stem.conv), *activation(model.stem.norm)]
    if isinstance(model.stem.pool, nn.MaxPool2d):
        stem.append(("nn.SpatialMaxPooling", {"kW": 3, "kH": 3, "dW": 2, "dH": 2, "padW": 1, "padH": 1}))
    stages = [container("Sequential", *(unit(one) for one in stage.units)) for stage in model.stages]  # type: ignore[union-attr]
    linear = model.head.linear
    head = [*activation(model.head.norm), ("nn.SpatialAveragePooling", {}), ("nn.View", {"size": None})]
    head.append(("nn.Linear", {"weight": linear.weight, "bias": linear.bias}))
    return container("Sequential", *stem, *stages, *head)


def torch7(model: Network, wrapped: bool = False) -> bytes:
    tree, writer = torch7_model(model), Torch7()
    writer.value({"model": container("DataParallelTable", tree), "epoch": 3} if wrapped else tree)
    return bytes(writer.data)


LEAVES = {
    "conv": {"weight": "kernel", "bias": "bias"},
    "norm": {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"},
}


def keras_layers(model: Network, table: Table) -> dict[str, tuple[str, list[tuple[str, np.ndarray]]]]:
    """By layer its kind in Keras' words, and its arrays in Keras' order."""
    found: dict[str, tuple[str, list[tuple[str, np.ndarray]]]] = {}
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        state = {key: one for key, one in module.state_dict().items() if "." not in key and "batches" not in key}
        if not state or list(module.children()):
            continue
        kind = (
            "conv2d"
            if isinstance(module, nn.Conv2d)
            else "dense"
            if isinstance(module, nn.Linear)
            else "batch_normalization"
        )
        number = counts[kind] = counts.get(kind, 20) + 1  # what an earlier model of the same program left off with
        theirs = f"{kind}_{number}" if table.ordinal else table.theirs(name) or ""
        leaves = LEAVES["norm" if kind == "batch_normalization" else "conv"]
        arrays = []
        for leaf, word in leaves.items():
            if leaf in state:
                value = state[leaf].detach().float().numpy()
                arrays.append((word, value.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim])))
        found[theirs] = (kind, arrays)
    return found


def keras_h5(path: Path, model: Network, table: Table, tail: str = ":0") -> None:
    """``model.save("x.h5")`` of Keras 2."""
    layers = keras_layers(model, table)
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config(layers, model.spec.dialect.norm_eps))
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for name, (_, arrays) in layers.items():
            group = root.create_group(name).create_group(name)
            root[name].attrs["weight_names"] = [f"{name}/{word}{tail}".encode() for word, _ in arrays]
            for word, value in arrays:
                group[f"{word}{tail}"] = value
        optimizer = file.create_group("optimizer_weights")
        optimizer.create_group("Adam")["iterations:0"] = np.int64(3)


def config(layers: Any, eps: float) -> Any:
    words = {"conv2d": "Conv2D", "dense": "Dense", "batch_normalization": "BatchNormalization"}
    more = {"batch_normalization": {"epsilon": eps, "momentum": 0.99}}
    listed = [
        {"class_name": words[kind], "config": {"name": name, **more.get(kind, {})}}
        for name, (kind, _) in layers.items()
    ]
    return {"class_name": "Functional", "config": {"name": "net", "layers": listed}}


def keras_3(path: Path, model: Network, table: Table, named: bool = True) -> None:
    """``model.save("x.keras")`` of Keras 3, early ones without the names of layers beside their arrays."""
    layers = keras_layers(model, table)
    weights = path.with_suffix(".inner.h5")
    counts: dict[str, int] = {}
    with h5py.File(weights, "w") as file:
        for name, (kind, arrays) in layers.items():
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            group = file.create_group(f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars")
            if named:
                group.attrs["name"] = name
            for place, (_, value) in enumerate(arrays):
                group[str(place)] = value
        file.create_group("optimizer/vars")["0"] = np.int64(3)
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("metadata.json", "{}")
        opened.writestr("config.json", json.dumps(config(layers, model.spec.dialect.norm_eps)))
        opened.write(weights, "model.weights.h5")
    weights.unlink()
