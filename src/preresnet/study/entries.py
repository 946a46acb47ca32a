"""What is known of a study so far: ``study.json``, whole at any moment."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preresnet.paper.claims import CLAIMS
from preresnet.paper.studies import study as paper_study
from preresnet.paper.tables import FAIL_PCT
from preresnet.spec import UserError
from preresnet.study import statistics
from preresnet.study.manifest import STUDY_FILE
from preresnet.study.plan import Plan, PlannedRow, run_folder
from preresnet.study.runs import DIVERGED_FILE, Outcome
from preresnet.train import runlog
from preresnet.train.checkpoint import write_atomically

END_SHARE, EARLY_SHARE = 1 / 20, 1 / 10  # of the steps: whose training loss is the final one, and the early one


def open_study(out: Path, plan: Plan, seeds: Sequence[int], command: str) -> dict[str, Any]:
    """The manifest in a folder, with the rows and seeds of a plan added; a new one where there is none.

    Nothing is written.

    Raises:
        ValueError: the folder holds something else, or another study.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another --out")
    path = out / STUDY_FILE
    scale = plan.scale.given if plan.scale else None
    if path.is_file():
        found = json.loads(path.read_text())
        now = {"study": plan.study, "scale": scale} | ({"title": plan.title} if plan.study == "sweep" else {})
        changed = [f"{name}: {found[name]} there, {value} now" for name, value in now.items() if found[name] != value]
        if changed:
            raise UserError(f"{out} holds another study ({'; '.join(changed)}); give another --out")
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no study; give another --out")
    else:
        found = {"study": plan.study, "title": plan.title, "scale": scale, "rows": []}
    old = {row["row"]: row for row in found["rows"]}
    rows = old | {row.name: _row(row, old.get(row.name)) for row in plan.rows}
    for planned in plan.rows:
        runs = {run["seed"]: run for run in rows[planned.name]["runs"]}
        for seed in seeds:
            folder = str(run_folder(Path(), planned, seed))
            runs.setdefault(
                seed, {"seed": seed, "folder": folder, "status": "waiting", "error_pct": None, "message": ""}
            )
        rows[planned.name]["runs"] = [runs[seed] for seed in sorted(runs)]
    return found | {"command": command, "rows": _in_order(plan, list(rows.values()))}


def _row(row: PlannedRow, old: dict[str, Any] | None) -> dict[str, Any]:
    paper = row.paper
    return {
        "row": row.name,
        "label": row.label,
        "recipe": row.base,
        "network": row.network,
        "data": row.data,
        "paper": paper
        and {
            "error_pct": paper.error_pct,
            "top5_error_pct": paper.top5_pct,
            "fail": paper.error_pct is None,
            "spread": paper.spread.replace("+-", "±"),
        },
        "runs": old["runs"] if old else [],
        "statistics": old["statistics"] if old else None,
    }


def _in_order(plan: Plan, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The paper's order, also where rows came with several commands."""
    if plan.study == "sweep":
        return rows
    order = [row.recipe for row in paper_study(plan.study).rows]
    return sorted(rows, key=lambda row: order.index(row["recipe"]))


def write(out: Path, found: dict[str, Any]) -> None:
    """Put ``study.json`` in place, whole."""
    write_atomically(out / STUDY_FILE, lambda path: path.write_text(json.dumps(found, indent=1) + "\n"))


def note(found: dict[str, Any], row: str, seed: int, outcome: Outcome | None) -> None:
    """Enter what became of a run; None: it is going on."""
    run = next(run for one in found["rows"] if one["row"] == row for run in one["runs"] if run["seed"] == seed)
    status = {"done": "done", "diverged": "failed", "failed": "failed", "stopped": "waiting"}
    run["status"] = "running" if outcome is None else status[outcome.status]
    run["error_pct"] = outcome and outcome.error_pct
    run["top5_error_pct"] = outcome and outcome.top5_error_pct
    run["message"] = outcome.message if outcome else ""


def refresh(out: Path, found: dict[str, Any]) -> None:
    """Compute statistics, differences and claims again from the finished runs."""
    measured = {row["row"]: _measured(out, row) for row in found["rows"]}
    for row in found["rows"]:
        row["statistics"] = statistics.of_row(measured[row["row"]])
    names = {row["recipe"]: row["row"] for row in found["rows"]} if found["study"] != "sweep" else {}
    claims = [claim for claim in CLAIMS if claim.better in names and claim.worse in names]
    pairs = [(names[claim.better], names[claim.worse]) for claim in claims if claim.kind == "lower error"]
    first = found["rows"][0]["row"]
    pairs += [(first, row["row"]) for row in found["rows"][1:]]
    found["differences"] = [
        {"a": a, "b": b, **apart}
        for a, b in dict.fromkeys(pair for pair in pairs if pair[::-1] not in pairs or pair < pair[::-1])
        if (apart := statistics.difference(measured[a], measured[b]))
    ]
    words = ", ".join(f"{name}={value}" for name, value in (found["scale"] or {}).items())
    found["claims"] = [
        {
            "text": claim.text,
            "source": claim.source,
            "better": names[claim.better],
            "worse": names[claim.worse],
            "kind": claim.kind,
            **statistics.answer(claim, measured[names[claim.better]], measured[names[claim.worse]]),
        }
        for claim in claims
    ]
    for claim in found["claims"] if words else ():
        claim["evidence"] = f"Shortened ({words}): {claim['evidence']}"


def _measured(out: Path, row: dict[str, Any]) -> statistics.Measured:
    errors, final, early = [], [], []
    for run in row["runs"]:
        folder = out / run["folder"]
        if run["status"] == "done":
            errors.append(run["error_pct"])
            losses = [(line["step"], line["loss"]) for line in runlog.read(folder) if "loss" in line]
            if not losses:  # somebody took the log away
                continue
            last = losses[-1][0]
            final.append(_mean([loss for step, loss in losses if step > last * (1 - END_SHARE)]))
            first = [loss for step, loss in losses if step <= last * EARLY_SHARE]
            early.append(_mean(first or [losses[0][1]]))
        elif (folder / DIVERGED_FILE).is_file():
            for numbers in (errors, final, early):
                numbers.append(math.inf)
    limit = FAIL_PCT if row["data"] == "cifar10" and row["paper"] else None
    return statistics.Measured(tuple(errors), tuple(final), tuple(early), limit)


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
