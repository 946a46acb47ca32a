"""What names and options on the command line stand for: a recipe and its fields, found among the arguments."""

import io
import json
import math
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path
from typing import Any, get_origin

import pydantic
import tyro

from preresnet.changes import FOLLOWERS, PARTS, changed, field_names
from preresnet.cli.entry import PROGRAM, speaks
from preresnet.fields import UserError, explain, field_types, from_json, members, read_json, tag_of
from preresnet.paper.networks import network
from preresnet.paper.recipes import recipe
from preresnet.recipe import Recipe

MANY = -1  # values that an option takes


def command_line() -> str:
    """The command as it was given, for records."""
    return shlex.join([PROGRAM, *sys.argv[1:]])


def shown(*words: str | Path) -> str:
    """A command of ours as it can be pasted into a shell, whatever the names of files."""
    safe = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join([PROGRAM, *safe])


def note(line: str) -> None:
    """Say something that a user did not ask for but should know."""
    if speaks():
        print(f"note: {line}", file=sys.stderr)


def parsed(kind: Any, name: str, arguments: Sequence[str], default: Any = None) -> Any:
    """What the options of a command say.

    What a dataclass refuses is answered in our words, everything else in tyro's.

    Args:
        kind: the command's dataclass.
        name: of the command.
        arguments: behind the name.
        default: values of options that are not given.
    """

    def read() -> Any:
        return tyro.cli(kind, prog=f"{PROGRAM} {name}", args=list(arguments), default=default)

    try:
        with redirect_stderr(io.StringIO()):
            return read()
    except pydantic.ValidationError as error:  # of fields that contradict each other
        raise UserError(explain(error)) from None
    except SystemExit as exit:
        if not exit.code:
            raise
        cause: BaseException | None = exit
        while cause is not None:
            if isinstance(cause, pydantic.ValidationError):
                owners = {one.__name__: part for part, union in PARTS.items() for one in members(union)}
                raise UserError(explain(cause, within=owners.get(cause.title, ""))) from None
            cause = cause.__context__
    return read()  # once more, for what it says


def read_recipe(name: str) -> Recipe:
    """A recipe by name, or from a JSON file: a whole one, or ``{"base": NAME, ...changed fields}``.

    Raises:
        ValueError: no such recipe, or a file that holds none.
    """
    if not is_file(name):
        return recipe(name)
    content = read_json(Path(name), "the recipe file")
    try:
        if not isinstance(content, dict) or "base" not in content:
            return from_json(Recipe, json.dumps(content))
        base = content.pop("base")
        if not isinstance(base, str):
            raise UserError(f"base={json.dumps(base)}; it must be the name of a recipe")
        found, said = changed(recipe(base), _flat(content))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    for line in said:
        note(line)
    return found


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """By the full names of fields."""
    given: dict[str, Any] = {}
    for name, value in content.items():
        inner = name in PARTS and isinstance(value, dict)
        given |= {f"{name}.{last}": one for last, one in value.items()} if inner else {name: value}
    return given


def is_file(name: str) -> bool:
    """Whether a name is the path of a JSON file."""
    return name.endswith(".json")


def find_recipe(arguments: Sequence[str], command: type) -> int | None:
    """Where the recipe stands among the arguments of a command; None: nowhere.

    It is the first that is neither an option nor an option's value. Options that take several values take numbers.

    Args:
        arguments: of the command.
        command: its dataclass.
    """
    takes = _number_of_values(command)
    expected = 0
    for index, argument in enumerate(arguments):
        if argument.startswith("--") or argument == "-h":
            name, sign, _ = argument.partition("=")
            number = takes.get(name.replace("_", "-"), 1)
            expected = 0 if sign and number != MANY else number
        elif expected == 1:
            expected = 0
        elif expected == 0 or not re.fullmatch(r"[-+\d.]+", argument):
            return index
    return None


def _number_of_values(command: type) -> dict[str, int]:
    """How many values each option takes: none, one or `MANY`."""
    kinds = field_types(command) | {
        f"{part}.{name}" if tag_of(kind) else part: inner
        for part, kind in field_types(Recipe).items()
        for one in members(kind) or (None,)
        for name, inner in (field_types(one).items() if one else [("", kind)])
    }
    found = {"--help": 0, "-h": 0}
    for name, kind in kinds.items():
        owner, dot, last = name.replace("_", "-").rpartition(".")
        found[f"--{owner}{dot}{last}"] = 0 if kind is bool else MANY if get_origin(kind) is tuple else 1
        found[f"--{owner}{dot}no-{last}"] = 0
    return found


def given_fields(arguments: Sequence[str]) -> dict[str, str]:
    """The fields of a recipe that are among the arguments, each with the text of its first value."""
    known, found = set(field_names()), {}
    for argument, following in pairwise([*arguments, ""]):
        if argument.startswith("--"):
            option, sign, value = argument[2:].partition("=")
            name = option.replace("-", "_")
            owner, dot, last = name.rpartition(".")
            name = name if name in known else owner + dot + last.removeprefix("no_")
            if name in known:
                found[name] = value if sign else following
    return found


def without(arguments: Sequence[str], left_out: Collection[str]) -> list[str]:
    """The arguments without the options of some fields of a recipe, and without their values."""
    kept, dropping = [], False
    for argument in arguments:
        if argument.startswith("--"):
            dropping = argument[2:].partition("=")[0].replace("-", "_") in left_out
        if not dropping:
            kept.append(argument)
    return kept


def leading(given: dict[str, str]) -> dict[str, Any]:
    """Those of the given fields that decide which fields there are, and the defaults of others."""
    found: dict[str, Any] = {}
    for part, kind in PARTS.items():
        name = f"{part}.{tag_of(kind)}"
        found |= {name: given[name]} if name in given else {}
    return found | {
        name: int(given[name]) for name in FOLLOWERS if given.get(name, "").isdecimal() and int(given[name])
    }


def value(of: Recipe, field: str) -> Any:
    """The value of a field by its full name."""
    for part in field.split("."):
        of = getattr(of, part)
    return of


def has(recipe: Recipe, field: str) -> bool:
    """Whether there is a field of this full name."""
    part, _, last = field.rpartition(".")
    return hasattr(getattr(recipe, part) if part else recipe, last)


def too_small(found: Recipe) -> list[str]:
    """A sentence if the network shrinks images to a single pixel before its last stage."""
    if is_file(found.network):
        from preresnet.train.folder import read_network

        spec = read_network(Path(found.network))
    else:
        spec = network(found.network)
    pool = 2 if spec.stem.activated else 1
    shrinks = spec.stem.stride * pool * math.prod(stage.stride for stage in spec.stages)
    if found.data.image_size >= shrinks:
        return []
    return [
        f"{found.network} shrinks images {shrinks} times: of data.image_size={found.data.image_size} a single pixel "
        f"is left before its last stage; give {shrinks} or more, or another --network"
    ]
