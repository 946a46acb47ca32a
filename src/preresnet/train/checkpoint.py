"""The checkpoint of a run: all that resuming needs, in one file that is there whole or not at all."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from preresnet import distributed
from preresnet.spec import UserError
from preresnet.train.errors import NotWrittenError

T = TypeVar("T")
CHECKPOINT_FILE = "checkpoint.pt"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(partial_path)``, then put the result in place: a reader sees the old file or the new one, whole.

    Raises:
        NotWrittenError: that failed; the file is what it was before.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with open(partial, "r+b") as file:  # Windows synchronises only what may be written
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's writer of files, for which a full disk is a RuntimeError
            raise
        raise not_written(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def not_written(path: Path, error: Exception) -> NotWrittenError:
    """A failure to write, in words."""
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    with suppress(OSError):
        reason += f"; {shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free there"
    return NotWrittenError(f"{path} could not be written ({reason})")


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    average: nn.Module | None = None,
) -> None:
    """Everything that resuming needs: weights, statistics, momentum, random state, and the counters in ``progress``.

    With ``average``, the average of the weights too.

    Data order and augmentation are functions of seed and step, so they need no state.

    Raises:
        NotWrittenError: as `write_atomically`.
    """
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": progress,
        **({} if average is None else {"average": average.state_dict()}),
    }
    write_atomically(folder / CHECKPOINT_FILE, lambda path: torch.save(state, path))


def restore(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Callable[[dict[str, Any]], T],
    average: nn.Module | None = None,
) -> T:
    """Put back what `save` kept, and return what ``progress`` makes of the counters.

    Raises:
        UserError: the file is not a whole checkpoint of this network.
    """
    path = folder / CHECKPOINT_FILE
    try:
        state = distributed.shared(lambda: torch.load(path, map_location="cpu", weights_only=True))
        found = progress(state["progress"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        return found
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise UserError(
            f"cannot resume from {path} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "delete it to start the run again from its first step"
        ) from None
