"""What a report shows of studies: the entries of their files, and beside each run what its folder holds."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from preresnet.study.manifest import Manifest, RowEntry, RunEntry


@dataclass(frozen=True)
class RunContent:
    """One run.

    Args:
        entry: what its study says of it.
        folder: of the run.
        step: last step that was measured.
        result: ``result.json``, or what ``run.json`` and ``recipe.json`` say of an unfinished run.
        lines: of ``metrics.jsonl``.
        evaluation: ``evaluation.json``; None where the run left none.
        probes: of ``probe.jsonl``: signal and gradient along training.
        thumbnails: of ``thumbnails.json``: by image, a picture of it and one of where its answer comes from.
    """

    entry: RunEntry
    folder: Path
    step: int = 0
    result: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    probes: list[dict[str, Any]] = field(default_factory=list)
    thumbnails: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class RowContent:
    """Runs of one recipe with several seeds.

    Args:
        entry: what its study says of it.
        runs: by seed.
        changes: fields of the recipe that differ from the named one: "schedule.steps 60 instead of 800".
    """

    entry: RowEntry
    runs: tuple[RunContent, ...]
    changes: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """Of the images on which the errors were measured."""
        return next((run.result["split"] for run in self.runs if "split" in run.result), "test")

    @property
    def top5(self) -> float | None:
        """Median top-5 error, where the paper prints one."""
        found = [run.entry.top5_error_pct for run in self.runs if run.entry.top5_error_pct is not None]
        is_printed = self.entry.paper and self.entry.paper.top5_error_pct is not None
        return median(found) if found and is_printed else None

    @property
    def middle(self) -> RunContent | None:
        """The finished run whose error is the median; of an even number, the better one of the two."""
        done = sorted(
            (run for run in self.runs if run.entry.status == "done"),
            key=lambda run: (run.entry.error_pct or 0.0, run.entry.seed),
        )
        return done[(len(done) - 1) // 2] if done else None

    @property
    def probed(self) -> RunContent | None:
        """The run whose signal is shown: the one in the middle where it was probed, or the first that was."""
        middle = self.middle
        return middle if middle and middle.probes else next((run for run in self.runs if run.probes), None)


@dataclass(frozen=True)
class StudyContent:
    """Rows that were run together, or single runs given to the report as the study ``runs``."""

    manifest: Manifest
    rows: tuple[RowContent, ...]

    def beside(self, row: RowContent) -> RowContent | None:
        """The row that another is drawn beside, as in Figures 1, 3 and 6: the original of its depth, units and data.

        A sweep has none; there it is the first row of the same network.
        """
        entry = row.entry
        depth, _, kind = entry.network.partition("-")
        units = next((unit for unit in ("-basic", "-bottleneck", "-1layer") if unit in kind), "")
        original = f"{depth}-original{units}"
        for network in (original, entry.network):
            for one in self.rows:
                if (one.entry.data, one.entry.network) == (entry.data, network):
                    return one if one.entry.row != entry.row else None
        return None
