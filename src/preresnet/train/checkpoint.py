"""How does a run survive being killed at any moment?"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preresnet.spec import UserError

CHECKPOINT_FILE = "checkpoint.pt"


def write_atomically(path: Path, write: Any) -> None:
    """Call ``write(partial_path)``, then put the result in place: a reader sees the old file or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Everything that resuming needs: weights, statistics, momentum, random state, and the counters in ``progress``.

    Data order and augmentation are functions of seed and step, so they need no state.
    """
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": progress,
    }
    write_atomically(folder / CHECKPOINT_FILE, lambda path: torch.save(state, path))


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put back what `save` kept, and return ``progress``.

    Raises:
        ValueError: the file is not a whole checkpoint of this network.
    """
    path = folder / CHECKPOINT_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        return state["progress"]
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise UserError(
            f"cannot resume from {path} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "delete it to start the run again from its first step"
        ) from None
