"""The commands about one network or run, and how a command line is read."""

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from tyro.conf import AvoidSubcommands, Positional, arg

from preresnet import display, terminal
from preresnet.changes import PARTS, changed
from preresnet.cli import options, probe, studies
from preresnet.cli.options import PROGRAM, command_line, is_file, shown
from preresnet.fields import members
from preresnet.paper.networks import network
from preresnet.paper.recipes import recipe
from preresnet.recipe import Precision, Recipe
from preresnet.spec import MemoryPlan, UserError, explain, to_json

ANY_RECIPE = recipe("digits/resnet20-preact")  # what `train --help` shows; a named recipe brings its own values
os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # a wrong option is answered here, not on a web page


@dataclass(frozen=True)
class List:
    """List the networks or recipes that have a name."""

    what: Positional[Literal["models", "recipes"]]
    """What to list."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Print the list."""
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
        from preresnet import device as devices
        from preresnet.model.describe import describe

        if is_file(self.name):
            from preresnet.train.folder import read_network

            spec = read_network(Path(self.name))
        else:
            spec = network(self.name)
        given = {"num_classes": self.num_classes, "in_channels": self.in_channels}
        spec = replace(spec, **{name: value for name, value in given.items() if value is not None})
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
class Train:
    """Train a network by a recipe; every field of the recipe is an option."""

    name: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A recipe by name, or a JSON file: a whole recipe, or {"base": NAME, ...changed fields}."""
    out: Path
    """Folder for the run; created. A folder that is not empty is never overwritten."""
    seed: int = 0
    """Seed of weights, order of images, augmentation and dropout."""
    data_root: Path | None = None
    """Folder with the official CIFAR folder (python or binary), or with train/CLASS/ and val/CLASS/, in it; without it
    CIFAR is downloaded."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
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
    gpu: tuple[Literal["compiled", "capture", "tensor-lr"], ...] = ()
    """On a CUDA device, beyond PyTorch's own operations: compiled, fused passes; capture, whole steps as CUDA graphs;
    tensor-lr, the learning rate on the device, which capture needs."""
    recipe: AvoidSubcommands[Annotated[Recipe, arg(name="")]] = ANY_RECIPE

    def run(self) -> int:
        """Train, and print where the run and its results are."""
        from preresnet.propagation import series
        from preresnet.train import folder

        chosen = self.recipe
        if self.holdout is not None:
            chosen = replace(chosen, data=replace(chosen.data, holdout=self.holdout))
        request = folder.Request(
            recipe=chosen,
            out=self.out,
            seed=self.seed,
            data_root=self.data_root,
            device=self.device,
            resume=self.resume,
            memory=self.memory,
            workers=self.workers,
            gpu=self.gpu,
            name=self.name,
            command=command_line(),
        )
        result = series.train(request, self.probe_every)
        display.result(result)
        place = () if self.data_root is None else ("--data-root", self.data_root)
        print(f"run      {self.out}")
        print(f"picture  {self.out / 'curve.png'}")
        print(f"next     {shown('evaluate', self.out, *place)}")
        print(f"report   {shown('report', self.out)}")
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained network: error, table by class, confusion matrix, calibration."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder or a .safetensors file."""
    data_root: Path | None = None
    """Folder with the official CIFAR folder, or train/ and val/, in it; without it CIFAR is downloaded. Classes
    of image files are found by their names, and some may be missing."""
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
        from preresnet import inference, trained
        from preresnet.data.loaders import evaluations

        found = trained.open_weights(self.run_or_weights)
        spec = found.data
        if self.split == "holdout" and spec.holdout == 0:
            raise UserError(f"{self.run_or_weights} held out no images; use --split test")
        data = trained.load_set(found, replace(spec, holdout=0) if self.split == "test" else spec, self.data_root)
        device = devices.choose(self.device)
        devices.place(found.model, device)
        passes = evaluations(data.evaluation.to(device), spec, found.normalisation.to(device))
        crop = next(iter(passes)) if self.crop is None else self.crop
        if crop not in passes:
            raise UserError(f"--crop {crop}; this network's test crops are {', '.join(map(str, passes))}")
        output, labels = inference.logits(found.model, passes[crop], devices.resolve(self.precision, device))
        report = {"split": data.split, **inference.full_report(output, labels, data.classes)}
        if self.json:
            print(json.dumps(report))
        else:
            display.evaluation(report)
        return 0


