"""Parts of a network whose forward pass is repeated in the backward pass, with the statistics of the first time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from preresnet.kernels.passes import Statistics
from preresnet.spec import UserError


@dataclass
class Tape:
    """The batch statistics of all norms of a part of the network, in the order of execution."""

    statistics: list[Statistics] = field(default_factory=list)
    replaying: bool = False
    position: int = 0

    def next(self) -> Statistics:
        """Those of the norm that is executed now, in a repetition."""
        self.position += 1
        return self.statistics[self.position - 1]


_tape: ContextVar[Tape | None] = ContextVar("tape", default=None)


def current_tape() -> Tape | None:
    """What the norms that are executed now write to, or read from; None outside of recomputed parts.

    What is being compiled is never part of one (and PyTorch 2.11 cannot compile the question).
    """
    return None if torch.compiler.is_compiling() else _tape.get()


@contextmanager
def taped(tape: Tape, *, replaying: bool) -> Iterator[None]:
    """Record the statistics of a forward pass, or repeat the pass with them.

    A repetition gives the same values bit for bit, moves no running statistics, and saves the pass that forms them.
    """
    tape.replaying, tape.position = replaying, 0
    token = _tape.set(tape)
    try:
        yield
    finally:
        _tape.reset(token)


def recomputed(
    run: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]],
    parts: Sequence[nn.Module],
    x: Tensor,
    moments: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """``run(x, moments)``, keeping x alone: the forward pass is repeated when the backward pass needs it.

    Source: Chen et al., 2016, "Training deep nets with sublinear memory cost".

    Args:
        run: calls the parts; norms keep the statistics of the first time, dropout its masks.
        parts: the modules.
        x: what enters the first of them.
        moments: mean and variance of x, where they are known.

    Returns:
        What ``run`` returns.

    Raises:
        UserError: a part is compiled on its own, so that it would not see that it is repeated.
    """
    modules = [module for part in parts for module in part.modules()]
    if any(module._compiled_call_impl is not None for module in modules):
        raise UserError("units that are compiled one by one cannot be recomputed; compile the network, or plan 'plain'")
    tape = Tape()
    result = checkpoint(
        run,
        x,
        moments,
        use_reentrant=False,
        context_fn=lambda: (taped(tape, replaying=False), taped(tape, replaying=True)),
        # Reading the generators' state costs time, on a GPU a synchronisation.
        preserve_rng_state=any(isinstance(module, nn.Dropout) for module in modules),
    )
    assert isinstance(result, tuple)
    return result
