"""What does each command of ``preresnet`` take, do and print?"""

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from preresnet.paper.networks import network, network_names
from preresnet.paper.recipes import recipe, recipe_names
from preresnet.paper.tables import ROWS
from preresnet.recipe import Precision, Recipe
from preresnet.spec import explain, from_json, to_json

PROGRAM = "preresnet"
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
        (_list_models if self.what == "models" else _list_recipes)(self.json)
        return 0


@dataclass(frozen=True)
class Describe:
    """Show a network's stages, parameters, multiply-adds and activation memory."""

    name: Annotated[Positional[str], arg(metavar="NETWORK")]
    """A network by name, or the path of its specification as JSON."""
    num_classes: int | None = None
    """Classes; by default 1,000 for an ImageNet network and 10 otherwise."""
    in_channels: int = 3
    """Channels of an input image."""
    input_size: int | None = None
    """Height and width of the input; by default 224 for an ImageNet network and 32 otherwise."""
    json: bool = False
    """Print JSON instead of a table; "spec" in it is the specification, which --network and this command take."""

    def run(self) -> int:
        """Print the description."""
        from preresnet.model.describe import describe

        spec = network(self.name, self.num_classes, self.in_channels) if not _is_file(self.name) else None
        if spec is None:
            from preresnet.train.trainer import read_network

            spec = read_network(Path(self.name))
            spec = replace(spec, num_classes=self.num_classes or spec.num_classes)
        found = {"name": self.name, **describe(spec, self.input_size), "spec": json.loads(to_json(spec))}
        if self.json:
            print(json.dumps(found, indent=1))
        else:
            _print_description(found)
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
    """Folder with the official CIFAR folder (python or binary) in it; without it the set is downloaded."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    resume: bool = False
    """Continue the run in --out, or start it if there is none."""
    holdout: int | None = None
    """Train on all but N training images and evaluate on those, never on the test set (data.holdout)."""
    recipe: Annotated[Recipe, arg(name="")] = ANY_RECIPE

    def run(self) -> int:
        """Train, and print where the run and its results are."""
        from preresnet.train import trainer

        chosen = self.recipe
        if self.holdout is not None:
            chosen = replace(chosen, data=replace(chosen.data, holdout=self.holdout))
        request = trainer.Request(
            recipe=chosen,
            out=self.out,
            seed=self.seed,
            data_root=self.data_root,
            device=self.device,
            resume=self.resume,
            name=self.name,
            command=shlex.join([PROGRAM, *sys.argv[1:]]),
        )
        result = trainer.train(request)
        words = Console(highlight=False, soft_wrap=True)
        words.print(
            f"[bold]{result['split']} error {result['error_pct']:.2f} %[/] at the last step: "
            f"{result['steps']:,} steps, {result['num_images']:,} images, {result['images_per_s']:,.0f} images/s"
        )
        words.print(f"run      {self.out}")
        words.print(f"picture  {self.out / 'curve.png'}")
        words.print(f"next     {PROGRAM} evaluate {self.out}")
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained network: error, table by class, confusion matrix, calibration."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder or a .safetensors file."""
    data_root: Path | None = None
    """Folder with the official CIFAR folder in it; without it the set is downloaded."""
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
        from preresnet.data import sets
        from preresnet.data.loaders import evaluation_batches

        found = trained.open_weights(self.run_or_weights)
        spec = found.data
        if self.split == "holdout" and spec.holdout == 0:
            raise ValueError(f"{self.run_or_weights} held out no images; use --split test")
        data = sets.load(replace(spec, holdout=0) if self.split == "test" else spec, self.data_root)
        device = devices.choose(self.device)
        devices.place(found.model, device)
        batches = evaluation_batches(data.evaluation.to(device), found.normalisation.to(device))
        output, labels = inference.logits(found.model, batches, devices.resolve(self.precision, device))
        report = {"split": data.split, **inference.full_report(output, labels, data.classes)}
        if self.json:
            print(json.dumps(report))
        else:
            _print_evaluation(report)
        return 0


