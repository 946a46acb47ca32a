"""One run in several processes: how a batch and its norms are divided, and what is brought together after it."""

import inspect
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from preresnet import distributed
from preresnet.model.network import Network
from preresnet.recipe import Recipe
from preresnet.spec import UserError


@dataclass(frozen=True)
class Division:
    """How a batch passes through the processes of a run.

    Args:
        part: images that pass at once in one process; None: its whole share.
        ranks: neighbouring processes whose images a norm sees together.
    """

    part: int | None = None
    ranks: int = 1


def divide(recipe: Recipe, size: int) -> Division:
    """What a batch and a norm's images are for each of so many processes, so that the result is that of one.

    Raises:
        UserError: they cannot be divided so; the nearest settings that can are named.
    """
    batch, seen = recipe.global_batch, recipe.norm_batch
    if size == 1:
        return Division(seen)
    if batch % size:
        below, above = batch // size * size, (batch // size + 1) * size
        near = sorted((n for n in range(1, batch + 1) if batch % n == 0), key=lambda n: (abs(n - size), n))[:2]
        words = " or ".join(str(n) for n in (below, above) if n)
        raise UserError(
            f"global_batch {batch} in {size} processes: they cannot have equal parts; use "
            f"{' or '.join(map(str, sorted(near)))} processes, or --global-batch {words}"
        )
    share = batch // size
    if seen is None or seen >= batch:
        return Division(None, size)
    if seen <= share:
        if share % seen == 0:
            return Division(None if seen == share else seen)
    elif seen % share == 0 and batch % seen == 0:
        return Division(None, seen // share)
    able = [n for n in range(1, batch + 1) if share % n == 0 or (n % share == 0 and batch % n == 0)]
    near = [*[n for n in able if n < seen][-1:], *[n for n in able if n > seen][:1]]
    sizes = [
        n for n in range(1, batch + 1) if batch % n == 0 and ((batch // n) % seen == 0 or seen % (batch // n) == 0)
    ]
    sizes = [*[n for n in sizes if n < size][-1:], *[n for n in sizes if n > size][:1]]
    raise UserError(
        f"norm_batch {seen} in {size} processes of {share} images each is neither part of a share nor several of them; "
        f"use --norm-batch {' or '.join(map(str, near))}, or {' or '.join(map(str, sizes))} processes"
    )


def wrapped(model: Network) -> nn.Module:
    """What is called in training: the network, its gradients the mean over all processes, summed while others form."""
    if distributed.world().size == 1:
        return model
    # Statistics of norms are brought together when they are needed (`mean_statistics`), not at every step.
    named = inspect.signature(DistributedDataParallel).parameters
    own_buffers = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"  # until torch 2.14
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **{own_buffers: False})  # type: ignore[arg-type]


@torch.no_grad()
def mean_statistics(model: nn.Module) -> None:
    """Bring the running statistics of all processes together.

    Each moves towards the statistics of its own images, r <- (1 - m) r + m s. That is linear: the mean over the
    processes, whenever it is taken, is what one process with all images has.
    """
    size = distributed.world().size
    moving = [
        value
        for module in model.modules()
        for name in ("running_mean", "running_var")
        if isinstance(value := getattr(module, name, None), torch.Tensor)
    ]
    if size == 1 or not moving:
        return
    flat = torch.cat([value.flatten() for value in moving])
    dist.all_reduce(flat)
    flat /= size
    for value, mean in zip(moving, flat.split([value.numel() for value in moving]), strict=True):
        value.copy_(mean.view_as(value))
