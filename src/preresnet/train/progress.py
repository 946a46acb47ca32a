"""How far a run is, and what it measured since the last line of its log: the counters of a checkpoint."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from preresnet import distributed
from preresnet.train.errors import STOPPED, NotFiniteError


@dataclass
class SinceLine:
    """Sums over the steps since the last line of the log, so that a line is their mean, whatever came between.

    Args:
        steps: how many.
        loss: sum of their losses.
        wrong: sum of their wrong answers.
        seconds: that they took, without saving, evaluating or probing.
        wait_seconds: of these, waiting for a batch.
    """

    steps: int = 0
    loss: float = 0.0
    wrong: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def means(self, batch: int) -> dict[str, float]:
        """The line: ``loss`` (nats), ``train_error_pct``, ``images_per_s`` and ``data_wait_pct``."""
        seconds, images = max(self.seconds, 1e-9), self.steps * batch
        return {
            "loss": self.loss / self.steps,
            "train_error_pct": 100 * self.wrong / images,
            "images_per_s": images / seconds,
            "data_wait_pct": 100 * self.wait_seconds / seconds,
        }


@dataclass
class Progress:
    """The counters of a run.

    Args:
        step: updates done.
        train_seconds: that they took, without saving, evaluating or probing.
        wait_seconds: of these, waiting for a batch.
        evaluations: ``step``, ``split`` and what was measured, in order.
        since_line: of the steps since the last line of the log.
        skipped: what was wrong with images that another one took the place of.
        world_size: processes of the run.
        num_lines: of the log; None in checkpoints of the first version, whose log is kept up to their step.
    """

    step: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    since_line: SinceLine = field(default_factory=SinceLine)
    num_lines: int | None = None
    skipped: list[str] = field(default_factory=list)
    world_size: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> "Progress":
        """What `as_dict` gave."""
        since_line = SinceLine(**kept.get("since_line", {}))
        return cls(**{name: value for name, value in kept.items() if name != "since_line"}, since_line=since_line)


class Meter:
    """Adds up what steps measure. Losses stay on the device until `collect`: no step waits for another.

    Args:
        progress: whose sums and times grow.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._losses: list[Tensor] = []
        self._wrong: list[Tensor] = []
        self._begin: float | None = None

    def start(self) -> None:
        """Time counts from now on, if it does not already."""
        if self._begin is None:
            self._begin = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Time just spent on something else than training."""
        assert self._begin is not None
        self._begin += seconds

    def add(self, loss: Tensor, wrong: Tensor, wait_seconds: float) -> None:
        """One step: its mean loss and number of wrong answers, and how long it waited for its batch."""
        self._losses.append(loss)
        self._wrong.append(wrong)
        self._progress.wait_seconds += wait_seconds
        self._progress.since_line.wait_seconds += wait_seconds

    def collect(self) -> None:
        """Wait for the device, and add all steps since the last call; time stands still until `start`.

        Raises:
            NotFiniteError: a loss is infinite or not a number.
        """
        if self._begin is None:
            return
        progress, sums = self._progress, self._progress.since_line
        losses = torch.stack(self._losses).cpu().double()  # in this order: MPS has no float64
        losses = distributed.summed(losses) / distributed.world().size
        wrong = int(distributed.summed(torch.stack(self._wrong).sum()))
        seconds, self._begin = time.perf_counter() - self._begin, None
        progress.train_seconds += seconds
        sums.seconds += seconds
        if not losses.isfinite().all():
            bad = int((~losses.isfinite()).nonzero()[0])
            step = progress.step - len(losses) + bad + 1
            raise NotFiniteError(f"the loss was {losses[bad].item()} at step {step}; {STOPPED}")
        for loss in losses.tolist():  # one after the other: the sum is the same wherever a run was cut
            sums.loss += loss
        sums.wrong += wrong
        sums.steps += len(losses)
        self._losses, self._wrong = [], []
