"""An exponential average of a network's weights, with norm statistics of its own."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from preresnet.device import autocast
from preresnet.model.network import Network
from preresnet.recipe import Precision
from preresnet.train.parts import keep_frozen


class Average:
    """The average of all weights so far, of which the older count less.

    In the first steps it reaches back less far, so that the initial weights do not stay in it. Its norms have not seen
    what its weights make of images: `measure` lets them.

    Args:
        model: whose weights are averaged, as it is now.
        decay: how much of the average stays at a step.
        freeze: parts of the network that stay as they are, their norms too.

    Attributes:
        model: with averaged weights, in evaluation mode.
    """

    def __init__(self, model: Network, decay: float, freeze: str = "") -> None:
        self.decay, self._freeze = decay, freeze
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Network, step: int) -> None:
        """Take in the weights after update number ``step``, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, share)

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision) -> None:
        """Set the norm statistics to the mean over some batches of images."""
        norms = [module for module in self.model.train().modules() if hasattr(module, "running_mean")]
        keep_frozen(self.model, self._freeze)
        moving = [norm for norm in norms if norm.training]
        momenta = [norm.momentum for norm in moving]
        try:
            for norm in moving:
                _reset(norm)
                norm.momentum = None  # type: ignore[assignment] - the mean over all batches
            for x, _ in batches:
                with autocast(x.device, precision):
                    self.model(x)
        finally:
            for norm, momentum in zip(moving, momenta, strict=True):
                norm.momentum = momentum
            self.model.eval()


def _reset(norm: nn.Module) -> None:
    for name, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
        getattr(norm, name).fill_(value)
