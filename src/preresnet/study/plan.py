"""The runs that make up a table or figure of the paper, at its length or shortened."""

import json
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from preresnet.changes import FOLLOWERS, changed, in_proportion
from preresnet.paper.networks import at_depth
from preresnet.paper.recipes import recipe
from preresnet.paper.studies import Study, chosen, row_name
from preresnet.paper.tables import Row
from preresnet.recipe import ImagesInMemory, Recipe
from preresnet.spec import UserError, to_json
from preresnet.study import manifest

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
        data: ``folder``: images of any classes stand in for those of the paper.
        holdout: training images that every run keeps out and is evaluated on, instead of the test set.
    """

    steps: int | None = None
    batch: int | None = None
    depth: int | None = None
    data: Literal["folder"] | None = None
    holdout: int | None = None

    @property
    def given(self) -> dict[str, int | str]:
        """What was changed."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.given.items())


def parse_scale(text: str, holdout: int | None = None) -> Scale | None:
    """``steps=2000,batch=64,depth=20,data=folder``, any of them, and held-out images; nothing is the paper's own way.

    Raises:
        ValueError: another name, or a value that is no number or too small.
    """
    if not text:
        return None if holdout is None else Scale(holdout=holdout)
    found: dict[str, Any] = {}
    least = {"steps": SHORTEST, "batch": 2, "depth": 5}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name == "data" and value == "folder" and name not in found:
            found[name] = value
            continue
        if name not in least or name in found or not value.isdecimal() or int(value) < least[name]:
            raise UserError(
                f"--scale {text}: cannot use {part!r}; give each of steps (from {SHORTEST}), batch (from 2), depth "
                "and data (folder) at most once, for example steps=2000,batch=64,depth=20"
            )
        found[name] = int(value)
    return Scale(**found, holdout=holdout)


def scaled(full: Recipe, scale: Scale | None) -> Recipe:
    """A recipe shortened: what is counted in steps shrinks in proportion, so that the schedule keeps its shape.

    Milestones stay at the same shares of the run, and the warm-up too; the learning rate stays, also with a smaller
    batch, as in the paper's own run with batch 64 (Table 4, dagger). No norm sees more images than before. The rhythms
    of log and checkpoint shrink in the same proportion; evaluations are at least `EVALUATION_IMAGES` apart.

    Args:
        full: as the paper trained.
        scale: what to change; None changes nothing.
    """
    if scale is None:
        return full
    schedule, batch = full.schedule, scale.batch or full.global_batch
    steps = scale.steps or schedule.steps
    given: dict[str, Any] = {"schedule.steps": steps} | (
        {} if scale.holdout is None else {"data.holdout": scale.holdout}
    )
    given |= {} if scale.data is None else {"data.name": scale.data}
    shortened, _ = changed(full, given)

    def shrunk(count: int) -> int:
        return in_proportion(count, steps, schedule.steps)

    apart = -(-EVALUATION_IMAGES // batch) if steps < schedule.steps else 1
    return replace(
        shortened,
        network=at_depth(full.network, scale.depth) if scale.depth else full.network,
        global_batch=batch,
        norm_batch=full.norm_batch and max(size for size in range(1, full.norm_batch + 1) if batch % size == 0),
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
        recipe: what it trains.
        folder: of its runs; another row's where both test the same runs.
        paper: what the paper printed for it.
        crop: size of the test crop that its error is measured on, where that is not the recipe's first.
        command: `preresnet train` with all options that make up the recipe, without seed and folder.
    """

    name: str
    label: str
    base: str
    network: str
    data: str
    recipe: Recipe
    folder: str
    paper: Row | None
    crop: int | None = None
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
            raise UserError(
                f"at depth={scale.depth if scale else None} the rows {by_name[row.name].base} and {row.base} are the "
                "same network; choose one of them with --rows, or leave depth out"
            )
        by_name[row.name] = row
    title = _said(study.title, scale) + (f" (shortened: {scale})" if scale else "")
    return Plan(study.name, title, scale, tuple(rows))


def _paper_row(row: Row, scale: Scale | None) -> PlannedRow:
    network = at_depth(row.network, scale.depth) if scale and scale.depth else row.network
    moved = replace(row, network=network)
    label = row.label if network == row.network else f"{_said(row.label, scale)} (here {network})"
    full = recipe(row.recipe)
    found = scaled(full, scale)
    return PlannedRow(
        name=row_name(moved),
        label=label,
        base=row.recipe,
        network=network,
        data=row.data,
        recipe=found,
        folder=moved.recipe.replace("/", "-"),
        paper=row,
        crop=None
        if isinstance(found.data, ImagesInMemory) or row.test_crop == found.data.test_crops[0]
        else row.test_crop,
        command=train_options(row.recipe, full, found),
    )


def _said(words: str, scale: Scale | None) -> str:
    """What is said of the paper's depth, said of the depth that is run."""
    return manifest.at_depth(words, scale.depth if scale else None)


def train_options(name: str, base: Recipe, made: Recipe) -> tuple[str, ...]:
    """`preresnet train` with the options that turn one recipe into another."""
    before, after = _flat(json.loads(to_json(base))), _flat(json.loads(to_json(made)))
    command = ["preresnet", "train", name]
    moved = {follower for leader, them in FOLLOWERS.items() if before[leader] != after[leader] for follower in them}
    for field, value in after.items():
        if field in before and value == before[field] and field not in moved:
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
