"""How is a run looked at while it trains, without changing it?

A watch measures the network before the first step, then every so many steps, and after the last one, on images that
never change, so that all that moves in the series is the network. What it measures is the caller's business; the lines
go to ``probe.jsonl``.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preresnet.data.augment import Normalisation
from preresnet.data.sets import Images
from preresnet.model.network import Network
from preresnet.train.checkpoint import write_atomically

WATCH_FILE = "probe.jsonl"


@dataclass(frozen=True)
class Watch:
    """What to measure, and how often.

    Args:
        every: steps between two measurements.
        images: how many of the first training images are used, without augmentation, for a network of a depth.
        measure: network, images (n, c, h, w) and labels (n,) -> one line; must leave the network as it was.
    """

    every: int
    images: Callable[[int], int]
    measure: Callable[[Network, Tensor, Tensor], dict[str, Any]]

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"probe-every {self.every}; it must be 1 or more")


class Watching:
    """A watch at work in the folder of a run.

    Args:
        watch: what to measure.
        folder: of the run.
        network: that is trained.
        images: training images, on the device that trains.
        normalisation: of the training set, on the same device.
        start: step that the run continues from; later lines of an interrupted run are dropped.
        last: step that ends the run.

    Attributes:
        seconds: that the measurements took.
    """

    def __init__(
        self,
        watch: Watch,
        folder: Path,
        network: Network,
        images: Images,
        normalisation: Normalisation,
        start: int,
        last: int,
    ) -> None:
        self._watch, self._network, self._last = watch, network, last
        self._path = folder / WATCH_FILE
        kept = [line for line in read(folder) if line["step"] <= start]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self._path, lambda path: path.write_text(text))
        count = min(watch.images(network.spec.depth), len(images))
        chosen = images.take(torch.arange(count, device=images.pixels.device))
        self._x, self._y = normalisation(chosen.pixels).permute(0, 3, 1, 2), chosen.labels
        self.seconds = 0.0

    def look(self, step: int) -> float:
        """Measure if that is due at a step; returns the seconds that it took."""
        if step % self._watch.every and step != self._last:
            return 0.0
        begin = time.perf_counter()
        line = {"step": step, **self._watch.measure(self._network, self._x, self._y)}
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        spent = time.perf_counter() - begin
        self.seconds += spent
        return spent


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``probe.jsonl``; a last line cut short by a kill is left out."""
    path = folder / WATCH_FILE
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
