"""The commands that bring networks in and take them out: weights of other libraries, and files that programs run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from preresnet.cli.options import command_line, is_file, note, shown
from preresnet.fields import UserError
from preresnet.paper.networks import network
from preresnet.recipe import DataName, ImagesInMemory
from preresnet.spec import NetSpec


@dataclass(frozen=True)
class Import:
    """Bring in a network of another library: its weights become a folder like a run."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The weights, as the library saves them."""
    from_: Annotated[
        Literal["timm", "torchvision", "pytorchcv", "keras", "torch7", "safetensors"],
        arg(name="from", metavar="FORMAT"),
    ]
    """Whose file it is: timm, torchvision, pytorchcv (.pth of a state_dict, or .safetensors), keras (.h5, .keras,
    .weights.h5), torch7 (.t7), or safetensors with our own names of tensors."""
    out: Path
    """New folder for the network."""
    spec: Annotated[str | None, arg(metavar="NAME|FILE")] = None
    """The network by name, or the path of its specification as JSON; by default what its tensors say."""
    data: DataName | None = None
    """What it was trained on; by default imagenet, cifar10 or cifar100, as its stem and number of classes say."""
    normalise: Annotated[str | None, arg(metavar="per_pixel_mean|channel_mean_std|FILE")] = None
    """How its images were prepared: with the statistics of all training images of CIFAR, or as FILE says: JSON with
    "mean" and "std" of pixels between 0 and 1, a number a channel or for every pixel; or a mean image as .npy. By
    default as its library does."""
    classes: Path | None = None
    """Text file with the name of each class in a line, in the order of labels."""

    def run(self) -> int:
        """Read, check, write and say."""
        from preresnet.exchange import incoming, preparation

        if self.out.exists():
            raise UserError(f"{self.out} is there already; give another --out")
        brought = incoming.bring(self.file, self.from_, _specification(self.spec))
        prepared = preparation.prepared(brought, self.from_, self.data, self.normalise, self.classes)
        preparation.write(self.out, brought, prepared, command_line())
        for line in (*brought.said, *prepared.said):
            note(line)
        print(f"tensors  {brought.num_tensors:,}, each used once")
        print(f"network  {self.out}")
        if isinstance(prepared.data, ImagesInMemory):  # of photographs, nobody has said where they are
            print(f"next     {shown('evaluate', self.out)}")
        return 0


@dataclass(frozen=True)
class Export:
    """Take a network out: its weights as another library loads them."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder, a .safetensors file, or a network that comes with this program."""
    to: Annotated[Literal["timm", "torchvision", "pytorchcv", "keras", "safetensors"], arg(metavar="FORMAT")]
    """Whose network it becomes; a network that the library does not build is refused, with the field that differs. Or
    safetensors: one file by our own names, with all that predict, evaluate and preresnet.load need."""
    out: Path
    """New file: .pth or .safetensors; .h5 for keras."""
    stored: Annotated[Literal["float32", "float16", "bfloat16"] | None, arg(metavar="TYPE")] = None
    """For safetensors: store weights of convolutions and the classifier as float32, float16 or bfloat16; by default as
    they are."""

    def run(self) -> int:
        """Check, write and say."""
        from preresnet.exchange import outgoing
        from preresnet.model import weights

        if self.out.exists():
            raise UserError(f"{self.out} is there already; give another --out")
        if self.stored is not None and self.to != "safetensors":
            raise UserError(f"--stored {self.stored} is for --to safetensors; leave it out")
        model, kept = weights.load(self.run_or_weights)
        if self.to == "safetensors":
            if self.out.suffix != ".safetensors":
                raise UserError(f"--out {self.out}: such a file is called .safetensors; give another name")
            self.out.parent.mkdir(parents=True, exist_ok=True)
            weights.save(self.out, model, kept | outgoing.record_of(self.run_or_weights), self.stored)
            print(f"weights  {self.out}, {self.out.stat().st_size:,} bytes")
            return 0
        self.out.parent.mkdir(parents=True, exist_ok=True)
        title = outgoing.write(self.out, model, self.to)
        print(f"weights  {self.out}, of a {title}")
        return 0


def _specification(name: str | None) -> NetSpec | str | None:
    if name is not None and is_file(name):
        from preresnet.train.folder import read_network

        return read_network(Path(name))
    if name is not None:
        network(name)  # said before the file is read
    return name
