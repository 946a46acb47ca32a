"""Optimisers of a recipe, one builder for each kind, and the weight update that they make of a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from preresnet.device import autocast
from preresnet.recipe import SGD, Muon, Optim, Precision
from preresnet.train.parts import by_depth


def build_optimizer(
    model: nn.Module, optim: Optim, stage_rate: float = 1.0, precision: Precision = "float32"
) -> torch.optim.Optimizer:
    """The optimiser that a recipe names; the learning rate is set before each step, by `set_lr`.

    Args:
        model: whose parameters are updated, but those that need no gradient.
        optim: which kind, and its numbers.
        stage_rate: learning rate of the stem and of each stage, as a share of the rate of what comes behind it.
        precision: resolved; Muon makes its matrices orthogonal in it.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    depths = [learning] if stage_rate == 1 else by_depth(model)
    parts = [(parameters, stage_rate**behind) for behind, parameters in enumerate(reversed(depths))]
    if isinstance(optim, Muon):
        return _muon(parts[::-1], optim, torch.bfloat16 if precision == "bfloat16" else None)
    return _sgd(parts[::-1], optim)


Parts = Sequence[tuple[list[nn.Parameter], float]]  # parameters, and their share of the learning rate


def _sgd(parts: Parts, optim: SGD) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum.

    Paper: appendix; 2015 paper, Section 4.2. Torch and PyTorch keep v = m v + g and subtract lr v, the authors' Caffe
    v = m v + lr g: the same while lr is constant.
    """
    return _descent(_decayed(parts, optim), optim)


def _muon(parts: Parts, optim: Muon, dtype: torch.dtype | None) -> torch.optim.Optimizer:
    """Convolutions by `_orthogonalise`, all else as `_sgd`."""
    step = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}  # `_orthogonalise` has made the whole step
    kernels = [
        {"params": found, "scale": share * optim.orthogonal_scale, **step}
        for parameters, share in parts
        if (found := [p for p in parameters if p.ndim == 4])
    ]
    rest = [([p for p in parameters if p.ndim != 4], share) for parameters, share in parts]
    optimizer = _descent([*kernels, *_decayed(rest, optim)], optim)

    def before(*_: Any) -> None:
        for group in optimizer.param_groups[: len(kernels)]:
            _orthogonalise(optimizer, group, optim.momentum, dtype)

    optimizer.register_step_pre_hook(before)
    return optimizer


def _decayed(parts: Parts, optim: SGD | Muon) -> list[dict[str, Any]]:
    """Parameters that decay, and those that do not."""
    groups = []
    for parameters, share in parts:
        scale = {} if share == 1 else {"scale": share}
        decayed = [p for p in parameters if optim.decay_all or p.ndim > 1]
        plain = [p for p in parameters if not optim.decay_all and p.ndim <= 1]
        groups.append({"params": decayed, "weight_decay": optim.weight_decay, **scale})
        groups.append({"params": plain, "weight_decay": 0.0, **scale})
    return groups


def _descent(groups: list[dict[str, Any]], optim: SGD | Muon) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=0.0,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        fused=True,  # one pass over all tensors of a group instead of several
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group; nothing waits for the device."""
    for group in optimizer.param_groups:
        value = lr * group.get("scale", 1.0)
        if isinstance(group["lr"], Tensor) and group["lr"].is_cuda:  # a captured step reads it there
            group["lr"].fill_(value)
        else:
            group["lr"] = value


@torch.no_grad()
def _orthogonalise(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], momentum: float, dtype: torch.dtype | None
) -> None:
    """Replace each kernel's gradient by the orthogonal matrix nearest to its Nesterov momentum; fix the kernel's norm.

    A step then turns every direction of a kernel by the same angle, lr, whatever the gradient's spectrum, which is what
    makes short runs learn sooner. Kernels of one shape are handled as one batch of matrices.

    Source: Muon (Jordan et al., 2024); the fixed norm is that of the same author's airbench.
    """
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for kernel in group["params"]:
        by_shape.setdefault(kernel.shape, []).append(kernel)
    for kernels in by_shape.values():
        ahead = []
        for kernel in kernels:
            buffer = optimizer.state[kernel].setdefault("orthogonal_buffer", torch.zeros_like(kernel))
            assert kernel.grad is not None
            buffer.mul_(momentum).add_(kernel.grad)
            ahead.append(torch.add(kernel.grad, buffer, alpha=momentum))
        matrices = _nearest_orthogonal(torch.stack(ahead).flatten(2), dtype)
        for kernel, matrix in zip(kernels, matrices, strict=True):
            kernel.mul_(kernel.shape[0] ** 0.5 / kernel.norm())
            kernel.grad = matrix.view_as(kernel).contiguous(memory_format=torch.channels_last)


