"""Weights files: the tensors of a network together with its specification, so that nothing else is needed."""

import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from preresnet.model.network import Network
from preresnet.spec import NetSpec, UserError, from_json, to_json

WEIGHTS_FILE = "weights.safetensors"


def save(path: Path, model: Network, metadata: dict[str, str]) -> None:
    """Write the weights and, as metadata, the specification; the file appears whole or not at all.

    Args:
        path: of the ``.safetensors`` file.
        model: the network.
        metadata: more text to keep with them.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    try:
        safetensors.torch.save_file(tensors, partial, {"network": to_json(model.spec)} | metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> tuple[Network, dict[str, str]]:
    """The network of a weights file, in evaluation mode on the CPU, and the file's metadata.

    Args:
        path: a ``.safetensors`` file written by `save`, or a folder that holds ``weights.safetensors``.

    Raises:
        ValueError: no such file, not such a file, tensors that do not fit the network in it, or values that are not
            finite.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        if path.is_dir():
            raise UserError(f"no {WEIGHTS_FILE} in {path}; a run writes it with its first checkpoint")
        raise UserError(f"no weights at {path}; give a run folder or a .safetensors file")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
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
