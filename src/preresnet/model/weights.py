"""Weights files: the tensors of a network together with its specification, so that nothing else is needed."""

import os
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch

from preresnet.model.network import Network
from preresnet.spec import NetSpec, UserError, from_json, to_json

WEIGHTS_FILE = "weights.safetensors"
PACKAGED = "networks"  # folder of this package, with a file for each trained network that comes with it
Stored = Literal["float32", "float16", "bfloat16"]


def save(path: Path, model: Network, metadata: dict[str, str], stored: Stored | None = None) -> None:
    """Write the weights and, as metadata, the specification; the file appears whole or not at all.

    Args:
        path: of the ``.safetensors`` file.
        model: the network.
        metadata: more text to keep with them.
        stored: as what the weights of convolutions and of the classifier are written; None: as they are. The others,
            few, stay as they are.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if stored is not None:
        dtype = getattr(torch, stored)
        tensors = {name: one.to(dtype).contiguous() if one.ndim > 1 else one for name, one in tensors.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        safetensors.torch.save_file(tensors, partial, {"network": to_json(model.spec)} | metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> tuple[Network, dict[str, str]]:
    """The network of a weights file, in evaluation mode on the CPU, and the file's metadata.

    Weights stored with 16 bits become float32.

    Args:
        path: a ``.safetensors`` file written by `save`, a folder that holds ``weights.safetensors``, or, where nothing
            has this path, the name of a network that comes with the package (`packaged`).

    Raises:
        ValueError: no such file, not such a file, tensors that do not fit the network in it, or values that are not
            finite.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not os.path.lexists(path) and (name := path.as_posix()) in packaged():
        with resources.as_file(file_of(name)) as found:
            return load(found)
    if not file.is_file():
        if path.is_dir():
            raise UserError(f"no {WEIGHTS_FILE} in {path}; a run writes it with its first checkpoint")
        names = ", ".join(packaged())
        raise UserError(
            f"no weights at {path}; give a run folder, a .safetensors file or a network that comes with this program: "
            f"{names}"
        )
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: _unpacked(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole .safetensors file ({error}); restore or export it again") from None
    if "network" not in metadata:
        raise UserError(f"{file} does not say which network it belongs to; it was not written by preresnet")
    try:
        spec = from_json(NetSpec, metadata["network"])
    except UserError as error:
        raise UserError(f"the network that {file} says it belongs to cannot be read: {error}") from None
    with torch.device("meta"):
        model = Network(spec)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise UserError(f"the tensors of {file} do not fit its network: {words}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{file} holds values that are infinite or not numbers, first in {name}, so that every answer would be "
                "meaningless; export it again, or take an earlier one"
            )
    return model.eval().to(memory_format=torch.channels_last), metadata  # type: ignore[call-overload]


def packaged() -> list[str]:
    """Names of the trained networks that come with the package, as of the recipes that trained them."""
    files = resources.files("preresnet.model").joinpath(PACKAGED).iterdir()
    return sorted(file.name.removesuffix(".safetensors").replace("--", "/") for file in files)


def file_of(name: str) -> Traversable:
    """Where one of `packaged` lies."""
    return resources.files("preresnet.model").joinpath(PACKAGED, f"{name.replace('/', '--')}.safetensors")


def _unpacked(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
