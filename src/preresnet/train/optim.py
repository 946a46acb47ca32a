"""Which update does a recipe ask for, and over which parameters?"""

import torch
from torch import Tensor, nn

from preresnet.recipe import Optim


def sgd(model: nn.Module, optim: Optim) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum; the learning rate is set before each step.

    Paper: appendix; 2015 paper, Section 4.2. Torch and PyTorch keep v = m v + g and subtract lr v, the authors' Caffe
    v = m v + lr g: the same while lr is constant.

    Args:
        model: whose parameters are updated.
        optim: momentum, decay and what is decayed.
    """
    decayed = [p for p in model.parameters() if optim.decay_all or p.ndim > 1]
    plain = [p for p in model.parameters() if not optim.decay_all and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=0.0,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        fused=True,  # one pass over all tensors of a group instead of several
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, norm_batch: int | None, precision: str
) -> tuple[Tensor, Tensor]:
    """One weight update; nothing here waits for the device.

    With ``norm_batch`` below the batch, the batch passes in parts and the gradients add up to the mean over the batch.

    Args:
        model: in training mode.
        optimizer: over its parameters, learning rate set.
        x: (n, c, h, w).
        y: (n,) int64.
        norm_batch: images that a batch norm sees at once; None for all.
        precision: ``float32`` or ``bfloat16`` (autocast); the loss is computed in the weights' type in either.

    Returns:
        Mean cross-entropy and number of wrong answers, as zero-dimensional tensors on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    dtype = next(model.parameters()).dtype
    size = norm_batch or len(y)
    loss_sum, wrong = torch.zeros((), device=x.device, dtype=dtype), torch.zeros((), device=x.device, dtype=torch.long)
    for part, labels in zip(x.split(size), y.split(size), strict=True):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(part)
        loss = nn.functional.cross_entropy(output.to(dtype), labels, reduction="sum") / len(y)
        loss.backward()
        loss_sum += loss.detach()
        wrong += (output.detach().argmax(1) != labels).sum()
    optimizer.step()
    return loss_sum, wrong
