"""What a network of any kind takes and returns: batches, labels, the output, and what is wrong with any of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from preresnet.spec import UserError

IGNORED = -100  # a label that cross entropy leaves out, as PyTorch and transformers do
Batch = Any  # x, (x, y), or keyword arguments by name with the labels as "labels"


def split(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional arguments, keyword arguments, labels.

    Raises:
        UserError: it is none of the kinds of `Batch`, or holds no sample.
    """
    if isinstance(batch, Tensor):
        found = (_plain(batch),), {}, None
    elif isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor):
        found = (_plain(batch[0]),), {}, batch[1]
    elif hasattr(batch, "keys") and any(isinstance(batch[name], Tensor) for name in batch if name != "labels"):
        kwargs = {name: _plain(batch[name]) for name in batch if name != "labels"}
        found = (), kwargs, batch.get("labels")  # type: ignore[union-attr]
    else:
        raise UserError(
            f"a batch of type {type(batch).__name__}; give images, (images, labels), or a mapping of keyword arguments"
        )
    first = first_tensor(*found[:2])
    if first.ndim == 0 or len(first) == 0:
        raise UserError(f"a batch of shape {tuple(first.shape)} holds no sample; its first dimension counts them")
    return found


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Whose first dimension counts samples."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _plain(value: Any) -> Any:
    """Without a graph, and of this mode: a tensor made inside ``torch.inference_mode()`` cannot be differentiated."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def call(run: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a network returns.

    Args:
        run: computes it.
        model: whose weights are named where it fails.
        args: positional arguments.
        kwargs: keyword arguments.

    Raises:
        UserError: the network fails on these arguments; says what they are.
    """
    try:
        return run(*args, **kwargs)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a foreign forward pass raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        given = {f"argument {at + 1}": value for at, value in enumerate(args)} | kwargs
        words = ", ".join(f"{name}: {_words(value)}" for name, value in given.items() if isinstance(value, Tensor))
        types = sorted({_words(one, sizes=False) for one in model.parameters()})
        first = first_tensor(args, kwargs)
        advice = "give batches of the shape and type that it is trained on"
        if not kwargs and not first.is_floating_point():
            advice += ": images are floating-point numbers, normalised as for training (x.float() / 255, then mean out)"
        raise UserError(
            f"{type(model).__name__} fails on this batch: {reason}. Given: {words}; weights: {', '.join(types)}; "
            f"{advice}"
        ) from error


def _words(value: Tensor, *, sizes: bool = True) -> str:
    words = str(value.dtype).removeprefix("torch.")
    words += f" on {value.device}" if value.device.type != "cpu" else ""
    if not sizes:
        return words
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    span = f", {value.min()} to {value.max()}" if whole and value.numel() else ""
    return f"{words} {tuple(value.shape)}{span}"


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


def labels_of(given: Any, output: Tensor) -> Tensor:
    """Labels that cross entropy can use: (n, ...) int64 for an output of (n, ..., classes).

    Raises:
        UserError: another shape or type, or a label that is no class (-100 is left out, as PyTorch does).
    """
    if output.ndim < 2 or output.shape[-1] < 2:
        raise UserError(
            f"the output has shape {tuple(output.shape)}; cross entropy needs (n, ..., classes) with two classes or "
            "more: give another loss=..., a function of output and labels"
        )
    try:
        labels = given if isinstance(given, Tensor) else torch.as_tensor(given)
    except (ValueError, TypeError, RuntimeError):
        raise UserError(f"labels of type {type(given).__name__}; give a tensor of integers, one a sample") from None
    classes = output.shape[-1]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels of type {_words(labels)}; give integers from 0 to {classes - 1}, or another loss=...")
    if labels.shape != output.shape[:-1]:
        raise UserError(
            f"labels of shape {tuple(labels.shape)} for an output of shape {tuple(output.shape)}; "
            f"they have to be {tuple(output.shape[:-1])}, or give another loss=..."
        )
    used = labels[labels != IGNORED]
    if not len(used):
        raise UserError(f"all labels are {IGNORED}, which cross entropy leaves out; give some that are classes")
    wrong = used[(used < 0) | (used >= classes)]
    if len(wrong):
        raise UserError(f"a label {wrong[0]}; the output has {classes} classes, so labels are 0 to {classes - 1}")
    return labels.to(output.device, torch.int64)


def draw_labels(output: Tensor, seed: int) -> Tensor:
    """Uniform labels: (n, ..., classes) -> (n, ...)."""
    source = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(
        max(1, output.shape[-1]) if output.ndim else 1, output.shape[:-1], generator=source, device="cpu"
    )
    return drawn.to(output.device)
