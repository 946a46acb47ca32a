"""The command `preresnet probe`: its options, and what it prints."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from preresnet import display, terminal
from preresnet.cli.options import command_line
from preresnet.recipe import DataName


@dataclass(frozen=True)
class ProbeCommand:
    """Measure how signal and gradient travel, and whether a network will train.

    Norms use the statistics of the batch, as in training. Without --out, --json or --verdict, a table along depth.
    """

    name: Annotated[Positional[str], arg(metavar="NETWORK|RUN")]
    """A network by name or as a JSON file (with initial weights), a run folder, or a .safetensors file."""
    against: tuple[str, ...] = ()
    """More networks or runs, measured on the same images and drawn beside the first."""
    data: Literal["auto", "noise"] | DataName = "auto"
    """auto: what a run was trained on; noise (normally distributed pixels) for initial weights."""
    data_root: Path | None = None
    """Folder with the official CIFAR folder, or train/ and val/, in it; without it CIFAR is downloaded."""
    batch: int = 64
    """Images in a batch."""
    batches: int = 1
    """Batches to measure on."""
    image_size: int | None = None
    """Height and width; by default that of the data as it is trained on, or the network's own for noise."""
    seed: int = 0
    """Of initial weights, of the choice of images and of dropout."""
    verdict: bool = False
    """Also take a few training steps on a copy, and predict whether the network will train; needs labelled data."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Folder for probe.json and pictures; created, and never overwritten."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Measure, write and print."""
        from preresnet.propagation import probing

        words = terminal.console(stderr=True)
        found = probing.measure(
            (self.name, *self.against),
            probing.Settings(
                data=self.data,
                data_root=self.data_root,
                batch=self.batch,
                batches=self.batches,
                image_size=self.image_size,
                seed=self.seed,
                device=self.device,
                verdict=self.verdict,
                out=self.out,
                command=command_line(),
            ),
            report=words.print,
        )
        if self.json:
            print(json.dumps(found))
        else:
            display.probes(found)
            if self.out is not None:
                print(f"probe    {self.out}")
        return 0
