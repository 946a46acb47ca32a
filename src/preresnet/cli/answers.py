"""The commands that ask a trained network about image files: what it sees, where, and as which numbers."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from preresnet.fields import UserError
from preresnet.recipe import Precision


@dataclass(frozen=True)
class Predict:
    """Say what a trained network sees in images: the five likeliest classes of each."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder, a .safetensors file, or a network that comes with this program: cifar10/resnet20-preact."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE|FOLDER...")]
    """Image files of any common format, and folders of which all images are meant, also in folders below."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "auto"
    """auto, float32 or bfloat16."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Answer for every readable image; the exit code is 2 if one could not be read."""
        from preresnet import device as devices
        from preresnet import display, trained

        found = trained.open_weights(self.run_or_weights)
        paths, broken = _image_files(self.images)
        answers, unreadable = trained.predict(found, paths, devices.choose(self.device), self.precision)
        broken |= unreadable
        if self.json:
            print(json.dumps({"images": answers, "errors": broken}))
        else:
            display.answers(answers)
        for message in broken.values():
            print(f"error: {message}", file=sys.stderr)
        return 2 if broken else 0


@dataclass(frozen=True)
class Embed:
    """Write what a network sees in images as a row of numbers for each, ready for nearest neighbours."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder, a .safetensors file, or a network that comes with this program: cifar10/resnet20-preact."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE|FOLDER...")]
    """Image files of any common format, and folders of which all images are meant, also in folders below."""
    out: Path
    """New file: .npy, with the images' paths in order in a .txt beside it; or .parquet with the columns image and
    embedding (pip install 'preresnet[parquet]')."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> int:
        """Compute and write; the exit code is 2 if an image could not be read."""
        from preresnet import device as devices
        from preresnet import trained
        from preresnet.exchange import embeddings

        embeddings.check(self.out)
        found = trained.open_weights(self.run_or_weights)
        paths, broken = _image_files(self.images)
        readable, rows, unreadable = trained.embed(found, paths, devices.choose(self.device))
        broken |= unreadable
        if readable:
            for file in embeddings.write(self.out, readable, rows):
                print(f"written  {file}: {len(readable):,} images, {rows.shape[1]} numbers each")
        for message in broken.values():
            print(f"error: {message}", file=sys.stderr)
        return 2 if broken else 0


@dataclass(frozen=True)
class Explain:
    """Draw where in images a network's answers come from: class activation maps."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder, a .safetensors file, or a network that comes with this program: cifar10/resnet20-preact."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE|FOLDER...")]
    """Image files of any common format, and folders of which all images are meant, also in folders below."""
    out: Path
    """Folder for a picture of each image, named like it; created. No file in it is overwritten."""
    class_: Annotated[str | None, arg(name="class", metavar="NAME")] = None
    """Explain this class; by default the likeliest of each image."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> int:
        """Draw every readable image; the exit code is 2 if one could not be read."""
        from preresnet import device as devices
        from preresnet import trained
        from preresnet.data import files
        from preresnet.pictures import canvas, explained

        found = trained.open_weights(self.run_or_weights)
        if self.class_ is not None:
            files.labels_by_name([self.class_], found.classes, "--class")
        paths, broken = _image_files(self.images)
        targets = _targets(paths, self.out)
        device = devices.choose(self.device)
        self.out.mkdir(parents=True, exist_ok=True)
        for path, target in targets.items():
            try:
                one = trained.explain(found, path, self.class_, device)
            except UserError as error:
                broken[str(path)] = str(error)
                continue
            pixels, contributions = one.pixels.numpy(), one.contributions.numpy()
            canvas.save(explained.draw_explained(path.name, pixels, contributions, one.name, one.top), target, dpi=110)
            print(f"picture  {target}: {one.top[0]['class']}, {100 * one.top[0]['probability']:.1f} %")
        for message in broken.values():
            print(f"error: {message}", file=sys.stderr)
        return 2 if broken else 0


def _targets(paths: list[Path], out: Path) -> dict[Path, Path]:
    """A new file for the picture of each image.

    Raises:
        UserError: one is there already.
    """
    taken: set[str] = set()
    found: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        name, number = path.stem, 1
        while (folded := name.casefold()) in taken:  # images of one name, from several folders
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(folded)
        found[path] = out / f"{name}.png"
    if there := next((target for target in found.values() if os.path.lexists(target)), None):
        raise UserError(f"{there} is there already; give another --out, or remove it")
    return found


def _image_files(given: tuple[Path, ...]) -> tuple[list[Path], dict[str, str]]:
    """The files, and those of the folders, which are counted on the way; and what is wrong with a folder.

    Raises:
        UserError: none is given.
    """
    from preresnet.data import files, walk

    if not given:
        raise UserError("no image given; name one or more image files or folders after the run")
    paths: list[Path] = []
    broken: dict[str, str] = {}
    for path in given:
        if not os.path.isdir(path):
            paths.append(path)
            continue
        try:
            names, left_out = walk.find(path)
        except UserError as error:
            broken[str(path)] = str(error)
            continue
        words = files.left_out_words(left_out)
        print(f"{path}: {len(names):,} images{words}", file=sys.stderr)
        if not names:
            broken[str(path)] = f"{path} holds no image{words}"
        paths += [path / name for name in names]
    return paths, broken
