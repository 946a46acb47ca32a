"""The content of a report, read from folders of studies and of runs."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preresnet.paper.recipes import recipe
from preresnet.paper.tables import FAIL_PCT, printed
from preresnet.recipe import Recipe
from preresnet.report.content import RowContent, RunContent, StudyContent
from preresnet.spec import UserError, from_json, to_json
from preresnet.study import manifest, statistics
from preresnet.study.manifest import STUDY_FILE, Manifest, Printed, RowEntry, RunEntry, Statistics
from preresnet.train import folder, runlog, watch

# What is used of the files in a run's folder: the type of each field, also of what lists and inner objects hold.
_NUMBER, _MAYBE = (int, float), (int, float, type(None))
_RESULT = {"recipe": {"network": str, "data": {"name": str}, "schedule": {"steps": int}}, "seed": int}
_EVALUATION = {  # `inference.full_report`
    "split": str,
    "error_pct": _NUMBER,
    "classes": [{"name": str, "num_images": int, "num_wrong": int, "error_pct": _MAYBE, "precision_pct": _MAYBE}],
    "confusion": [[int]],
    "calibration": {
        "ece_pct": _NUMBER,
        "bins": [dict.fromkeys(("from", "to", "num_images", "confidence_pct", "accuracy_pct"), _NUMBER)],
    },
}
_PROBE = {key: [_MAYBE] for key in ("x_rms", "residual_rms", "gradient", "straight", "rest")}  # `series.line`
# No change of a recipe: the label names the network, and how often to look changes no result.
_UNCHANGED = ("network", "log_every", "eval_every", "save_every")


def gather(folders: Sequence[Path]) -> tuple[StudyContent, ...]:
    """Read folders of studies and of runs; single runs become the rows of one study, after the others.

    Args:
        folders: each holds ``study.json``, or is what ``preresnet train`` leaves.

    Raises:
        UserError: a folder holds neither, or a file of it cannot be read.
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


def _study(place: Path) -> StudyContent:
    found = manifest.read(place)
    rows = []
    for entry in found.rows:
        runs = tuple(_run(place / run.folder, run) for run in entry.runs)
        rows.append(RowContent(entry, runs, () if found.scale else _changes(entry.recipe, runs)))
    return StudyContent(found, tuple(rows))


def _run(place: Path, said: RunEntry | None) -> RunContent:
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
    missing = _missing(result, _RESULT) if result else []
    if missing:
        files = f"{folder.RESULT_FILE}, {folder.RUN_FILE} and {folder.RECIPE_FILE}"
        raise UserError(f"{place} holds no whole run: no usable {', '.join(missing)} in its {files}")
    missing = [] if stored["evaluation"] is None else _missing(stored["evaluation"], _EVALUATION)
    if missing:
        raise UserError(
            f"{place / folder.EVALUATION_FILE} does not hold {', '.join(missing)}; "
            f"`preresnet evaluate {place} --json` prints what belongs there"
        )
    small = _read(place / folder.THUMBNAILS_FILE) or {}
    thumbnails = {name: found for name, found in small.items() if _is_pictures(found)}
    lines, probes = runlog.read(place), watch.read(place)
    missing = _missing(probes, [_PROBE])
    if missing:
        raise UserError(f"{place / watch.WATCH_FILE} has lines without {', '.join(missing)}; move it away")
    entry = said or RunEntry(
        seed=result.get("seed", 0),
        folder=str(place),
        status="done" if stored["result"] else "running",
        error_pct=result.get("error_pct"),
        top5_error_pct=result.get("top5_error_pct"),
    )
    if stored["result"] and entry.status in ("running", "waiting"):
        message = "finished since the study was written down; the study's command, run again, counts it"
        entry = replace(entry, message=message)
    elif entry.status == "done" and not stored["result"]:
        entry = replace(entry, message=f"{place / folder.RESULT_FILE} is missing; the error is the study's")
    step = max((line["step"] for line in lines), default=0)
    return RunContent(entry, place, step, result, lines, stored["evaluation"], probes, thumbnails)


def _is_pictures(found: Any) -> bool:
    """Two JPEG files within a page, small enough for it."""
    pattern = r"data:image/jpeg;base64,[A-Za-z0-9+/=]{1,40000}"
    return isinstance(found, list) and len(found) == 2 and all(re.fullmatch(pattern, str(one)) for one in found)


def _missing(found: Any, shape: Any, name: str = "") -> list[str]:
    """Names of the fields that a file does not hold, or holds as something else."""
    if isinstance(shape, dict) and isinstance(found, dict):
        inner = [_missing(found.get(key), kind, f"{name}.{key}".strip(".")) for key, kind in shape.items()]
    elif isinstance(shape, list) and isinstance(found, list):
        inner = [_missing(one, shape[0], name) for one in found]
    else:
        right = isinstance(found, type(shape)) if isinstance(shape, dict | list) else isinstance(found, shape)
        return [] if right else [name]
    return list(dict.fromkeys(one for names in inner for one in names))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return found


def _single(runs: Sequence[RunContent]) -> StudyContent:
    """Single runs: those of one recipe are the seeds of one row."""
    groups: dict[str, list[RunContent]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run.result.get("recipe"), run.result.get("network")]), []).append(run)
    rows = _distinct(
        [_row(sorted(group, key=lambda run: run.entry.seed), number) for number, group in enumerate(groups.values(), 1)]
    )
    title = rows[0].entry.label if len(rows) == 1 else f"{len(runs)} runs"
    return StudyContent(Manifest("runs", title, "", tuple(row.entry for row in rows)), rows)


def _row(runs: Sequence[RunContent], number: int) -> RowContent:
    stored = runs[0].result["recipe"]
    network, data, name = Path(stored["network"]).name, stored["data"]["name"], runs[0].result.get("name", "")
    if network != getattr(_named(name), "network", None) and _named(f"{data}/{network}"):
        name = f"{data}/{network}"  # --network took the place of the named recipe's
    changes = _changes(name, runs)
    row = printed(name)
    paper = Printed(row.error_pct, row.error_pct is None, row.spread, row.top5_pct) if row else None
    limit = FAIL_PCT if paper and data == "cifar10" and not changes else None
    entry = RowEntry(
        f"{data}-{network}-{number}",
        f"{network}, {data}",
        name,
        network,
        data,
        paper,
        tuple(run.entry for run in runs),
        _statistics(runs, limit),
    )
    return RowContent(entry, tuple(runs), changes)


def _distinct(rows: Sequence[RowContent]) -> tuple[RowContent, ...]:
    """Rows whose labels differ: the same network under two recipes is told apart by what was changed."""
    labels = [row.entry.label for row in rows]

    def told_apart(row: RowContent) -> RowContent:
        label = f"{row.entry.label}, {'; '.join(row.changes) or row.entry.recipe}"
        return replace(row, entry=replace(row.entry, label=label))

    return tuple(told_apart(row) if labels.count(row.entry.label) > 1 else row for row in rows)


def _named(name: str) -> Recipe | None:
    try:
        return recipe(name)
    except ValueError:
        return None


def _changes(name: str, runs: Sequence[RunContent]) -> tuple[str, ...]:
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


def _statistics(runs: Sequence[RunContent], fails_above: float | None) -> Statistics | None:
    done = [run.entry.error_pct for run in runs if run.entry.status == "done" and run.entry.error_pct is not None]
    return statistics.of_row(statistics.Measured(tuple(done), fails_above=fails_above))
