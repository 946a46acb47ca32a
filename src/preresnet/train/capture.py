"""How does a whole training step become one CUDA graph, so that a GPU never waits for Python?

A step of 1001 layers is tens of thousands of kernels, each shorter than its launch. The first steps run as they are:
kernels are compiled and chosen, momentum gets its memory. Then one step is captured, and every later one is a replay:
forward, loss, backward and update by one call. The learning rate and the batch are read from fixed places.

Source: CUDA graphs, "whole-network capture" of PyTorch's CUDA semantics.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preresnet.model.network import Network, Stage
from preresnet.recipe import Precision
from preresnet.train.optim import update

EAGER_STEPS = 3  # of each shape before capture: compiling, choosing kernels, allocating


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run what is inside on a stream of its own, as capture asks for; on a CPU, as it is.

    Several runs in threads of one process then share a GPU side by side.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@dataclass
class Captured:
    """One step as a graph, with the places that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor
    loss: Tensor
    wrong: Tensor


class Steps:
    """`update` for a whole run: captured on a GPU, plain elsewhere.

    Args:
        model: on its device, in training mode.
        optimizer: over its parameters, restored already.
        norm_batch: as for `update`.
        precision: as for `update`.
        capturing: False to run every step as it is.

    Attributes:
        captured: by the shape of a batch, its step as a graph.
    """

    def __init__(
        self,
        model: Network,
        optimizer: torch.optim.Optimizer,
        norm_batch: int | None,
        precision: Precision,
        *,
        capturing: bool = True,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._norm_batch = norm_batch
        self._precision: Precision = precision
        device = next(model.parameters()).device
        self._capturing = capturing and captures(device) and _is_capturable(model)
        self._seen: dict[torch.Size, int] = {}
        self.captured: dict[torch.Size, Captured] = {}
        if self._capturing:
            for group in optimizer.param_groups:  # a number would be frozen into the graph
                group["lr"] = torch.tensor(float(group["lr"]), device=device)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As `update`: (n, c, h, w) and (n,) -> mean loss and number of wrong answers, on the device."""
        if not self._capturing:
            return self._update(x, y)
        if x.shape not in self.captured:
            self._seen[x.shape] = self._seen.get(x.shape, 0) + 1
            if self._seen[x.shape] <= EAGER_STEPS or not self._capture(x, y):
                return self._update(x, y)
        step = self.captured[x.shape]
        step.x.copy_(x)
        step.y.copy_(y)
        step.graph.replay()
        return step.loss.clone(), step.wrong.clone()

    def _update(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return update(self._model, self._optimizer, x, y, self._norm_batch, self._precision)

    def _capture(self, x: Tensor, y: Tensor) -> bool:
        """Capture the step of a shape (which does not run it); where that fails, say so and go on without."""
        graph, x, y = torch.cuda.CUDAGraph(), x.clone(memory_format=torch.preserve_format), y.clone()
        pool = next((other.graph.pool() for other in self.captured.values()), None)
        try:
            self._optimizer.zero_grad(set_to_none=True)  # gradients then live in the graph's own memory
            with torch.cuda.graph(
                graph, pool=pool, stream=torch.cuda.current_stream(x.device), capture_error_mode="thread_local"
            ):
                loss, wrong = self._update(x, y)
        except RuntimeError as error:
            self._capturing = False
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"the training step runs uncaptured, which is slower ({reason})", stacklevel=3)
            return False
        self.captured[x.shape] = Captured(graph, x, y, loss, wrong)
        return True


def captures(device: torch.device) -> bool:
    """Whether a kind of device has graphs."""
    return device.type == "cuda"


def _is_capturable(model: Network) -> bool:
    """Whether no step asks the host for anything: a recomputed dropout reads and sets the state of its generator."""
    drops = any(isinstance(module, nn.Dropout) for module in model.modules())
    return not (drops and any(isinstance(stage, Stage) and stage.segment for stage in model.stages))
