"""What does a name on the command line stand for?"""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preresnet.paper.recipes import recipe
from preresnet.recipe import Recipe
from preresnet.spec import UserError, from_json

PROGRAM = "preresnet"


def command_line() -> str:
    """The command as it was given, for records."""
    return shlex.join([PROGRAM, *sys.argv[1:]])


def shown(*words: str | Path) -> str:
    """A command of ours as it can be pasted into a shell, whatever the names of files."""
    safe = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join([PROGRAM, *safe])


def read_recipe(name: str) -> Recipe:
    """A recipe by name, or from a JSON file: a whole one, or ``{"base": NAME, ...changed fields}``.

    Raises:
        ValueError: no such recipe, or a file that holds none.
    """
    if not is_file(name):
        return recipe(name)
    try:
        content = json.loads(Path(name).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the recipe file {name}: {error}") from None
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


def is_file(name: str) -> bool:
    """Whether a name is the path of a JSON file."""
    return name.endswith(".json")
