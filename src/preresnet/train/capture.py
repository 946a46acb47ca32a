"""The training step as a GPU runs it: plainly, or as one CUDA graph, so that the GPU never waits for Python.

A step of 1001 layers is tens of thousands of kernels, each shorter than its launch. The first steps run as they are:
kernels are compiled and chosen, momentum gets its memory. Then one step is captured, and every later one is a replay:
forward, loss, backward and update by one call. The learning rate and the batch are read from fixed places.

Source: CUDA graphs, "whole-network capture" of PyTorch's CUDA semantics.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from preresnet import distributed
from preresnet.model.network import Network, Stage, set_fused
from preresnet.recipe import Precision
from preresnet.spec import UserError
from preresnet.train.optim import update

Mechanism = Literal["compiled", "capture", "tensor-lr", "plain"]
"""How a run on a CUDA device computes, ``capture`` and ``tensor-lr`` unless said otherwise:

- ``compiled``: the fused passes of `preresnet.kernels`;
- ``capture``: whole steps as CUDA graphs;
- ``tensor-lr``: the learning rate as a tensor on the device, which ``capture`` needs;
- ``plain``: none of these.
"""

EAGER_STEPS = 3  # of each shape before capture: compiling, choosing kernels, allocating
EAGER_STEPS_TOGETHER = 11  # in several processes: DistributedDataParallel times its first ten, which no graph can


def chosen(asked: Sequence[Mechanism] | None, device: torch.device) -> tuple[Mechanism, ...]:
    """The mechanisms that a run uses, from those that were asked for; None: as is best on the device.

    On a GPU that is a captured step: the same numbers several times as fast. The compiled passes gain nothing there.
    Several processes take plain steps unless they are asked: theirs have never been captured on GPUs of ours.

    Raises:
        UserError: no CUDA device, an unknown mechanism, ``capture`` without ``tensor-lr``, or ``plain`` with others.
    """
    if asked is None:
        return ("tensor-lr", "capture") if device.type == "cuda" and distributed.world().size == 1 else ()
    check_mechanisms(asked, device)
    return tuple(name for name in asked if name != "plain")


def check_mechanisms(mechanisms: Sequence[Mechanism], device: torch.device) -> None:
    """Refuse what `chosen` refuses."""
    known = get_args(Mechanism)
    if unknown := [name for name in mechanisms if name not in known]:
        raise UserError(f"--gpu {unknown[0]}; there are {', '.join(known)}")
    if "plain" in mechanisms and len(mechanisms) > 1:
        raise UserError(f"--gpu {' '.join(mechanisms)}: plain means none of the others; give it alone, or leave it out")
    if set(mechanisms) - {"plain"} and device.type != "cuda":
        raise UserError(f"--gpu {' '.join(mechanisms)} is for CUDA devices, and this is {device}; leave --gpu out")
    if "capture" in mechanisms and "tensor-lr" not in mechanisms:
        raise UserError(
            "--gpu capture alone would freeze the learning rate into the graph; give --gpu capture tensor-lr"
        )


def choose_passes(model: nn.Module, mechanisms: Sequence[Mechanism], device: torch.device) -> None:
    """Let a network on a CUDA device compute with PyTorch's own operations, or with compiled ones where asked for."""
    if device.type == "cuda":
        set_fused(model, "compiled" in mechanisms)


@contextmanager
def own_stream(device: torch.device, mechanisms: Sequence[Mechanism] = ("capture",)) -> Iterator[None]:
    """Run what is inside on a stream of its own, where steps are captured; else as it is.

    Several runs in threads of one process then share a GPU side by side.
    """
    if device.type != "cuda" or "capture" not in mechanisms:
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


