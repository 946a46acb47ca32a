"""The commands about one run: train a network, and measure it."""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import AvoidSubcommands, Positional, Suppress, arg

from preresnet.changes import changed, without_effect
from preresnet.cli import options
from preresnet.cli.options import command_line, shown
from preresnet.fields import UserError, with_fields
from preresnet.paper.recipes import recipe
from preresnet.recipe import Precision, Recipe
from preresnet.spec import MemoryPlan

ANY_RECIPE = recipe("digits/resnet20-preact")  # what `train --help` shows; a named recipe brings its own values


@dataclass(frozen=True)
class Train:
    """Train a network by a recipe; every field of the recipe is an option."""

    name: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A recipe by name, or a JSON file: a whole recipe, or {"base": NAME, ...changed fields}."""
    out: Path
    """Folder for the run; created. A folder that is not empty is never overwritten."""
    seed: int = 0
    """Seed of weights, order of images, augmentation and dropout."""
    data_root: Path | None = None
    """Folder with the official CIFAR folder (python or binary) in it, without which CIFAR is downloaded; or with images
    in train/CLASS/ and val/CLASS/; for images/NETWORK also in CLASS/, or in shards, there or at a URL."""
    leave_out: Path | None = None
    """List of image files that are not read, as `preresnet data check DIR --list-out FILE` writes it."""
    weights: Path | None = None
    """A run folder or a .safetensors file whose network this run starts from. Its classifier is replaced where the
    classes differ."""
    epochs: float | None = None
    """Train so long that every image is seen so many times; the schedule keeps its shape. For photographs 100, unless
    steps, epochs or minutes are given."""
    minutes: float | None = None
    """Train for about so many minutes, with all evaluations: steps are timed on this machine first."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    executor: Literal["local", "ray"] = "local"
    """local: this process, or those that torchrun started. ray: processes on a Ray cluster, by Ray Train
    (pip install 'preresnet[cluster]')."""
    gpus_per_run: int | None = None
    """With --executor ray: processes of the run, each with a GPU, or with a share of a cluster's processors."""
    workers: int | None = None
    """Processes that read image files; by default one for each core but one."""
    resume: bool = False
    """Continue the run in --out, or start it if there is none."""
    memory: Literal["auto", MemoryPlan] = "auto"
    """What the backward pass recomputes to save memory; results are the same. auto: the least that fits."""
    holdout: int | None = None
    """Train on all but N training images and evaluate on those, never on the test set (data.holdout)."""
    probe_every: int | Literal["auto"] | None = None
    """Probe the network every N steps, into probe.jsonl and probe.png of the run; the result stays the same. auto: as
    often as 3 % of the run's time allow, 100 times at most."""
    gpu: tuple[Literal["compiled", "capture", "tensor-lr", "plain"], ...] | None = None
    """On a CUDA device: capture, whole steps as CUDA graphs; tensor-lr, the learning rate on the device, which capture
    needs; compiled, fused passes; plain, none of these. By default capture and tensor-lr."""
    recipe: AvoidSubcommands[Annotated[Recipe, arg(name="")]] = ANY_RECIPE
    given: Suppress[tuple[str, ...]] = ()
    arguments: Suppress[tuple[str, ...]] = ()

    @classmethod
    def of(cls, arguments: list[str]) -> "Train":
        """What the arguments say, over the values of the recipe among them; what follows from them is said aloud."""
        place = options.find_recipe(arguments, cls)
        if place is None:
            return options.parsed(cls, "train", arguments)
        name, arguments = arguments[place], [*arguments[:place], *arguments[place + 1 :]]
        base, given = options.read_recipe(name), options.given_fields(arguments)
        default, _ = changed(base, options.leading(given))
        idle = without_effect(asdict(default), given)
        if foreign := [field for field in given if field not in idle and not options.has(default, field)]:
            changed(default, {foreign[0]: given[foreign[0]]})
        start = cls(name=name, out=tyro.MISSING, recipe=default)
        made = options.parsed(cls, "train", [name, *options.without(arguments, idle)], start)
        values = {field: given[field] if field in idle else options.value(made.recipe, field) for field in given}
        final, said = changed(base, values)
        for line in said + options.too_small(final):
            options.note(line)
        alone = options.without(arguments, ("executor", "gpus_per_run"))
        return replace(made, recipe=final, given=tuple(given), arguments=(name, *alone))

    def run(self) -> int:
        """Train, and print where the run and its results are."""
        begin = time.perf_counter()  # PyTorch's import, which is next, is part of the minutes
        if self.gpus_per_run is not None and self.executor == "local":
            raise UserError("--gpus-per-run is for --executor ray; without Ray, start the command by torchrun")
        if self.executor == "ray":
            return self._on_ray()
        from preresnet import distributed

        with distributed.joined(self.device) as world:
            return self._train(begin, quiet=not world.first)

    def _on_ray(self) -> int:
        """The same command in processes of a Ray cluster."""
        from preresnet.cli.entry import main
        from preresnet.study import executors, together

        def say(line: str, is_error: bool) -> None:
            print(line, file=sys.stderr if is_error else sys.stdout, flush=True)

        task = together.Task(main, ["train", *self.arguments], self.gpus_per_run or 1, self.device)
        with executors.connected():
            code, received = together.run(task, self.out.absolute(), say)
        return 128 + received if code > 128 else code

    def _train(self, begin: float, *, quiet: bool) -> int:
        from preresnet import display, distributed
        from preresnet.propagation import series
        from preresnet.train import folder, length

        chosen = self.recipe
        if self.holdout is not None:
            chosen = replace(chosen, data=with_fields(chosen.data, holdout=self.holdout))
        request = folder.Request(
            recipe=chosen,
            out=self.out,
            seed=self.seed,
            data_root=self.data_root,
            leave_out=self.leave_out,
            weights=self.weights,
            device=self.device,
            resume=self.resume or distributed.restarted(),
            memory=self.memory,
            workers=self.workers,
            gpu=self.gpu,
            name=self.name,
            command=command_line(),
        )
        given = (*self.given, "data.holdout") if self.holdout is not None else self.given
        fitted = length.fitted(request, length.Length(self.epochs, self.minutes, begin), given)
        for line in () if quiet else fitted.said:
            options.note(line)
        result = series.train(fitted.request, self.probe_every, fitted.data)
        if quiet:
            return 0
        display.result(result)
        place = () if self.data_root is None else ("--data-root", self.data_root)
        print(f"run      {self.out}")
        print(f"picture  {self.out / 'curve.png'}")
        print(f"next     {shown('evaluate', self.out, *place)}")
        print(f"report   {shown('report', self.out)}")
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained network: errors by class, confusion matrix, calibration."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder, a .safetensors file, or a network that comes with this program."""
    data_root: Path | None = None
    """Folder with the official CIFAR folder in it, without which CIFAR is downloaded; or with images in val/CLASS/; or
    what an images/NETWORK was trained on. Classes are found by their names, and some may be missing."""
    crop: int | None = None
    """Of image files: another of the recipe's test crops than the first (data.test_crops)."""
    split: Literal["auto", "test", "holdout"] = "auto"
    """auto: held-out images where the run held some out, the test set otherwise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "auto"
    """auto, float32 or bfloat16."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Evaluate and print."""
        from preresnet import device as devices
        from preresnet import display, inference, trained
        from preresnet.data.loaders import evaluations
        from preresnet.train.folder import LEAVE_OUT_FILE, VALIDATION_FILE

        found = trained.open_weights(self.run_or_weights)
        spec = found.data
        left_out, kept = (_there(self.run_or_weights / name) for name in (LEAVE_OUT_FILE, VALIDATION_FILE))
        if self.split == "holdout" and spec.holdout == 0 and kept is None:
            raise UserError(f"{self.run_or_weights} held out no images; use --split test")
        test = self.split == "test"
        spec_of_split = replace(spec, holdout=0) if test else spec
        data = trained.load_set(found, spec_of_split, self.data_root, left_out, None if test else kept)
        if data.note:
            options.note(data.note)
        device = devices.choose(self.device)
        devices.place(found.model, device)
        passes = evaluations(data.evaluation.to(device), spec, found.normalisation.to(device))
        crop = next(iter(passes)) if self.crop is None else self.crop
        if crop not in passes:
            raise UserError(f"--crop {crop}; this network's test crops are {', '.join(map(str, passes))}")
        output, labels = inference.logits(found.model, passes[crop], devices.resolve(self.precision, device))
        report = {
            "split": data.split,
            **inference.full_report(output, labels, data.classes, data.names(self.data_root)),
        }
        if self.json:
            print(json.dumps(report))
        else:
            display.evaluation(report)
        return 0


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None
