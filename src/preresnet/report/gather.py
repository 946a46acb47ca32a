"""What goes into a report: which studies, rows, runs and numbers do its folders hold?"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic

from preresnet.paper.recipes import recipe
from preresnet.paper.tables import FAIL_PCT, printed
from preresnet.recipe import Recipe
from preresnet.report.content import Printed, Row, Run, Statistics, Study
from preresnet.spec import UserError, explain, from_json, to_json
from preresnet.study import statistics
from preresnet.study.manifest import STUDY_FILE
from preresnet.train import folder, runlog, watch

_EVALUATION = ("split", "error_pct", "classes", "confusion", "calibration")  # of `inference.full_report`
_PROBE = ("step", "x_rms", "residual_rms", "gradient", "straight", "rest")  # of `series.line`
# No change of a recipe: the label names the network, and how often to look changes no result.
_UNCHANGED = ("network", "log_every", "eval_every", "save_every")


def gather(folders: Sequence[Path]) -> tuple[Study, ...]:
    """Read folders of studies and of runs; single runs become the rows of one study, after the others.

    Args:
        folders: each holds ``study.json``, or is what ``preresnet train`` leaves.

    Raises:
        ValueError: a folder holds neither, or a file of it cannot be read.
    """
    studies, runs = [], []
    for place in dict.fromkeys(folders):
        if (place / STUDY_FILE).is_file():
            studies.append(_study(place))
        elif (place / folder.RECIPE_FILE).is_file():
            runs.append(_run(place, None))
        else:
            raise UserError(f"{place} holds no {STUDY_FILE} and no {folder.RECIPE_FILE}: {_advice(place)}")
    return (*studies, *([_single(runs)] if runs else []))


def _advice(place: Path) -> str:
    if not place.is_dir():
        return "there is no such folder"
    inside = sorted(path.parent for name in (STUDY_FILE, folder.RECIPE_FILE) for path in place.glob(f"*/{name}"))
    if inside:
        return f"name the folders inside it: {', '.join(map(str, inside[:3]))}" + (" ..." if inside[3:] else "")
    return "it is neither a study's folder nor a run's"


def _study(place: Path) -> Study:
    try:
        study = pydantic.TypeAdapter(Study).validate_json((place / STUDY_FILE).read_bytes())
    except pydantic.ValidationError as error:
        raise UserError(f"cannot read {place / STUDY_FILE}: {explain(error)}") from None
    rows = []
    for row in study.rows:
        runs = tuple(_run(place / run.folder, run) for run in row.runs)
        rows.append(replace(row, runs=runs, changes=() if study.scale else _changes(row.recipe, runs)))
    return replace(study, rows=tuple(rows))


def _run(place: Path, said: Run | None) -> Run:
    """A run from its folder, and from what the study says of it."""
    stored = {
        name: _read(place / file)
        for name, file in (
            ("result", folder.RESULT_FILE),
            ("run", folder.RUN_FILE),
            ("recipe", folder.RECIPE_FILE),
            ("network", folder.NETWORK_FILE),
            ("evaluation", folder.EVALUATION_FILE),
        )
    }
    decided = {name: stored[name] for name in ("recipe", "network") if stored[name] is not None}
    result = {**(stored["run"] or {}), **decided, **(stored["result"] or {})}
    missing = [name for name in _EVALUATION if name not in (stored["evaluation"] or _EVALUATION)]
    if missing:
        raise UserError(
            f"{place / folder.EVALUATION_FILE} does not hold {', '.join(missing)}; "
            f"`preresnet evaluate {place} --json` prints what belongs there"
        )
    lines, probes = runlog.read(place), watch.read(place)
    missing = [name for name in _PROBE if not all(name in line for line in probes)]
    if missing:
        raise UserError(f"{place / watch.WATCH_FILE} has lines without {', '.join(missing)}; move it away")
    found = Run(
        seed=result.get("seed", 0),
        folder=place,
        status="done" if stored["result"] else "running",
        error_pct=result.get("error_pct"),
        top5_error_pct=result.get("top5_error_pct"),
        step=max((line["step"] for line in lines), default=0),
        result=result,
        lines=lines,
        evaluation=stored["evaluation"],
        probes=probes,
    )
    if said is None:
        return found
    message = said.message
    if stored["result"] and said.status in ("running", "waiting"):
        message = "finished since the study was written down; the study's command, run again, counts it"
    elif said.status == "done" and not stored["result"]:
        message = f"{place / folder.RESULT_FILE} is missing; the error is the study's"
    return replace(
        found,
        seed=said.seed,
        status=said.status,
        error_pct=said.error_pct,
        top5_error_pct=said.top5_error_pct,
        message=message,
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return found


def _single(runs: Sequence[Run]) -> Study:
    """Single runs: those of one recipe are the seeds of one row."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run.result.get("recipe"), run.result.get("network")]), []).append(run)
    rows = tuple(
        _row(sorted(group, key=lambda run: run.seed), number) for number, group in enumerate(groups.values(), 1)
    )
    title = rows[0].label if len(rows) == 1 else f"{len(runs)} runs"
    return Study("runs", title, "", _distinct(rows))


def _row(runs: Sequence[Run], number: int) -> Row:
    stored = runs[0].result["recipe"]
    network, data, name = Path(stored["network"]).name, stored["data"]["name"], runs[0].result.get("name", "")
    if network != getattr(_named(name), "network", None) and _named(f"{data}/{network}"):
        name = f"{data}/{network}"  # --network took the place of the named recipe's
    changes = _changes(name, runs)
    row = printed(name)
    paper = Printed(row.error_pct, row.error_pct is None, row.spread, row.top5_pct) if row else None
    return Row(
        f"{data}-{network}-{number}",
        f"{network}, {data}",
        name,
        network,
        data,
        paper,
        tuple(runs),
        _statistics(runs, FAIL_PCT if paper and data == "cifar10" else None),
        changes,
    )


def _distinct(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Rows whose labels differ: the same network under two recipes is told apart by what was changed."""
    labels = [row.label for row in rows]
    return tuple(
        replace(row, label=f"{row.label}, {'; '.join(row.changes) or row.recipe}")
        if labels.count(row.label) > 1
        else row
        for row in rows
    )


def _named(name: str) -> Recipe | None:
    try:
        return recipe(name)
    except ValueError:
        return None


def _changes(name: str, runs: Sequence[Run]) -> tuple[str, ...]:
    """How the recipe of runs differs from the named one in what can change a result."""
    named, stored = _named(name), next((run.result["recipe"] for run in runs if "recipe" in run.result), None)
    if named is None or stored is None:
        return ()
    was, now = (flat(json.loads(to_json(one))) for one in (named, from_json(Recipe, json.dumps(stored))))
    fields = [field for field in was | now if field not in _UNCHANGED and was.get(field) != now.get(field)]
    return tuple(f"{field} {now.get(field)} instead of {was.get(field)}" for field in fields)


def flat(tree: dict[str, Any], before: str = "") -> dict[str, str]:
    """Nested fields as ``schedule.steps``: text."""
    fields: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{before}{name}.")
        elif isinstance(value, list):
            fields[before + name] = ", ".join(map(str, value))
        else:
            fields[before + name] = {True: "yes", False: "no", None: "-"}[value] if _is_word(value) else str(value)
    return fields


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _statistics(runs: Sequence[Run], fails_above: float | None) -> Statistics | None:
    errors = [run.error_pct for run in runs if run.status == "done" and run.error_pct is not None]
    found = statistics.of_row(statistics.Measured(tuple(errors), fails_above=fails_above))
    return pydantic.TypeAdapter(Statistics).validate_python(found) if found else None
