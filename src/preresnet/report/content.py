"""What does a report know of a study, its rows and its runs?

The fields of ``study.json``, and for each run what its folder holds beside them.
"""

from pathlib import Path
from statistics import median
from typing import Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

Status = Literal["waiting", "running", "done", "failed"]
_READ = pydantic.ConfigDict(extra="ignore")


@dataclass(frozen=True, config=_READ)
class Printed:
    """What the paper printed for a row.

    Args:
        error_pct: test error, per cent; None where it printed "fail" or nothing.
        fail: it printed "fail", an error above 20 %.
        spread: mean +- standard deviation of five runs, where it printed them.
        top5_error_pct: of the five likeliest answers; Table 5 only.
    """

    error_pct: float | None
    fail: bool = False
    spread: str = ""
    top5_error_pct: float | None = None


@dataclass(frozen=True, config=_READ)
class Statistics:
    """Errors at the last step, per cent, over the runs of a row that came to an end.

    Args:
        n: number of runs, with those whose loss became infinite or not a number.
        errors: of the others.
        median: of all n; None where it is one of the runs without an error.
        mean: of them; None where a run has no error.
        std: their standard deviation; None of one run.
        interval: 95 % bootstrap interval of the median; None where there are too few runs.
        failed: how many errors are above 20 %, the paper's "fail", or not finite.
    """

    n: int
    errors: tuple[float, ...]
    median: float | None
    mean: float | None
    std: float | None = None
    interval: tuple[float, float] | None = None
    failed: int = 0


@dataclass(frozen=True, config=_READ)
class Run:
    """One run, as its folder and its study tell.

    Args:
        seed: of the run.
        folder: of the run; in ``study.json`` relative to it.
        status: ``waiting``, ``running``, ``done`` or ``failed``; ``running`` may also have been interrupted.
        error_pct: at the last step, per cent; None before.
        top5_error_pct: the same for the five likeliest answers; None where it was not measured.
        message: why it failed.
        step: last step that was measured.
        result: ``result.json``, or what ``run.json`` and ``recipe.json`` say of an unfinished run.
        lines: of ``metrics.jsonl``.
        evaluation: ``evaluation.json``; None where the run left none.
        probes: of ``probe.jsonl``: signal and gradient along training.
    """

    seed: int
    folder: Path
    status: Status
    error_pct: float | None = None
    top5_error_pct: float | None = None
    message: str = ""
    step: int = 0
    result: dict[str, Any] = pydantic.Field(default_factory=dict)
    lines: list[dict[str, Any]] = pydantic.Field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    probes: list[dict[str, Any]] = pydantic.Field(default_factory=list)


@dataclass(frozen=True, config=_READ)
class Row:
    """Runs of one recipe with several seeds.

    Args:
        row: its name among the rows of the study.
        label: for people.
        recipe: by name.
        network: by name.
        data: data set.
        paper: what the paper printed; None where it has no such row.
        runs: by seed.
        statistics: of the finished runs; None where there are none.
        changes: fields of the recipe that differ from the named one: "schedule.steps 60 (800)".
    """

    row: str
    label: str
    recipe: str
    network: str
    data: str
    paper: Printed | None
    runs: tuple[Run, ...]
    statistics: Statistics | None = None
    changes: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """Of the images on which the errors were measured."""
        return next((run.result["split"] for run in self.runs if "split" in run.result), "test")

    @property
    def top5(self) -> float | None:
        """Median top-5 error, where the paper prints one."""
        found = [run.top5_error_pct for run in self.runs if run.top5_error_pct is not None]
        return median(found) if found and self.paper and self.paper.top5_error_pct is not None else None

    @property
    def middle(self) -> Run | None:
        """The finished run whose error is the median; of an even number, the better one of the two."""
        done = sorted(
            (run for run in self.runs if run.status == "done"), key=lambda run: (run.error_pct or 0.0, run.seed)
        )
        return done[(len(done) - 1) // 2] if done else None

    @property
    def probed(self) -> Run | None:
        """The run whose signal is shown: the one in the middle where it was probed, or the first that was."""
        middle = self.middle
        return middle if middle and middle.probes else next((run for run in self.runs if run.probes), None)


@dataclass(frozen=True, config=_READ)
class Difference:
    """Median of row ``a`` minus median of row ``b``, percentage points; ``n`` runs each.

    None where a median is not finite.
    """

    a: str
    b: str
    difference: float | None
    n: tuple[int, int]
    interval: tuple[float, float] | None = None
    p: float | None = None


@dataclass(frozen=True, config=_READ)
class Claim:
    """An ordering that the paper's text draws from a table, and whether it shows here."""

    text: str
    source: str
    answer: Literal["yes", "no", "not enough runs"]
    evidence: str
    kind: str = ""


@dataclass(frozen=True, config=_READ)
class Study:
    """Rows that were run together, or single runs given to the report.

    Args:
        study: its name: ``table1``, ``sweep``; ``runs`` for single runs.
        title: for people.
        command: that made it; empty for single runs.
        rows: in the order of the table.
        scale: what was shortened; None for the paper's full length.
        differences: between rows.
        claims: of the paper.
    """

    study: str
    title: str
    command: str
    rows: tuple[Row, ...]
    scale: dict[str, Any] | None = None
    differences: tuple[Difference, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """Labels by the names of rows."""
        return {row.row: row.label for row in self.rows}

    def beside(self, row: Row) -> Row | None:
        """The row that another is drawn beside, as in Figures 1, 3 and 6: the original network of its depth and data.

        A sweep has none; there it is the first row of the same network.
        """
        depth, _, kind = row.network.partition("-")
        name = f"{depth}-original" + ("-1layer" if kind.endswith("-1layer") else "")
        candidates = [one for one in self.rows if one.data == row.data and one.network == name]
        candidates += [one for one in self.rows if one.data == row.data and one.network == row.network]
        return candidates[0] if candidates[0].row != row.row else None
