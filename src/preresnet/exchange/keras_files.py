"""Weights in Keras' files (``.h5``, ``.keras``), read without Keras and without running what they hold.

As a program, ``python -m preresnet.exchange.keras_files FILE OUT``, it reads one file into a safetensors file: the
library of HDF5 can crash on a file that was made for it, or never end, and then ends with this process alone.
"""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from preresnet.fields import UserError

LIMIT_S = 120.0
LIMIT_TEXT = 64 << 20  # bytes of a configuration
SLACK = 64 << 20  # bytes that arrays may have beyond those of their file: compressed ones
LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
ORDERS = {  # of the arrays of a layer that has no names for them
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
KINDS = {"Conv2D": "conv2d", "Dense": "dense", "BatchNormalization": "batch_normalization"}


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file by layer and PyTorch's word for each, as PyTorch has them, and what the file says of layers.

    Args:
        path: of the file.

    Returns:
        ``LAYER.weight``, ``LAYER.bias``, ``LAYER.running_mean`` and ``LAYER.running_var``: kernels (h, w, in, out) are
        (out, in, h, w), dense ones (in, out) are (out, in). And by layer what its configuration says, where there is
        one.

    Raises:
        UserError: no such file, or no whole one; the message says why.
    """
    _h5py()  # the process below needs it
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "arrays.safetensors"
        command = [sys.executable, "-P", "-m", "preresnet.exchange.keras_files", str(path.absolute()), str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise UserError(f"{path} was not read within {LIMIT_S:.0f} s; export it again") from None
        if done.returncode == 2:
            raise UserError(done.stderr.strip())
        if done.returncode or not out.is_file():
            words = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise UserError(f"{path} is no whole Keras file: its reader ended with code {done.returncode} ({words})")
        from safetensors import safe_open

        with safe_open(out, framework="numpy") as opened:
            said = json.loads((opened.metadata() or {}).get("layers", "{}"))
        return load_file(out), said


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A ``.h5`` file for ``model.load_weights``, from arrays as `read` returns them, in the order of Keras' layers.

    Raises:
        UserError: h5py is not there.
    """
    h5py = _h5py()
    words = {
        True: {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"},
        False: {"weight": "kernel", "bias": "bias"},
    }
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, {})[leaf] = value
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["keras_version"], file.attrs["backend"] = b"2.15.0", b"tensorflow"
        for layer, found in layers.items():
            group = file.create_group(layer)
            named = {word: found[leaf] for leaf, word in words["running_mean" in found].items() if leaf in found}
            group.attrs["weight_names"] = [f"{layer}/{word}:0".encode() for word in named]
            for word, value in named.items():
                axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
                group[f"{layer}/{word}:0"] = np.ascontiguousarray(value.transpose(axes))


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError("Keras' files need h5py; pip install 'preresnet[keras]'") from None
    return h5py


def read_here(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """As `read`, in this process."""
    import h5py

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened:
                weights, config = _member(opened, "model.weights.h5", path), _member(opened, "config.json", path)
            with h5py.File(io.BytesIO(weights), "r") as file:
                return _arrays(file, json.loads(config), len(weights))
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            text = config.decode() if isinstance(config, bytes) else config
            return _arrays(file, json.loads(text) if isinstance(text, str) else None, path.stat().st_size)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file does to the libraries that read it
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no whole Keras file ({words}); export it again") from None


def _member(opened: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        info = opened.getinfo(name)
    except KeyError:
        raise UserError(f"{path} is no whole Keras file (there is no {name} in it); export it again") from None
    limit = LIMIT_TEXT if name.endswith(".json") else os.path.getsize(path) + SLACK
    if info.file_size > limit:
        raise UserError(
            f"{path}: {name} in it would have {info.file_size:,} bytes, more than {limit:,}; export it again"
        )
    with opened.open(info) as file:
        return file.read(limit + 1)[:limit]


def _arrays(file: Any, config: Any, size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import h5py

    layers = dict(_layers(config))
    found: dict[str, np.ndarray] = {}
    containers = _containers(layers)
    allowed = size + SLACK

    def visit(group: Any, path: tuple[str, ...]) -> None:
        nonlocal allowed
        if len(path) > 32:
            raise UserError("groups lie 32 deep in each other")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"{'/'.join((*path, name))} is a link to elsewhere, which is not followed")
            one = group[name]
            if isinstance(one, h5py.Group):
                if not path and name in ("optimizer_weights", "optimizer", "top_level_model_weights", "metrics"):
                    continue
                visit(one, (*path, name))
                continue
            key = _key(group, path, name, containers)
            if key is None:
                continue
            if one.is_virtual or one.external:
                raise UserError(f"{'/'.join((*path, name))} lies in another file, which is not read")
            allowed -= one.nbytes
            if allowed < 0:
                raise UserError(f"its arrays would have over {size + SLACK:,} bytes, more than the file can hold")
            if key in found:
                raise UserError(f"two arrays are called {key}")
            found[key] = _turned(np.asarray(one[()], dtype=np.float32), key)

    visit(file, ())
    return found, layers


def _key(group: Any, path: tuple[str, ...], name: str, containers: dict[str, str]) -> str | None:
    """What an array is called: its layer, and PyTorch's word for it."""
    if path and path[-1] == "vars":  # Keras 3: layers/conv2d_3/vars/0
        if "optimizer" in path or len(path) < 2 or not name.isdigit():
            return None
        kind = re.sub(r"_\d+$", "", path[-2])
        said = group.attrs.get("name")
        layer = said if isinstance(said, str) else containers.get(path[-2], path[-2])
        names = ORDERS.get(kind, ())
        leaf = names[int(name)] if int(name) < len(names) else name
        return f"{layer}.{LEAVES.get(leaf, leaf)}"
    if not path:
        return None
    leaf = name.split(":")[0]  # before Keras 3: conv1_conv/conv1_conv/kernel:0
    return f"{path[-1]}.{LEAVES.get(leaf, leaf)}"


def _turned(value: np.ndarray, key: str) -> np.ndarray:
    if key.endswith(".weight") and value.ndim in (2, 4):
        value = value.transpose({4: (3, 2, 0, 1), 2: (1, 0)}[value.ndim])
    return np.ascontiguousarray(value)


def _layers(config: Any) -> list[tuple[str, dict[str, Any]]]:
    """The layers of a configuration with what each says, those of models within it too."""
    found: list[tuple[str, dict[str, Any]]] = []
    waiting = [(config, 0)]
    while waiting:
        one, depth = waiting.pop()
        if not isinstance(one, dict) or depth > 8:
            continue
        inner = one.get("config")
        if not isinstance(inner, dict):
            continue
        if isinstance(inner.get("layers"), list):
            waiting += [(layer, depth + 1) for layer in reversed(inner["layers"])]
        elif isinstance(name := inner.get("name"), str):
            kept = ("strides", "padding", "epsilon", "momentum", "kernel_size", "use_bias")
            found.append((name, {"class": str(one.get("class_name")), **{k: inner[k] for k in kept if k in inner}}))
    return found


def _containers(layers: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What early files of Keras 3 call each layer by: its kind, counted."""
    counts: dict[str, int] = {}
    found: dict[str, str] = {}
    for name, said in layers.items():
        kind = KINDS.get(said["class"])
        if kind is not None:
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            found[f"{kind}_{number}" if number else kind] = name
    return found


def _bound_memory(size: int) -> None:
    if sys.platform == "linux":
        import resource

        limit = (4 << 30) + 4 * size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _main(path: Path, out: Path) -> int:
    from safetensors.numpy import save_file

    try:
        _bound_memory(path.stat().st_size)
        arrays, layers = read_here(path)
        save_file(arrays, out, {"layers": json.dumps(layers)})
    except (UserError, OSError, MemoryError) as error:
        words = str(error)
        print(words if words.startswith(str(path)) else f"{path}: {words}; export it again", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2])))