@dataclass(frozen=True)
class Predict:
    """Say what a trained network sees in images: the five likeliest classes of each."""

    run_or_weights: Annotated[Positional[Path], arg(metavar="RUN|WEIGHTS")]
    """A run folder or a .safetensors file."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE...")]
    """Image files of any common format."""
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
            raise ValueError("no image given; name one or more image files after the run")
        found = trained.open_weights(self.run_or_weights)
        device = devices.choose(self.device)
        precision = devices.resolve(self.precision, device)
        answers, broken = trained.predict(found, self.images, device, precision)
        if self.json:
            print(json.dumps({"images": answers, "errors": broken}))
        else:
            _print_answers(answers)
        for message in broken.values():
            print(f"error: {message}", file=sys.stderr)
        return 2 if broken else 0


COMMANDS: dict[str, type] = {
    "list": List,
    "describe": Describe,
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 2 bad input, 1 a run that failed, 128 + n stopped by signal n.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
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
        from preresnet.train import trainer

        if isinstance(error, trainer.InterruptedRunError):
            print(error, file=sys.stderr)
            return error.exit_code
        if isinstance(error, trainer.NotFiniteError):
            print(f"error: {error}", file=sys.stderr)
            return 1
        raise


def _parse(arguments: list[str]) -> Any:
    if arguments[:1] == ["--version"]:
        from preresnet import __version__

        print(__version__)
        raise SystemExit(0)
    if arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        # The recipe decides the defaults of all other options, so it is read first.
        default = Train(name=arguments[1], out=tyro.MISSING, recipe=_recipe(arguments[1]))
        return tyro.cli(Train, prog=f"{PROGRAM} train", args=arguments[1:], default=default)
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog=PROGRAM,
        description="Identity mappings in deep residual networks: networks, training, evaluation.",
        args=arguments,
    )


def _recipe(name: str) -> Recipe:
    if not _is_file(name):
        return recipe(name)
    try:
        content = json.loads(Path(name).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read the recipe file {name}: {error}") from None
    base = content.pop("base", None) if isinstance(content, dict) else None
    if base is None:
        return from_json(Recipe, json.dumps(content))
    return from_json(Recipe, json.dumps(_merge(asdict(recipe(base)), content)))


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _is_file(name: str) -> bool:
    return name.endswith(".json")


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _list_models(as_json: bool) -> None:
    specs = {name: network(name) for name in network_names()}
    if as_json:
        print(json.dumps([{"name": name, "depth": spec.depth} for name, spec in specs.items()]))
        return
    table = Table("network", "depth", "units", "residual unit", "shortcut")
    for name, spec in specs.items():
        units = "+".join(str(stage.num_units) for stage in spec.stages)
        table.add_row(name, str(spec.depth), units, spec.unit.kind, _shortcut_words(spec.unit.shortcut))
    _show(table)


def _shortcut_words(shortcut: Any) -> str:
    fields = ", ".join(f"{key} {value:g}" for key, value in vars(shortcut).items() if isinstance(value, float))
    return shortcut.kind.replace("_", " ") + (f" ({fields})" if fields else "")


def _list_recipes(as_json: bool) -> None:
    printed = {row.recipe: row for row in reversed(ROWS)}  # the first table that prints a number is named
    recipes = {name: recipe(name) for name in recipe_names()}
    if as_json:
        entries = []
        for name, one in recipes.items():
            row = printed.get(name)
            entries.append(
                {
                    "name": name,
                    "network": one.network,
                    "data": one.data.name,
                    "steps": one.schedule.steps,
                    "global_batch": one.global_batch,
                    "paper_table": row.table if row else None,
                    "paper_error_pct": row.error_pct if row else None,
                }
            )
        print(json.dumps(entries))
        return
    table = Table("recipe", "steps", "batch", "learning rate", "printed", title="Recipes")
    for name, one in recipes.items():
        row = printed.get(name)
        error = "" if row is None else "fail" if row.error_pct is None else f"{row.error_pct:.2f} %"
        schedule = one.schedule
        table.add_row(
            name,
            f"{schedule.steps:,}",
            str(one.global_batch),
            f"{schedule.lr:g}, {schedule.shape}",
            f"Table {row.table}: {error}" if row else "",
        )
    _show(table)
    print("Any network of `preresnet list models` trains as cifar10/NETWORK or cifar100/NETWORK.")


def _print_description(found: dict[str, Any]) -> None:
    table = Table("part", title=f"{found['name']}: {found['depth']} layers, input {_shape(found['input'])}")
    for heading in ("units", "output", "parameters", "multiply-adds", "saved, float32", "saved, bfloat16"):
        table.add_column(heading, justify="right")
    whole = {**found, "part": "network", "units": None, "output": []}
    for part in [*found["parts"], whole]:
        if part is whole:
            table.add_section()
        table.add_row(
            part["part"],
            "" if part["units"] is None else str(part["units"]),
            _shape(part["output"]),
            f"{part['parameters']:,}",
            f"{part['multiply_adds']:,}",
            _mib(part["activation_bytes"]["float32"]),
            _mib(part["activation_bytes"]["bfloat16"]),
        )
    _show(table)
    print(
        "Multiply-adds and saved activations are those of one image; activations as a plain training step keeps them."
    )


def _print_evaluation(report: dict[str, Any]) -> None:
    out = Console(highlight=False)
    out.print(
        f"[bold]{report['split']} error {report['error_pct']:.2f} %[/]: {report['num_wrong']:,} of "
        f"{report['num_images']:,} images wrong; loss {report['loss']:.4f}; "
        f"calibration error {report['calibration']['ece_pct']:.2f} %"
    )
    table = Table("class", title="By class")
    for heading in ("images", "wrong", "error %", "precision %"):
        table.add_column(heading, justify="right")
    for entry in report["classes"]:
        numbers = (entry["error_pct"], entry["precision_pct"])
        words = ("-" if number is None else f"{number:.2f}" for number in numbers)
        table.add_row(entry["name"], str(entry["num_images"]), str(entry["num_wrong"]), *words)
    _show(table)
    if len(report["classes"]) <= 20:
        names = [entry["name"] for entry in report["classes"]]
        matrix = Table("true \\ answer", title="Confusion matrix (images)")
        for name in names:
            matrix.add_column(name[:5], justify="right")
        for name, row in zip(names, report["confusion"], strict=True):
            matrix.add_row(name, *(str(count) if count else "." for count in row))
        _show(matrix)
    bins = Table("confidence", title="Calibration of the likeliest answer")
    for heading in ("images", "mean confidence %", "right %"):
        bins.add_column(heading, justify="right")
    for entry in report["calibration"]["bins"]:
        bins.add_row(
            f"{entry['from']:.2f} to {entry['to']:.2f}",
            str(entry["num_images"]),
            f"{entry['confidence_pct']:.1f}",
            f"{entry['accuracy_pct']:.1f}",
        )
    _show(bins)


def _print_answers(answers: list[dict[str, Any]]) -> None:
    table = Table("image", "class", show_lines=False)
    table.add_column("probability %", justify="right")
    for answer in answers:
        for rank, entry in enumerate(answer["top"]):
            table.add_row(answer["image"] if rank == 0 else "", entry["class"], f"{100 * entry['probability']:.2f}")
        table.add_section()
    if answers:
        _show(table)


def _shape(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


def _show(table: Table) -> None:
    console = Console()
    if not console.is_terminal:  # a pipe has no width: cut nothing
        console = Console(width=240)
    console.print(table)
