"""``study.json``: the schema of what is known of a study, read and written through it alone.

The file is whole at any moment. What it holds is never edited by hand: `preresnet.study.entries` changes it as runs are
planned, begun and ended, and the terminal, the report and the records show it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pydantic
from pydantic.dataclasses import dataclass

from preresnet.spec import UserError, explain
from preresnet.train.checkpoint import write_atomically

STUDY_FILE, DIVERGED_FILE = "study.json", "diverged.json"
VERSION = 2  # 1: a run whose loss was not finite was "failed", as one that a full disk ended

Status = Literal["waiting", "running", "done", "diverged", "failed"]
AnswerWord = Literal["yes", "no", "not enough runs", "not at this length"]
_READ = pydantic.ConfigDict(extra="ignore", hide_input_in_errors=True)


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
        n: number of runs, with those whose loss was not finite.
        errors: of the others.
        median: of all n; None where it is one of the runs without an error.
        mean: of them; None where a run has no error.
        std: their standard deviation; None of one run.
        interval: 95 % bootstrap interval of the median; None where there are too few runs.
        diverged: how many had a loss that was not finite.
        failed: how many the paper would call "fail": above 20 %, or diverged. None where its rule says nothing: it is
            for rows of its tables on CIFAR-10 at full length.
    """

    n: int
    errors: tuple[float, ...]
    median: float | None
    mean: float | None
    std: float | None = None
    interval: tuple[float, float] | None = None
    diverged: int = 0
    failed: int | None = None


@dataclass(frozen=True, config=_READ)
class RunEntry:
    """One run.

    Args:
        seed: of the run.
        folder: of the run, relative to the study's.
        status: ``diverged``: its loss was not finite, which is a result too; ``failed``: anything else ended it;
            ``running`` may also have been interrupted.
        error_pct: at the last step, per cent; None before.
        top5_error_pct: the same for the five likeliest answers; None where it was not measured.
        message: why it diverged, failed or stopped.
    """

    seed: int
    folder: str
    status: Status = "waiting"
    error_pct: float | None = None
    top5_error_pct: float | None = None
    message: str = ""


@dataclass(frozen=True, config=_READ)
class RowEntry:
    """Runs of one recipe with several seeds.

    Args:
        row: its name among the rows of the study.
        label: for people.
        recipe: by name.
        network: by name.
        data: data set.
        paper: what the paper printed; None where it has no such row.
        runs: by seed.
        statistics: of the runs that came to an end; None where there are none.
    """

    row: str
    label: str
    recipe: str
    network: str
    data: str
    paper: Printed | None
    runs: tuple[RunEntry, ...] = ()
    statistics: Statistics | None = None


@dataclass(frozen=True, config=_READ)
class Difference:
    """Median of row ``a`` minus median of row ``b``, percentage points; ``n`` runs each.

    None where a median is not finite. ``p``: of the two-sided exact test; None where so few runs cannot decide.
    """

    a: str
    b: str
    difference: float | None
    n: tuple[int, int]
    interval: tuple[float, float] | None = None
    p: float | None = None


@dataclass(frozen=True, config=_READ)
class Answer:
    """An ordering that the paper's text draws from a table, and whether it shows in these runs.

    Args:
        text: what is claimed.
        source: where in the paper.
        answer: ``not at this length``: the claim speaks of the paper's full length alone.
        evidence: a sentence with the numbers.
        better: row that is said to be better.
        worse: row that is said to be worse, or to fail.
        kind: of `preresnet.paper.claims.Claim`.
    """

    text: str
    source: str
    answer: AnswerWord
    evidence: str
    better: str = ""
    worse: str = ""
    kind: str = ""


@dataclass(frozen=True, config=_READ)
class Manifest:
    """A study: rows that are run together.

    Args:
        study: its name: ``table1``, ``sweep``; ``runs`` for single runs in a report.
        title: for people.
        command: that made it; empty for single runs.
        rows: in the order of the table.
        scale: what was shortened or changed; None for the paper's own way.
        differences: between rows.
        claims: of the paper, answered.
        version: of this schema.
    """

    study: str
    title: str
    command: str
    rows: tuple[RowEntry, ...]
    scale: Mapping[str, int | str] | None = None
    differences: tuple[Difference, ...] = ()
    claims: tuple[Answer, ...] = ()
    version: int = 1

    @property
    def labels(self) -> dict[str, str]:
        """Labels by the names of rows."""
        return {row.row: row.label for row in self.rows}

    @property
    def counts_failed(self) -> bool:
        """Whether the paper's "fail" says something of any row."""
        return any(row.statistics is not None and row.statistics.failed is not None for row in self.rows)

    @property
    def counts_diverged(self) -> bool:
        """Whether the loss of any run was not finite."""
        return any(row.statistics is not None and row.statistics.diverged > 0 for row in self.rows)


_SCHEMA = pydantic.TypeAdapter(Manifest)


def as_json(found: Manifest, indent: int | None = None) -> str:
    """The text of ``study.json``; one line by default."""
    # not pydantic's own JSON: a folder's name that is no UTF-8 has halves of characters, which that refuses
    return json.dumps(_SCHEMA.dump_python(found), indent=indent)


def read(folder: Path) -> Manifest:
    """The manifest in a study's folder.

    Raises:
        UserError: the file cannot be read, is damaged, or was written by a later version of this program.
    """
    path = folder / STUDY_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}; put a whole copy of it there") from None
    version = content.get("version", 1) if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise UserError(f"cannot read {path}: it describes no study")
    if version not in (1, VERSION):
        raise UserError(
            f"{path} is of version {version}; this program reads 1 and {VERSION}, use the one that wrote it"
        )
    try:
        found = _SCHEMA.validate_python(content)
    except pydantic.ValidationError as error:
        raise UserError(f"cannot read {path}: {explain(error)}") from None
    return found if version == VERSION else _from_first(found, folder)


def write(folder: Path, found: Manifest) -> None:
    """Put ``study.json`` in place, whole."""
    text = as_json(replace(found, version=VERSION), indent=1) + "\n"
    write_atomically(folder / STUDY_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def depth_of(scale: Mapping[str, int | str] | None) -> int | None:
    """The layers that a study was shortened to; None: those of the paper."""
    depth = (scale or {}).get("depth")
    return None if depth is None else int(depth)


def at_depth(text: str, depth: int | None) -> str:
    """What is said of the paper's depth, said of another: "20 layers, original" for 110; None changes nothing."""
    return text if depth is None else re.sub(r"\b\d+ layers\b", f"{depth} layers", text)


def _from_first(found: Manifest, folder: Path) -> Manifest:
    """One of the first version: diverged runs told from failed ones, "fail" where the paper's rule holds."""
    depth = depth_of(found.scale)
    rows = []
    for row in found.rows:
        is_papers = row.paper is not None and row.data == "cifar10" and not found.scale
        numbers = row.statistics and replace(
            row.statistics,
            diverged=row.statistics.n - len(row.statistics.errors),
            failed=row.statistics.failed if is_papers else None,
        )
        runs = tuple(
            replace(run, status="diverged")
            if run.status == "failed" and (folder / run.folder / DIVERGED_FILE).is_file()
            else run
            for run in row.runs
        )
        rows.append(replace(row, label=at_depth(row.label, depth), runs=runs, statistics=numbers))
    claims = tuple(replace(claim, text=at_depth(claim.text, depth)) for claim in found.claims)
    return replace(found, title=at_depth(found.title, depth), rows=tuple(rows), claims=claims, version=VERSION)
