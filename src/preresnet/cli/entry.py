"""The program ``preresnet``: finds the command that is named, runs it, and turns what goes wrong into an exit code.

Only the command that is named is imported, so that help, a list or a wrong name is answered at once.
"""

import errno
import importlib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from preresnet.fields import UserError, nearest

PROGRAM = "preresnet"
os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # a wrong option is answered here, not on a web page

# Module in this folder, class in it, and the first line of its help.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "list": ("networks", "List", "List the networks or recipes that have a name."),
    "describe": ("networks", "Describe", "Show a network's stages, parameters, multiply-adds and activation memory."),
    "train": ("runs", "Train", "Train a network by a recipe; every field of the recipe is an option."),
    "evaluate": (
        "runs",
        "Evaluate",
        "Measure a trained network: errors by class, confusion matrix, calibration.",
    ),
    "predict": ("answers", "Predict", "Say what a trained network sees in images: the five likeliest classes of each."),
    "embed": (
        "answers",
        "Embed",
        "Write what a network sees in images as a row of numbers for each, ready for nearest neighbours.",
    ),
    "explain": (
        "answers",
        "Explain",
        "Draw where in images a network's answers come from: class activation maps.",
    ),
    "import": ("exchange", "Import", "Bring in a network of another library: its weights become a folder like a run."),
    "export": ("exchange", "Export", "Take a network out: its weights as another library loads them."),
    "data check": ("data", "Check", "Find what is wrong with a folder of images: broken files, copies, rare classes."),
    "data suspects": (
        "data",
        "Suspects",
        "Find labels that are probably wrong: each image is judged by a network that has not seen it.",
    ),
    "data shard": (
        "data",
        "Shard",
        "Put a folder of images into tar shards, which WebDataset and `preresnet train` read.",
    ),
    "probe": (
        "probe",
        "ProbeCommand",
        "Measure how signal and gradient travel, and whether a network will train.",
    ),
    "bench": ("networks", "Bench", "Measure speed and memory of a network beside other systems."),
    "reproduce": ("studies", "Reproduce", "Make a table or figure of the paper again, with seeds and statistics."),
    "plan": ("studies", "PlanCommand", "Predict time and memory of a run on several devices."),
    "sweep": ("studies", "Sweep", "Train a recipe with every combination of some values."),
    "report": ("studies", "Report", "Write one HTML page about runs and studies."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 2 bad input, 1 a run that failed, 128 + n stopped by signal n.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal or a file cannot show is written as \xb1, not raised
            stream.reconfigure(errors="backslashreplace")
    try:
        return read_command(arguments).run()
    except UserError as error:
        return 2 if _is_silent(error) else _fail(str(error))
    except BrokenPipeError:
        return 0
    except OSError as error:
        if not _was_given(error, arguments):
            raise
        return _fail(f"{os.fspath(error.filename)}: {error.strerror}; give another path, or make this one usable")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        code: int | None = getattr(error, "exit_code", None)  # a run or a study that ended without its result
        if code is None:
            raise
        if _is_silent(error):
            return code
        print(error if code > 128 else f"error: {error}", file=sys.stderr)
        return code


def speaks() -> bool:
    """Whether this is the process of its run that prints: the first of those that torchrun started, or one alone."""
    return int(os.environ.get("RANK") or 0) == 0


def _is_silent(error: Exception) -> bool:
    """Whether another process of the run says the same; before they join, the first one does."""
    return getattr(error, "silent", not speaks())


def read_command(arguments: list[str]) -> Any:
    """The command that the arguments describe, read but not run yet."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        raise SystemExit(0 if arguments else 2)
    if name == "--version":
        from preresnet import __version__

        print(__version__)
        raise SystemExit(0)
    rest = arguments[1:]
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and name != "train":
        raise UserError(f"preresnet {name} runs in one process; only preresnet train can be started by torchrun")
    if group := [command for command in COMMANDS if command.startswith(f"{name} ")]:
        if rest and rest[0] not in ("-h", "--help"):
            raise UserError(f"no command {name} {rest[0]!r}; there is {', '.join(group)}")
        print("\n".join([f"usage: {PROGRAM} {name} COMMAND ...", "", "commands:", *_lines(group)]))
        raise SystemExit(0 if rest else 2)
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}; {nearest(name, list(COMMANDS))} `{PROGRAM} --help` says what each does")
    module, kind, _ = COMMANDS[name]
    found = getattr(importlib.import_module(f"preresnet.cli.{module}"), kind)
    from preresnet.cli.options import parsed

    # The options of `train` depend on the recipe that is named among them.
    return found.of(rest) if name == "train" else parsed(found, name, rest)


def _help() -> str:
    return "\n".join(
        [
            f"usage: {PROGRAM} [-h] [--version] COMMAND ...",
            "",
            "Identity mappings in deep residual networks: networks, training, evaluation, reproduction.",
            "",
            "commands:",
            *_lines(COMMANDS),
            "",
            f"`{PROGRAM} COMMAND --help` shows a command's options.",
        ]
    )


def _lines(names: Iterable[str]) -> list[str]:
    names = list(names)
    return [f"  {name:<{max(map(len, names))}}  {COMMANDS[name][2]}" for name in names]


def _was_given(error: OSError, arguments: Sequence[str]) -> bool:
    """Whether a file that cannot be used is, or lies in, a path that the user named."""
    kinds = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
    codes = (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)  # these have no kind of their own
    if error.filename is None or not (isinstance(error, kinds) or error.errno in codes):
        return False
    place = Path(os.path.abspath(os.fsdecode(error.filename)))
    named = (Path(os.path.abspath(argument.split("=", 1)[-1])) for argument in arguments[1:] if argument)
    return any(place.is_relative_to(path) or path.is_relative_to(place) for path in named)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
