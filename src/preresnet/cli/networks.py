"""The commands about networks that need no data: what has a name, what it is made of, how fast it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from preresnet.cli.options import command_line, is_file
from preresnet.fields import UserError, to_json, with_fields
from preresnet.paper.networks import network
from preresnet.recipe import Precision
from preresnet.spec import MemoryPlan


@dataclass(frozen=True)
class List:
    """List the networks or recipes that have a name."""

    what: Positional[Literal["models", "recipes"]]
    """What to list."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Print the list."""
        from preresnet import display

        (display.models if self.what == "models" else display.recipes)(self.json)
        return 0


@dataclass(frozen=True)
class Describe:
    """Show a network's stages, parameters, multiply-adds and activation memory."""

    name: Annotated[Positional[str], arg(metavar="NETWORK")]
    """A network by name, or the path of its specification as JSON."""
    num_classes: int | None = None
    """Classes; by default 1,000 for an ImageNet network and 10 otherwise."""
    in_channels: int | None = None
    """Channels of an input image; by default 3, or what the file says."""
    input_size: int | None = None
    """Height and width of the input; by default 224 for an ImageNet network and 32 otherwise."""
    batch: int = 128
    """Images of the training step whose memory is predicted, in the precision that auto means on this machine."""
    json: bool = False
    """Print JSON instead of a table; "spec" in it is the specification, which --network and this command take."""

    def run(self) -> int:
        """Print the description."""
        if is_file(self.name):
            from preresnet.train.folder import read_network

            spec = read_network(Path(self.name))
        else:
            spec = network(self.name)
        given = {"num_classes": self.num_classes, "in_channels": self.in_channels}
        spec = with_fields(spec, **{name: value for name, value in given.items() if value is not None})
        # These take long to import, for which a name that does not exist need not wait.
        from preresnet import device as devices
        from preresnet import display
        from preresnet.model.describe import describe

        device = devices.choose("auto")
        precision = devices.resolve("auto", device)
        described = describe(spec, self.input_size, self.batch, precision, fused=device.type == "cpu")
        found = {"name": self.name, **described, "spec": json.loads(to_json(spec))}
        if self.json:
            print(json.dumps(found, indent=1))
        else:
            display.description(found)
        return 0


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory of a network beside other systems.

    All take turns in one run, so that what disturbs the machine disturbs all.
    """

    name: Annotated[Positional[str], arg(metavar="NETWORK")]
    """A network by name."""
    batch: int = 128
    """Images in a step."""
    against: tuple[Literal["pytorchcv", "timm", "eager", "limit"], ...] = ("eager", "limit")
    """pytorchcv and timm (pip install 'preresnet[peers]'), each as its users run it and at its best settings; eager:
    ours in PyTorch's own operations; limit: ours with norms and ReLUs removed."""
    inference: bool = False
    """Measure answers instead of training steps."""
    memory: tuple[MemoryPlan, ...] = ()
    """Memory plans of ours, a row each; plain alone by default."""
    gpu: tuple[Literal["compiled", "capture", "tensor-lr"], ...] = ()
    """On a CUDA device, a row of ours with each of these mechanisms of `preresnet train` (capture with tensor-lr), and
    one with all of them."""
    precision: Precision = "auto"
    """auto, float32 or bfloat16: of all but the others' default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    rounds: int = 7
    """Interleaved rounds, of which medians are taken."""
    steps: int = 3
    """Steps of each system in a round; more where they last less than 0.3 s."""
    out: Path | None = None
    """Write the result to this new JSON file, and a bar chart beside it."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Measure and print."""
        from preresnet import display, terminal
        from preresnet.bench import measure as bench
        from preresnet.pictures import canvas, speed
        from preresnet.train.checkpoint import write_atomically

        if self.out is not None and (self.out.exists() or self.out.with_suffix(".png").exists()):
            raise UserError(f"{self.out} or its picture already exists; give another --out")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        words = terminal.console(stderr=True)
        found = bench.bench(
            self.name,
            self.batch,
            self.against,
            self.memory,
            self.precision,
            self.device,
            training=not self.inference,
            gpu=self.gpu,
            rounds=self.rounds,
            steps=self.steps,
            report=words.print,
        )
        record = {"command": command_line(), **found}
        if self.json:  # said before it is written: what took so long is not lost with a full disk
            print(json.dumps(record))
        else:
            display.bench(record)
        if self.out is not None:
            image = canvas.encoded(speed.draw_speed(record), "png", dpi=150)
            write_atomically(self.out, lambda path: path.write_text(bench.as_json(record)))
            write_atomically(self.out.with_suffix(".png"), lambda path: path.write_bytes(image))
        return 0
