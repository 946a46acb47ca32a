"""Which runs make up a study: a table of the paper at its length or shortened, or a grid of recipes?"""

import itertools
import json
import shlex
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from preresnet.paper.networks import at_depth
from preresnet.paper.recipes import recipe
from preresnet.paper.studies import Study, chosen, row_name
from preresnet.paper.tables import Row
from preresnet.recipe import Recipe
from preresnet.spec import from_json, to_json

SHORTEST = 8  # steps; below, the milestones at 1/2 and 3/4 would meet
# Training images between two evaluations, at least: an evaluation passes 10,000 test images forward, about a tenth of
# the time that training on 20,000 takes. In proportion, short runs would spend their time on being evaluated.
EVALUATION_IMAGES = 20_000


@dataclass(frozen=True)
class Scale:
    """How a study is shortened; what is None stays as the paper has it.

    Args:
        steps: weight updates.
        batch: images of an update.
        depth: layers.
    """

    steps: int | None = None
    batch: int | None = None
    depth: int | None = None

    @property
    def given(self) -> dict[str, int]:
        """What was changed."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.given.items())


def parse_scale(text: str) -> Scale | None:
    """``steps=2000,batch=64,depth=20``, any of them; empty text is the paper's full length.

    Raises:
        ValueError: another name, or a value that is no number or too small.
    """
    if not text:
        return None
    found: dict[str, int] = {}
    least = {"steps": SHORTEST, "batch": 2, "depth": 5}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in least or name in found or not value.isdecimal() or int(value) < least[name]:
            raise ValueError(
                f"--scale {text}: cannot use {part!r}; give each of steps (from {SHORTEST}), batch (from 2) and depth "
                "at most once, for example steps=2000,batch=64,depth=20"
            )
        found[name] = int(value)
    return Scale(**found)


def scaled(full: Recipe, scale: Scale | None) -> Recipe:
    """A recipe shortened: what is counted in steps shrinks in proportion, so that the schedule keeps its shape.

    Milestones stay at the same shares of the run, and the warm-up too; the learning rate stays, also with a smaller
    batch, as in the paper's own run with batch 64 (Table 4, dagger). The rhythms of log and checkpoint shrink in the same
    proportion; evaluations are at least `EVALUATION_IMAGES` apart.

    Args:
        full: as the paper trained.
        scale: what to change; None changes nothing.
    """
    if scale is None:
        return full
    schedule, batch = full.schedule, scale.batch or full.global_batch
    steps = scale.steps or schedule.steps
    share = steps / schedule.steps

    def shrunk(count: int) -> int:
        return max(1, round(count * share)) if count else 0

    apart = -(-EVALUATION_IMAGES // batch) if steps < schedule.steps else 1
    return replace(
        full,
        network=at_depth(full.network, scale.depth) if scale.depth else full.network,
        global_batch=batch,
        schedule=replace(
            schedule,
            steps=steps,
            milestones=tuple(shrunk(milestone) for milestone in schedule.milestones),
            warmup_steps=shrunk(schedule.warmup_steps),
        ),
        log_every=shrunk(full.log_every),
        eval_every=min(steps, max(shrunk(full.eval_every), apart)),
        save_every=shrunk(full.save_every),
    )


@dataclass(frozen=True)
class PlannedRow:
    """A row of a study.

    Args:
        name: of its folder and record.
        label: for people.
        base: name of the recipe that it starts from.
        network: name of its network.
        data: data set.
        recipe: what it trains; None where training is not there yet (ImageNet).
        folder: of its runs; another row's where both test the same runs.
        paper: what the paper printed for it.
        command: `preresnet train` with all options that make up the recipe, without seed and folder.
    """

    name: str
    label: str
    base: str
    network: str
    data: str
    recipe: Recipe | None
    folder: str
    paper: Row | None
    command: tuple[str, ...] = ()

    def train_command(self, seed: int) -> str:
        """The command that does one of its runs alone."""
        return shlex.join([*self.command, "--seed", str(seed), "--out", f"runs/{self.folder}-seed{seed}"])


@dataclass(frozen=True)
class Plan:
    """A study to be done.

    Args:
        study: ``table1`` and so on, or ``sweep``.
        title: for people; says so where the study is shortened.
        scale: how it is shortened; None: at the paper's length.
        rows: in order.
    """

    study: str
    title: str
    scale: Scale | None
    rows: tuple[PlannedRow, ...]


def of_paper(study: Study, patterns: tuple[str, ...] = (), scale: Scale | None = None) -> Plan:
    """The rows of a table or figure.

    Args:
        study: from `preresnet.paper.studies`.
        patterns: which rows; none for all.
        scale: how to shorten them.

    Raises:
        ValueError: no such row or depth; or two rows that become the same network at that depth.
    """
    rows = [_paper_row(row, scale) for row in chosen(study.rows, patterns)]
    by_name: dict[str, PlannedRow] = {}
    for row in rows:
        if row.name in by_name:
            raise ValueError(
                f"at depth {scale.depth if scale else None} the rows {by_name[row.name].base} and {row.base} are the same "
                "network; choose one of them with --rows, or leave depth out"
            )
        by_name[row.name] = row
    title = study.title + (f" (shortened: {scale})" if scale else "")
    return Plan(study.name, title, scale, tuple(rows))


def _paper_row(row: Row, scale: Scale | None) -> PlannedRow:
    network = at_depth(row.network, scale.depth) if scale and scale.depth else row.network
    moved = replace(row, network=network)
    label = row.label + (f" (here {network})" if network != row.network else "")
    if row.data == "imagenet":
        found = None
        folder = moved.recipe.replace("/", "-")
    else:
        full = recipe(row.recipe)
        found = scaled(full, scale)
        folder = row_name(moved)
    command = () if found is None else train_options(row.recipe, recipe(row.recipe), found)
    return PlannedRow(row_name(moved), label, row.recipe, network, row.data, found, folder, row, command)


def of_sweep(name: str, base: Recipe, vary: tuple[str, ...]) -> Plan:
    """Every combination of the values of some fields of a recipe.

    Args:
        name: of the recipe, or the file it was read from.
        base: the recipe.
        vary: ``field=value,value``, each field once; a field is named as the option of `preresnet train` is, or by its
            last part where that is enough. A single value changes the recipe of every row.

    Raises:
        ValueError: no such field, or a value that it does not take.
    """
    if not vary:
        raise ValueError("nothing to vary; give for example --vary schedule.lr=0.05,0.1")
    grid: dict[str, list[Any]] = {}
    for text in vary:
        field, values = _parse_vary(text)
        if field in grid:
            raise ValueError(f"--vary names {field} twice; give all of its values at once, separated by commas")
        grid[field] = values
    shown = [field for field, values in grid.items() if len(values) > 1] or list(grid)
    rows = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        content = asdict(base)
        for field, value in point.items():
            *path, last = field.split(".")
            inner = content
            for part in path:
                inner = inner[part]
            inner[last] = value
        made = from_json(Recipe, json.dumps(content))
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
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(f"--vary {' '.join(vary)}: the same value is given twice")
    fixed = "".join(f", {field} = {_word(values[0])}" for field, values in grid.items() if field not in shown)
    return Plan("sweep", f"Sweep of {name} over {', '.join(shown)}{fixed}", None, tuple(rows))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parse_vary(text: str) -> tuple[str, list[Any]]:
    given, sign, values = text.partition("=")
    if not sign or not values:
        raise ValueError(f"--vary {text}: give a field and its values, for example schedule.lr=0.05,0.1")
    field = resolve_field(given.strip().replace("-", "_"))
    try:
        return field, json.loads(f"[{values}]")
    except json.JSONDecodeError:  # words, such as the names of networks
        return field, [value.strip() for value in values.split(",")]


def recipe_fields() -> list[str]:
    """Every field of a recipe, as the options of `preresnet train` name it."""
    found = []
    for field in fields(Recipe):
        kind: Any = field.type
        inner = [inner.name for inner in fields(kind)] if hasattr(kind, "__dataclass_fields__") else []
        found += [f"{field.name}.{name}" for name in inner] or [field.name]
    return found


def resolve_field(given: str) -> str:
    """The full name of a field.

    Raises:
        ValueError: no such field, or several that end like that.
    """
    known = recipe_fields()
    if given in known:
        return given
    same = [name for name in known if name.split(".")[-1] == given.split(".")[-1]]
    if len(same) == 1:  # lr; also optim.lr, which other programs call it
        return same[0]
    if same:
        raise ValueError(f"--vary {given}: that is {' or '.join(same)}; give the whole name")
    raise ValueError(f"--vary {given}: no such field of a recipe; there are {', '.join(known)}")


def train_options(name: str, base: Recipe, made: Recipe) -> tuple[str, ...]:
    """`preresnet train` with the options that turn one recipe into another."""
    before, after = _flat(json.loads(to_json(base))), _flat(json.loads(to_json(made)))
    command = ["preresnet", "train", name]
    for field, value in after.items():
        if value == before[field]:
            continue
        option = field.replace("_", "-")
        if isinstance(value, bool):
            owner, dot, last = option.rpartition(".")
            command.append(f"--{option}" if value else f"--{owner}{dot}no-{last}")
        elif isinstance(value, list):
            command += [f"--{option}", *map(str, value)]
        else:
            command += [f"--{option}", str(value)]
    return tuple(command)


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def run_folder(out: Path, row: PlannedRow, seed: int) -> Path:
    """Where a run of a study lies."""
    return out / row.folder / f"seed{seed}"