class TrainingStep:
    """`update` for a whole run, with the mechanisms that it is to use.

    Args:
        model: on its device, in training mode.
        optimizer: over its parameters, restored already.
        norm_batch: as for `update`, in this process.
        precision: as for `update`.
        mechanisms: none by default: every step runs as it is.
        seed: of the masks of dropout.
        ranks: processes whose images a norm sees together.
        called: the network as it is called, where that is not the model itself.

    Attributes:
        captured: by the shape of a batch, its step as a graph.
    """

    def __init__(
        self,
        model: Network,
        optimizer: torch.optim.Optimizer,
        norm_batch: int | None,
        precision: Precision,
        mechanisms: Sequence[Mechanism] = (),
        seed: int = 0,
        ranks: int = 1,
        called: nn.Module | None = None,
    ) -> None:
        self._model, self._optimizer = called or model, optimizer
        self._ranks, self._seed = ranks, seed
        self._masked = any(isinstance(module, nn.Dropout) for module in model.modules())
        self._norm_batch = norm_batch
        self._precision: Precision = precision
        device = next(model.parameters()).device
        check_mechanisms(mechanisms, device)
        self._capturing = "capture" in mechanisms
        self._eager_steps = EAGER_STEPS_TOGETHER if isinstance(self._model, DistributedDataParallel) else EAGER_STEPS
        if self._capturing and not is_capturable(model):
            self._capturing = False
            warnings.warn("a dropout that is recomputed cannot be captured; the steps run as they are", stacklevel=2)
        self._seen: dict[torch.Size, int] = {}
        self.captured: dict[torch.Size, Captured] = {}
        if "tensor-lr" in mechanisms:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]), device=device)

    def __call__(self, x: Tensor, y: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
        """As `update`: (n, c, h, w) and (n,) -> mean loss and number of wrong answers, on the device.

        Args:
            x: this process's part of the batch.
            y: its labels.
            step: number of updates before, for the masks of dropout.
        """
        if not self._capturing:
            return self._update(x, y, step)
        if x.shape not in self.captured:
            self._seen[x.shape] = self._seen.get(x.shape, 0) + 1
            if self._seen[x.shape] <= self._eager_steps or not self._capture(x, y):
                return self._update(x, y, step)
        kept = self.captured[x.shape]
        kept.x.copy_(x)
        kept.y.copy_(y)
        kept.graph.replay()
        return kept.loss.clone(), kept.wrong.clone()

    def close(self) -> None:
        """Let the graphs go. A process that ends waits for those that hold sums of several processes."""
        self.captured.clear()

    def _update(self, x: Tensor, y: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
        parts = -(-len(y) // (self._norm_batch or len(y)))

        def begin(part: int) -> AbstractContextManager[object]:
            found = ExitStack()
            if self._ranks > 1:
                found.enter_context(distributed.norms_over(self._ranks))
            if isinstance(self._model, DistributedDataParallel) and part < parts - 1:
                found.enter_context(self._model.no_sync())  # gradients of all parts are summed at once
            if self._masked and x.device.type == "cpu":
                # of the images that a norm sees together, counted in the whole batch
                place = distributed.world().rank * parts // self._ranks + part
                words = np.random.SeedSequence([self._seed, step, place]).generate_state(1, np.uint64)
                torch.default_generator.manual_seed(int(words[0]))
            return found

        return update(self._model, self._optimizer, x, y, self._norm_batch, self._precision, begin)

    def _capture(self, x: Tensor, y: Tensor) -> bool:
        """Capture the step of a shape (which does not run it); where that fails, say so and go on without."""
        graph, x, y = torch.cuda.CUDAGraph(), x.clone(memory_format=torch.preserve_format), y.clone()
        pool = next((other.graph.pool() for other in self.captured.values()), None)
        failed = []
        try:
            self._optimizer.zero_grad(set_to_none=True)  # gradients then live in the graph's own memory
            with torch.cuda.graph(
                graph, pool=pool, stream=torch.cuda.current_stream(x.device), capture_error_mode="thread_local"
            ):
                loss, wrong = self._update(x, y)
            self.captured[x.shape] = Captured(graph, x, y, loss, wrong)
        except RuntimeError as error:
            failed = [str(error).strip().splitlines()[0]]
        if failed := distributed.union(failed):  # NCCL's sums are captured in all processes or in none
            self._capturing = False
            self.close()
            if distributed.world().first:
                warnings.warn(f"the training step runs uncaptured, which is slower ({failed[0]})", stacklevel=3)
        return self._capturing


def is_capturable(model: Network) -> bool:
    """Whether no step asks the host for anything: a recomputed dropout reads and sets the state of its generator."""
    drops = any(isinstance(module, nn.Dropout) for module in model.modules())
    return not (drops and any(isinstance(stage, Stage) and stage.segment for stage in model.stages))