@dataclass(frozen=True)
class Predict:
    """Say what a trained network sees in images: the five likeliest classes of each."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder or a .safetensors file."""
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
        from preresnet import trained

        if not self.images:
            raise UserError("no image given; name one or more image files or folders after the run")
        found = trained.open_weights(self.run_or_weights)
        paths, broken = self._files()
        answers, unreadable = trained.predict(found, paths, devices.choose(self.device), self.precision)
        broken |= unreadable
        if self.json:
            print(json.dumps({"images": answers, "errors": broken}))
        else:
            display.answers(answers)
        for message in broken.values():
            print(f"error: {message}", file=sys.stderr)
        return 2 if broken else 0

    def _files(self) -> tuple[list[Path], dict[str, str]]:
        """The files, and those of the folders, which are counted on the way; and what is wrong with a folder."""
        from preresnet.data import files

        paths: list[Path] = []
        broken: dict[str, str] = {}
        for path in self.images:
            if not os.path.isdir(path):
                paths.append(path)
                continue
            try:
                names, left_out = files.find(path)
            except UserError as error:
                broken[str(path)] = str(error)
                continue
            words = files.left_out_words(left_out)
            print(f"{path}: {len(names):,} images{words}", file=sys.stderr)
            if not names:
                broken[str(path)] = f"{path} holds no image{words}"
            paths += [path / name for name in names]
        return paths, broken


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory of a network beside other systems, in one interleaved run."""

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
        from preresnet.bench import measure as bench
        from preresnet.pictures import canvas, speed

        if self.out is not None and (self.out.exists() or self.out.with_suffix(".png").exists()):
            raise UserError(f"{self.out} or its picture already exists; give another --out")
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
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(bench.as_json(record))
            canvas.save(speed.draw_speed(record), self.out.with_suffix(".png"), dpi=150)
        if self.json:
            print(json.dumps(record))
        else:
            display.bench(record)
        return 0


COMMANDS: dict[str, type] = {
    "list": List,
    "describe": Describe,
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "probe": probe.ProbeCommand,
    "bench": Bench,
    "reproduce": studies.Reproduce,
    "sweep": studies.Sweep,
    "report": studies.Report,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 2 bad input, 1 a run that failed, 128 + n stopped by signal n.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal or a file cannot show is written as \xb1, not raised
            stream.reconfigure(errors="backslashreplace")
    try:
        return _parse(arguments).run()
    except pydantic.ValidationError as error:
        return _fail(explain(error))
    except BrokenPipeError:
        return 0
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        code: int | None = getattr(error, "exit_code", None)  # a run or a study that ended without its result
        if code is None:
            raise
        print(error if code > 128 else f"error: {error}", file=sys.stderr)
        return code


def _parse(arguments: list[str]) -> Any:
    if arguments[:1] == ["--version"]:
        from preresnet import __version__

        print(__version__)
        raise SystemExit(0)
    place = options.find_recipe(arguments[1:], Train) if arguments[:1] == ["train"] else None
    if place is not None:
        return _train(arguments[1 + place], [*arguments[1 : 1 + place], *arguments[2 + place :]])
    return _read(
        tyro.extras.subcommand_cli_from_dict,
        COMMANDS,
        prog=PROGRAM,
        description="Identity mappings in deep residual networks: networks, training, evaluation, reproduction.",
        args=arguments,
    )


def _train(name: str, arguments: list[str]) -> Train:
    """`Train` as the arguments say, over the values of the recipe; what follows from them is said aloud."""
    base, given = options.read_recipe(name), options.given_fields(arguments)
    default, _ = changed(base, options.leading(given))
    if foreign := [field for field in given if not options.has(default, field)]:
        changed(default, {foreign[0]: given[foreign[0]]})
    shown = Train(name=name, out=tyro.MISSING, recipe=default)
    parsed = _read(tyro.cli, Train, prog=f"{PROGRAM} train", args=[name, *arguments], default=shown)
    final, said = changed(base, {field: options.value(parsed.recipe, field) for field in given})
    for line in said + options.too_small(final):
        options.note(line)
    return replace(parsed, recipe=final)


def _read(parse: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What tyro reads; a field that a dataclass refuses is answered in our words, all else in tyro's."""
    try:
        with redirect_stderr(io.StringIO()):
            return parse(*arguments, **options)
    except SystemExit as exit:
        if not exit.code:
            raise
        cause: BaseException | None = exit
        while cause is not None:
            if isinstance(cause, pydantic.ValidationError):
                parts = {one.__name__: part for part, kind in PARTS.items() for one in members(kind)}
                raise UserError(explain(cause, within=parts.get(cause.title, ""))) from None
            cause = cause.__context__
    return parse(*arguments, **options)  # once more, for what it says


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