def _nearest_orthogonal(x: Tensor, dtype: torch.dtype | None = None, iterations: int = 3) -> Tensor:
    """All singular values to about 1, by Newton-Schulz iterations: (k, m, n) -> (k, m, n).

    A step is x <- p(x x') x. The polynomials of all steps are multiplied first, as matrices of the shorter side, so
    that only two products have the longer one: half the work where it is nine times as long.

    Args:
        x: matrices.
        dtype: that is computed in; None: that of x.
        iterations: steps.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # Muon's quintic: steep at 0, so that three iterations do
    given = x.dtype
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(dtype or given)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    gram = x @ x.mT
    whole = one = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for number in range(iterations):
        step = a * one + b * gram + c * gram @ gram
        whole = step @ whole if number else step
        if number < iterations - 1:
            gram = step @ gram @ step
    x = (whole @ x).to(given)
    return x.mT if tall else x


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    norm_batch: int | None,
    precision: Precision,
    begin: Callable[[int], AbstractContextManager[object]] = lambda part: nullcontext(),
) -> tuple[Tensor, Tensor]:
    """One weight update; nothing here waits for the device.

    With ``norm_batch`` below the batch, the batch passes in parts: gradients add up to the mean over the batch, and the
    running statistics of the norms move once, towards the mean of those of the parts.

    Args:
        model: in training mode.
        optimizer: over its parameters, learning rate set.
        x: (n, c, h, w).
        y: (n,) int64 labels, or (n, num_classes) how much of each class an image is.
        norm_batch: images that a batch norm sees at once; None for all.
        precision: ``float32`` or ``bfloat16`` (autocast); the loss is computed in the weights' type in either.
        begin: gives what each part of the batch, counted from 0, passes inside.

    Returns:
        Mean cross-entropy and number of wrong answers, as zero-dimensional tensors on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    dtype = next(model.parameters()).dtype
    size = norm_batch or len(y)
    loss_sum, wrong = torch.zeros((), device=x.device, dtype=dtype), torch.zeros((), device=x.device, dtype=torch.long)
    parts = list(zip(x.split(size), y.split(size), strict=True))
    with _one_move_of_statistics(model, [len(labels) / len(y) for _, labels in parts]) as begin_part:
        for number, (part, labels) in enumerate(parts):
            begin_part(number)
            with begin(number):
                with autocast(x.device, precision):
                    output = model(part)
                output, answer = output.to(dtype), output.detach().argmax(1)
                target = labels.to(dtype) if labels.is_floating_point() else labels
                loss = nn.functional.cross_entropy(output, target, reduction="sum") / len(y)
                loss.backward()
            loss_sum += loss.detach()
            wrong += (answer != (labels.argmax(1) if labels.is_floating_point() else labels)).sum()
    optimizer.step()
    return loss_sum, wrong


@contextmanager
def _one_move_of_statistics(model: nn.Module, shares: Sequence[float]) -> Iterator[Callable[[int], None]]:
    """Let all parts of a batch together move running statistics as one: (1 - m) old + m (mean of the parts).

    A norm moves at each part, r = (1 - a) r + a s. With w the share of the part and v that of the parts behind it,
    a = m w / (1 - m v) composes to that; for n equal parts, a = (m / n) / (1 - (n - k) m / n) at the k-th.

    Args:
        model: its norms with running statistics are changed while this lasts.
        shares: of the batch, of each part.

    Yields:
        A function to be called with the number of each part before it passes.
    """
    norms: list[Any] = [module for module in model.modules() if _moves_statistics(module)] if len(shares) > 1 else []
    momenta: list[float] = [norm.momentum for norm in norms]

    def begin_part(number: int) -> None:
        share, behind = shares[number], sum(shares[number + 1 :])
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum * share / (1 - momentum * behind)

    try:
        yield begin_part
        for norm in norms:
            norm.num_batches_tracked.sub_(len(shares) - 1)  # it counts updates
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _moves_statistics(module: Any) -> bool:
    """Whether a module is a norm that keeps an exponential average: PyTorch's, or one of ours."""
    names = ("running_mean", "momentum", "num_batches_tracked")
    return module.training and all(getattr(module, name, None) is not None for name in names)
