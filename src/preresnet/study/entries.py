"""How a study's file changes as its runs are planned, begun and ended; statistics and claims follow from it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from preresnet.paper.claims import CLAIMS
from preresnet.paper.studies import study as paper_study
from preresnet.paper.tables import FAIL_PCT
from preresnet.spec import UserError
from preresnet.study import manifest, statistics
from preresnet.study.manifest import STUDY_FILE, Answer, Manifest, Printed, RowEntry, RunEntry, Status
from preresnet.study.plan import Plan, PlannedRow, run_folder
from preresnet.study.runs import Outcome
from preresnet.train import runlog

END_SHARE, EARLY_SHARE = 1 / 20, 1 / 10  # of the steps: whose training loss is the final one, and the early one
_STATUS: dict[str, Status] = {"done": "done", "diverged": "diverged", "failed": "failed", "stopped": "waiting"}


def open_study(out: Path, plan: Plan, seeds: Sequence[int], command: str) -> Manifest:
    """The manifest in a folder, with the rows and seeds of a plan added; a new one where there is none.

    Nothing is written.

    Raises:
        UserError: the folder holds something else, or another study.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another --out")
    scale = plan.scale.given if plan.scale else None
    if (out / STUDY_FILE).is_file():
        found = manifest.read(out)
        now = {"study": plan.study, "scale": scale} | ({"title": plan.title} if plan.study == "sweep" else {})
        changed = [
            f"{name}: {was} there, {value} now" for name, value in now.items() if (was := getattr(found, name)) != value
        ]
        if changed:
            raise UserError(f"{out} holds another study ({'; '.join(changed)}); give another --out")
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no study; give another --out")
    else:
        found = Manifest(plan.study, plan.title, command, (), scale)
    rows = {row.row: row for row in found.rows}
    for planned in plan.rows:
        rows[planned.name] = _row(planned, rows.get(planned.name), seeds)
    return replace(found, title=plan.title, command=command, rows=_in_order(plan, tuple(rows.values())))


def _row(planned: PlannedRow, old: RowEntry | None, seeds: Sequence[int]) -> RowEntry:
    paper = planned.paper and Printed(
        planned.paper.error_pct,
        planned.paper.error_pct is None,
        planned.paper.spread.replace("+-", "±"),
        planned.paper.top5_pct,
    )
    runs = {seed: RunEntry(seed, str(run_folder(Path(), planned, seed))) for seed in seeds}
    runs |= {run.seed: run for run in old.runs} if old else {}
    return RowEntry(
        planned.name,
        planned.label,
        planned.base,
        planned.network,
        planned.data,
        paper,
        tuple(runs[seed] for seed in sorted(runs)),
        old and old.statistics,
    )


def _in_order(plan: Plan, rows: tuple[RowEntry, ...]) -> tuple[RowEntry, ...]:
    """The paper's order, also where rows came with several commands."""
    if plan.study == "sweep":
        return rows
    order = [row.recipe for row in paper_study(plan.study).rows]
    return tuple(sorted(rows, key=lambda row: order.index(row.recipe)))


def note(found: Manifest, row: str, seed: int, outcome: Outcome | None) -> Manifest:
    """With what became of a run; None: it is going on."""
    changes = (
        {"status": "running", "error_pct": None, "top5_error_pct": None, "message": ""}
        if outcome is None
        else {
            "status": _STATUS[outcome.status],
            "error_pct": outcome.error_pct,
            "top5_error_pct": outcome.top5_error_pct,
            "message": outcome.message,
        }
    )

    def noted(one: RowEntry) -> RowEntry:
        runs = tuple(replace(run, **changes) if run.seed == seed else run for run in one.runs)
        return replace(one, runs=runs)

    return replace(found, rows=tuple(noted(one) if one.row == row else one for one in found.rows))


def refresh(out: Path, found: Manifest) -> Manifest:
    """With statistics, differences and claims computed again from the finished runs."""
    measured = {row.row: _measured(out, row, found.scale is None) for row in found.rows}
    rows = tuple(replace(row, statistics=statistics.of_row(measured[row.row])) for row in found.rows)
    names = {row.recipe: row.row for row in rows} if found.study != "sweep" else {}
    claims = [claim for claim in CLAIMS if claim.better in names and claim.worse in names]
    pairs = [(names[claim.better], names[claim.worse]) for claim in claims if claim.kind == "lower error"]
    pairs += [(rows[0].row, row.row) for row in rows[1:]]
    differences = [
        statistics.difference(measured, a, b)
        for a, b in dict.fromkeys(pair for pair in pairs if pair[::-1] not in pairs or pair < pair[::-1])
    ]
    scale = found.scale or {}
    words = ", ".join(f"{name}={value}" for name, value in scale.items())
    networks = {row.row: row.network for row in rows}
    answers = []
    for claim in claims:
        better, worse = names[claim.better], names[claim.worse]
        answer, evidence = statistics.answer(claim, measured[better], measured[worse])
        if words:
            evidence = f"Shortened ({words}): {evidence}"
        text = claim.text
        if "depth" in scale:
            text = f"{manifest.at_depth(text, manifest.depth_of(scale))} ({networks[better]}, {networks[worse]})"
        answers.append(Answer(text, claim.source, answer, evidence, better, worse, claim.kind))
    return replace(
        found, rows=rows, differences=tuple(one for one in differences if one is not None), claims=tuple(answers)
    )


def _measured(out: Path, row: RowEntry, full_length: bool) -> statistics.Measured:
    errors, final, early = [], [], []
    for run in row.runs:
        if run.status == "done" and run.error_pct is not None:
            errors.append(run.error_pct)
            losses = [(line["step"], line["loss"]) for line in runlog.read(out / run.folder) if "loss" in line]
            if not losses:  # somebody took the log away
                continue
            last = losses[-1][0]
            final.append(_mean([loss for step, loss in losses if step > last * (1 - END_SHARE)]))
            first = [loss for step, loss in losses if step <= last * EARLY_SHARE]
            early.append(_mean(first or [losses[0][1]]))
        elif run.status == "diverged":
            for numbers in (errors, final, early):
                numbers.append(math.inf)
    limit = FAIL_PCT if row.data == "cifar10" and row.paper and full_length else None
    return statistics.Measured(tuple(errors), tuple(final), tuple(early), limit)


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
