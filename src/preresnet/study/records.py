"""The evidence of a study that is committed, and the tables of results that follow from it.

``records/<study>/<row>/seed<k>.json`` is the ``result.json`` of a run (``diverged.json`` where its loss was not
finite); a shortened study has a folder that says so.
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

from preresnet.paper.recipes import recipe
from preresnet.paper.studies import STUDIES, row_name
from preresnet.paper.tables import ROWS, Row
from preresnet.recipe import Recipe
from preresnet.spec import from_json
from preresnet.study.manifest import DIVERGED_FILE, Manifest
from preresnet.study.runs import errors
from preresnet.train.checkpoint import write_atomically
from preresnet.train.folder import RESULT_FILE

SCALED = "-scaled-"
_CROP = re.compile(r"-crop(\d+)$")  # of a row that tests another row's runs
START, END = "<!-- results: generated from records/ by tests/test_records.py --write -->", "<!-- end of results -->"
SHORT_START = "<!-- reproduced: generated from records/ by tests/test_records.py --write -->"  # in README
SHORT_END = "<!-- end of reproduced -->"


def group(found: Manifest) -> str:
    """The folder of a study's records: its name, and how it was shortened."""
    return found.study + (
        SCALED + "-".join(f"{name}{value}" for name, value in found.scale.items()) if found.scale else ""
    )


def keep(out: Path, found: Manifest, records: Path) -> tuple[list[Path], list[Path]]:
    """Copy the results of a study's finished runs.

    Args:
        out: folder of the study.
        found: its manifest.
        records: folder that holds all records.

    Returns:
        What was written, and what was left alone because another result is already there.
    """
    written, different = [], []
    files = {"done": RESULT_FILE, "diverged": DIVERGED_FILE}
    for row in found.rows:
        for run in row.runs:
            source = out / run.folder / files.get(run.status, "")
            if not source.is_file():
                continue
            place = records / group(found) / row.row / f"seed{run.seed}.json"
            text = source.read_text()
            if place.is_file():
                if place.read_text() != text:
                    different.append(place)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, lambda path, text=text: path.write_text(text))
            written.append(place)
    return written, different


def results(records: Path) -> str:
    """The tables of results in Markdown: runs at full length beside what was printed, and apart those shortened.

    Args:
        records: folder that holds all records; links are relative to it.
    """
    full = ["| run | printed % | ours % | seeds | steps | training of one | machine | records |", _rule(8)]
    short = ["| run | shortened to | ours % | seeds | training of one | machine | records |", _rule(7)]
    for folder in _groups(records):
        for row in _in_order(folder):
            paths = sorted(row.glob("seed*.json"), key=lambda path: int(path.stem.removeprefix("seed")))
            runs = [json.loads(path.read_text()) for path in paths]
            links = ", ".join(f"[{path.stem}]({path.relative_to(records).as_posix()})" for path in paths)
            crop = _CROP.search(row.name)
            name = f"`{_base(runs[0])}`" + (f" at {crop[1]}" if crop else "")
            shared = [_errors(runs, int(crop[1]) if crop else None), str(len(runs))]
            end = [_time(runs), _machines(runs), links]
            if SCALED in folder.name:
                study, _, words = folder.name.partition(SCALED)
                words = re.sub(r"([a-z]+)(\d+)-?", r"\1 \2, ", words).rstrip(", ")
                short.append(_line([f"{study}: {name}", words, *shared, *end]))
            else:
                steps = sorted({run["recipe"]["schedule"]["steps"] for run in runs})
                where = f"{folder.name}: {name}"
                full.append(_line([where, _printed(runs, row.name), *shared, "/".join(f"{n:,}" for n in steps), *end]))
    parts = ["\n".join(full)]
    if len(short) > 2:
        parts.append("Shortened runs, never to be compared with a printed number:")
        parts.append("\n".join(short))
    return "\n\n".join(parts) + "\n"


def short_results(records: Path) -> str:
    """What is reproduced and what is not, in Markdown: what was run of each table, then rows at full length.

    Args:
        records: folder that holds all records.
    """
    full: list[str] = []
    found: dict[str, set[str]] = {"": set(), SCALED: set()}  # rows with records: at full length, shortened
    for folder in _groups(records):
        scaled = SCALED if SCALED in folder.name else ""
        study = folder.name.partition(SCALED)[0]
        for row in _in_order(folder):
            found[scaled].add(f"{study}/{row.name}")
            if not scaled:
                runs = [json.loads(path.read_text()) for path in sorted(row.glob("seed*.json"))]
                crop = _CROP.search(row.name)
                errors = _errors(runs, int(crop[1]) if crop else None)
                seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
                full.append(
                    _line([f"`{_base(runs[0])}`", "1", "1", "", _printed(runs, row.name), f"{errors} ({seeds})"])
                )
    covered = ["| | rows | at full length | shortened | printed % | ours % |", _rule(6)]
    for name, study in STUDIES.items():
        if name.startswith("table"):
            rows = {f"{name}/{row_name(row)}" for row in study.rows}
            counts = [str(len(rows & found[kind])) for kind in ("", SCALED)]
            covered.append(_line([study.title, str(len(rows)), *counts, "", ""]))
    return "\n".join(covered + full) + "\n"


def _groups(records: Path) -> list[Path]:
    return sorted(
        {path.parent.parent for path in records.glob("*/*/seed*.json")},
        key=lambda folder: (SCALED in folder.name, folder.name not in STUDIES, folder.name),
    )


def _in_order(folder: Path) -> list[Path]:
    order = {row_name(row): place for place, row in reversed(list(enumerate(ROWS)))}  # the first table counts
    return sorted(
        (row for row in folder.iterdir() if any(row.glob("seed*.json"))),
        key=lambda row: (order.get(row.name, len(order)), row.name),
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _base(run: dict[str, Any]) -> str:
    return run["name"].split(",")[0]


def _printed(runs: list[dict[str, Any]], name: str) -> str:
    """The paper's number, where every run was made by the paper's recipe."""
    found: Row | None = next((row for row in ROWS if row_name(row) == name), None)
    if found is None or any(from_json(Recipe, json.dumps(run["recipe"])) != recipe(found.recipe) for run in runs):
        return ""
    return "fail" if found.error_pct is None else f"{found.error_pct:.2f}"


def _errors(runs: list[dict[str, Any]], crop: int | None) -> str:
    all_errors = [None if run["error_pct"] is None else errors(run, crop)["error_pct"] for run in runs]
    finite = [error for error in all_errors if error is not None]
    if len(finite) < len(all_errors):
        return f"{len(all_errors) - len(finite)} of {len(all_errors)} diverged" + (
            f", others {', '.join(f'{error:.2f}' for error in finite)}" if finite else ""
        )
    if len(finite) == 1:
        return f"{finite[0]:.2f}"
    spread = f"{statistics.mean(finite):.2f} ± {statistics.stdev(finite):.2f}"
    return f"median {statistics.median(finite):.2f} ({spread})"


def _time(runs: list[dict[str, Any]]) -> str:
    seconds = [run["train_seconds"] for run in runs if "train_seconds" in run]
    if not seconds:
        return ""
    middle = statistics.median(seconds)
    hours, minutes = int(middle // 3600), int(middle % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(middle % 60)} s"


def _machines(runs: list[dict[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(f"{run['device']}, {run['precision']}" for run in runs))
