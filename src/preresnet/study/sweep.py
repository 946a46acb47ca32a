"""The runs that make up a grid over any fields of a recipe."""

import itertools
import json
from collections.abc import Callable
from typing import Any

from preresnet.changes import changed, field_names
from preresnet.recipe import Recipe
from preresnet.spec import UserError
from preresnet.study.plan import Plan, PlannedRow, train_options


def of_sweep(name: str, base: Recipe, vary: tuple[str, ...], report: Callable[[str], None] = lambda line: None) -> Plan:
    """Every combination of the values of some fields of a recipe.

    Args:
        name: of the recipe, or the file it was read from.
        base: the recipe.
        vary: ``field=value,value``, each field once; a field is named as the option of `preresnet train` is, or by its
            last part where that is enough. A single value changes the recipe of every row.
        report: is told what changes with these fields.

    Raises:
        ValueError: no such field, or a value that it does not take.
    """
    if not vary:
        raise UserError("nothing to vary; give for example --vary schedule.lr=0.05,0.1")
    grid: dict[str, list[Any]] = {}
    for text in vary:
        field, values = _parse_vary(text)
        if field in grid:
            raise UserError(f"--vary names {field} twice; give all of its values at once, separated by commas")
        grid[field] = values
    shown = [field for field, values in grid.items() if len(values) > 1] or list(grid)
    rows, reported = [], set[str]()
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        made, said = changed(base, point)
        for line in said:
            if line not in reported:
                report(line)
        reported.update(said)
        words = {field: _word(point[field]) for field in shown}
        row = "_".join(f"{field}={word}" for field, word in words.items()).replace("/", "-").replace(" ", "")
        rows.append(
            PlannedRow(
                name=row,
                label=", ".join(f"{field} = {word}" for field, word in words.items()),
                base=name,
                network=made.network,
                data=made.data.name,
                recipe=made,
                folder=row,
                paper=None,
                command=train_options(name, base, made),
            )
        )
    twice = any(one in values[:place] for values in grid.values() for place, one in enumerate(values))  # 1 and 1.0 too
    if twice or len({row.name for row in rows}) < len(rows):
        raise UserError(f"--vary {' '.join(vary)}: the same value is given twice")
    fixed = "".join(f", {field} = {_word(values[0])}" for field, values in grid.items() if field not in shown)
    return Plan("sweep", f"Sweep of {name} over {', '.join(shown)}{fixed}", None, tuple(rows))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parse_vary(text: str) -> tuple[str, list[Any]]:
    given, sign, values = text.partition("=")
    if not sign or not values:
        raise UserError(f"--vary {text}: give a field and its values, for example schedule.lr=0.05,0.1")
    field = resolve_field(given.strip().replace("-", "_"))
    try:
        return field, json.loads(f"[{values}]")
    except json.JSONDecodeError:  # words, such as the names of networks
        return field, [value.strip() for value in values.split(",")]


def resolve_field(given: str) -> str:
    """The full name of a field.

    Raises:
        ValueError: no such field, or several that end like that.
    """
    known = field_names()
    if given in known:
        return given
    same = [name for name in known if name.split(".")[-1] == given.split(".")[-1]]
    if len(same) == 1:  # lr; also optim.lr, which other programs call it
        return same[0]
    if same:
        raise UserError(f"--vary {given}: that is {' or '.join(same)}; give the whole name")
    raise UserError(f"--vary {given}: no such field of a recipe; there are {', '.join(known)}")
