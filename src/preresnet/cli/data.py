"""The commands about a folder of images, before a network sees it."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from preresnet.cli.options import command_line, shown


@dataclass(frozen=True)
class Check:
    """Find what is wrong with a folder of images: broken files, copies, rare classes.

    Images lie in a folder for each class, right in DIR or in DIR/train, DIR/val and DIR/test. Each file is read once;
    what was found is kept, so that a second look takes seconds. The exit code is 1 where something needs a person.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder."""
    list_out: Path | None = None
    """Write to this new file what training had better leave out: `preresnet train ... --leave-out FILE` reads it."""
    workers: int | None = None
    """Processes that read files; by default one for each core."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Look at all files, and print what was found."""
        from preresnet import display, terminal
        from preresnet.data import checking, leaving_out

        if self.list_out is not None:
            leaving_out.check_new(self.list_out)
        with terminal.counting("files") as report:
            found = checking.check(self.folder, report, self.workers)
        if self.list_out is not None:
            leaving_out.write(self.list_out, found.leave_out)
        if self.json:
            print(json.dumps(found.as_dict()))
        else:
            display.findings(found)
            if self.list_out is not None:
                print(f"left out {self.list_out}: {len(found.leave_out):,} files")
            elif found.leave_out:
                print(f"next     {shown('data', 'check', self.folder, '--list-out', 'leave-out.txt')}")
        sys.stdout.flush()
        return 1 if found.needs_a_person else 0


@dataclass(frozen=True)
class Suspects:
    """Find labels that are probably wrong: each image is judged by a network that has not seen it.

    Images lie as for `preresnet data check`. The same command again continues where it was stopped.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder."""
    out: Path
    """Folder for the networks and for suspects.json, which holds every image, the most suspicious first; created."""
    folds: int = 5
    """Networks; each is trained on all images but its fold. Copies are in one fold."""
    minutes: float = 40.0
    """For all of it, about: steps are timed on this machine first."""
    recipe: str = "images/resnet18-preact"
    """Of the networks, images/NETWORK; crops are 96 pixels wide at most."""
    leave_out: Path | None = None
    """List of image files that are not read, as `preresnet data check DIR --list-out FILE` writes it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Processes that read image files; by default one for each core but one."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Judge all labels, and print the most suspicious."""
        from preresnet import display
        from preresnet.study import suspects

        asked = suspects.Asked(
            self.folder,
            self.out,
            self.folds,
            self.minutes,
            self.recipe,
            self.leave_out,
            self.device,
            self.workers,
            command_line(),
        )
        found = suspects.find(asked, lambda line: print(line, file=sys.stderr, flush=True))
        if self.json:
            print(json.dumps(found))
        else:
            display.suspects(found)
            print(f"all      {self.out / suspects.SUSPECTS_FILE}")
        return 0


@dataclass(frozen=True)
class Shard:
    """Put a folder of images into tar shards, which WebDataset and `preresnet train` read.

    The files stay as they are. In OUT there are train-000000.tar and so on, val-000000.tar where DIR has val/, and
    classes.txt.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder, as for `preresnet data check`."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder for the shards; created."""
    megabytes: int = 256
    """Size of a shard, about."""
    seed: int = 0
    """Of the order of the images in the shards."""
    leave_out: Path | None = None
    """List of image files that are not put in, as `preresnet data check DIR --list-out FILE` writes it."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def run(self) -> int:
        """Write the shards, and print how many there are."""
        from preresnet.data import leaving_out, sharding
        from preresnet.fields import UserError

        if self.megabytes < 1:
            raise UserError(f"--megabytes {self.megabytes}; it must be 1 or more")
        listed = leaving_out.read(self.leave_out) if self.leave_out else ()
        found = sharding.write(self.folder, self.out, self.megabytes, self.seed, listed)
        if self.json:
            print(json.dumps(found))
        else:
            print(f"shards   {self.out}: {len(found['shards']):,}, {found['num_images']:,} images")
            print(f"next     {shown('train', 'images/resnet18-preact', '--data-root', self.out, '--out', 'RUN')}")
        return 0
