"""What does a network of any kind take, and which tensor of what it returns is its output?"""

from typing import Any

import torch
from torch import Tensor

from preresnet.spec import UserError

Batch = Any  # x, (x, y), or keyword arguments by name with the labels as "labels"


def split(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional arguments, keyword arguments, labels."""
    if isinstance(batch, Tensor):
        return (batch.detach(),), {}, None
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor):
        return (batch[0].detach(),), {}, batch[1]
    if hasattr(batch, "keys"):
        kwargs = {name: batch[name] for name in batch if name != "labels"}
        if any(isinstance(value, Tensor) for value in kwargs.values()):
            return (), kwargs, batch.get("labels")  # type: ignore[attr-defined]
    raise UserError(
        f"a batch of type {type(batch).__name__}; give images, (images, labels), or a mapping of keyword arguments"
    )


def shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What an exported graph depends on beside the module."""
    return [getattr(value, "shape", value) for value in (*args, *kwargs.values())]


def differentiable(value: Any) -> Any:
    """The same numbers, as a variable where they are floating-point numbers."""
    return value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


def output(result: Any) -> Tensor:
    """The first tensor of what a network returns."""
    if isinstance(result, Tensor):
        return result
    if hasattr(result, "logits"):
        return result.logits
    values = result.values() if hasattr(result, "values") else result if isinstance(result, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise UserError(f"the network returns {type(result).__name__} without a tensor; give one that returns a tensor")


def draw_labels(output: Tensor, seed: int) -> Tensor:
    """Uniform labels: (n, ..., classes) -> (n, ...)."""
    drawn = torch.randint(output.shape[-1], output.shape[:-1], generator=torch.Generator().manual_seed(seed))
    return drawn.to(output.device)
