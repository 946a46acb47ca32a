"""Measurements of a network on the way of its training, which do not change it.

A watch measures the network before the first step, then every so many steps, and after the last one, on images that
never change, so that all that moves in the series is the network. What it measures is the caller's business; the lines
go to ``probe.jsonl``, each with the seconds that it took.

With ``auto`` it counts what its measurements cost, and estimates the length of the run from the steps so far: as many
as then fit into 3 % of its time are spread evenly over the steps that are left, one at the end included. Only the first
is always made, so a run that is shorter than 33 measurements can spend more, on that one alone.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from preresnet.model.network import Network
from preresnet.spec import UserError
from preresnet.train import runlog
from preresnet.train.checkpoint import not_written, write_atomically

WATCH_FILE = "probe.jsonl"
SHARE = 0.03  # of a run's time, at most, with "auto"
ALLOWED = SHARE / (1 - SHARE)  # the same, of the time without measurements
MOST_LINES = 100  # of a series, with "auto": more than a picture can show


@dataclass(frozen=True)
class Watch:
    """What to measure, and how often.

    Args:
        every: steps between two measurements, or ``auto``.
        images: how many training images are used, without augmentation, for a network of a depth.
        measure: network, images (n, c, h, w) and labels (n,) -> one line; must leave the network as it was.
    """

    every: int | Literal["auto"]
    images: Callable[[int], int]
    measure: Callable[[Network, Tensor, Tensor], dict[str, Any]]

    def __post_init__(self) -> None:
        if self.every != "auto" and self.every < 1:
            raise UserError(f"probe-every {self.every}; it must be 1 or more, or auto")


class Watching:
    """A watch at work in the folder of a run.

    Args:
        watch: what to measure.
        folder: of the run.
        network: that is trained.
        batch: gives so many training images, without augmentation, on the device that trains.
        start: step that the run continues from; later lines of an interrupted run are dropped.
        last: step that ends the run.
        trained: seconds that the run had taken before it was interrupted, without measurements.
        say: is told when a network cannot be measured.

    Attributes:
        seconds: that all measurements of the run took.
        count: of them.
    """

    def __init__(
        self,
        watch: Watch,
        folder: Path,
        network: Network,
        batch: Callable[[int], tuple[Tensor, Tensor]],
        *,
        start: int,
        last: int,
        trained: float,
        say: Callable[[str], None],
    ) -> None:
        self._watch, self._network, self._last, self._say = watch, network, last, say
        self._path = folder / WATCH_FILE
        kept = [line for line in read(folder) if line["step"] <= start]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self._path, lambda path: path.write_text(text))
        self._x, self._y = batch(watch.images(network.spec.depth))
        self.seconds = sum(line["seconds"] for line in kept)
        self.count = len(kept)
        self._first, self._cost = (kept[0]["seconds"], kept[-1]["seconds"]) if kept else (0.0, 0.0)
        self._measured, self._start = kept[-1]["step"] if kept else start, start
        self._mark: tuple[int, float] | None = None
        self._begin = time.perf_counter() - trained - self.seconds

    def look(self, step: int) -> float:
        """Measure if that is due at a step; returns the seconds that it took."""
        if not self._due(step):
            return 0.0
        if self._x.is_cuda:
            torch.cuda.synchronize(self._x.device)  # what is still training is not ours
        begin = time.perf_counter()
        try:
            measured = self._watch.measure(self._network, self._x, self._y)
        except ValueError as error:  # not finite: whether that ends the run is the loop's to say
            measured = None
            self._say(f"step {step} was not probed: {error}")
        spent = time.perf_counter() - begin
        self.seconds += spent
        self._first = self._first or spent
        self._cost, self._measured = spent, step
        if measured is not None:
            self.count += 1
            line = json.dumps({"step": step, "seconds": round(spent, 4), **measured})
            try:
                with open(self._path, "a") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise not_written(self._path, error) from error
        return time.perf_counter() - begin

    def _due(self, step: int) -> bool:
        if self._watch.every != "auto":
            return step % self._watch.every == 0 or step == self._last
        if step == 0:
            return True
        alone = time.perf_counter() - self._begin - self.seconds
        if step == self._last:
            return self.seconds + self._cost <= ALLOWED * alone
        rest = max(1, self._last // MOST_LINES)
        if self._mark is None:  # the first steps are slower than the others
            self._mark = (step, alone) if step - self._start >= rest else None
            return False
        rate = (alone - self._mark[1]) / (step - self._mark[0])
        left = ALLOWED * (alone + rate * (self._last - step)) - self.seconds
        more = int(left / self._cost) - 1 if self._cost else MOST_LINES  # beside the one at the end
        if more < 1 or self.seconds + self._cost - self._first > ALLOWED * alone:
            return False
        return step - self._measured >= max(rest, (self._last - self._measured) / (more + 1))


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``probe.jsonl``; a last line cut short by a kill is left out."""
    return runlog.read(folder, WATCH_FILE)
