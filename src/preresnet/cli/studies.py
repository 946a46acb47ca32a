"""The commands about many runs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from preresnet import display, terminal
from preresnet.cli.options import command_line, note, read_recipe, shown
from preresnet.spec import MemoryPlan, UserError

if TYPE_CHECKING:
    from preresnet.study.manifest import Manifest
    from preresnet.study.plan import Plan

StudyName = Literal["table1", "table2", "table3", "table4", "table5", "figure1", "figure3", "figure6"]


@dataclass(frozen=True)
class Reproduce:
    """Make a table or figure of the paper again, with seeds and statistics.

    All its rows are trained, and the paper's claims answered.

    The same command again continues: finished runs are kept, others resume.
    """

    name: Annotated[Positional[StudyName], arg(metavar="STUDY")]
    """table1 to table5, figure1, figure3 or figure6."""
    out: Path | None = None
    """Folder for the study; created. Needed for all but --dry-run."""
    rows: tuple[str, ...] = ()
    """Rows, by the name of their network or recipe, or a pattern such as 'resnet110*'; by default all."""
    seeds: int = 5
    """Runs of each row, with the seeds from 0. The paper has medians of 5."""
    scale: str = ""
    """Shorten, for example steps=2000,batch=64,depth=20; the schedule keeps its shape."""
    holdout: int | None = None
    """As in `preresnet train`: evaluate on N training images that are kept out, never on the test set."""
    data_root: Path | None = None
    """Folder with the official CIFAR folder (python or binary), or with train/CLASS/ and val/CLASS/, in it; without it
    CIFAR is downloaded."""
    executor: Literal["local", "ray"] = "local"
    """local: processes on this machine. ray: a Ray cluster (pip install 'preresnet[cluster]')."""
    jobs: int = 1
    """Runs at a time, spread over the GPUs of this machine; more than there are share them, as runs share a CPU."""
    gpus_per_run: int | None = None
    """With --executor ray: processes of each run, each with a GPU, or with a share of a cluster's processors."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    memory: Literal["auto", MemoryPlan] = "auto"
    """As in `preresnet train`."""
    probe_every: int | Literal["auto"] | None = None
    """As in `preresnet train`; heat maps of each row are in the report then."""
    gpu: tuple[Literal["compiled", "capture", "tensor-lr", "plain"], ...] | None = None
    """As in `preresnet train`."""
    dry_run: bool = False
    """List the runs, with images and predicted hours on this device; train nothing."""
    records: Path | None = None
    """Copy the result of every finished run to this folder, as STUDY/ROW/seedN.json."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Reproduce; the exit code is 1 if a run failed."""
        from preresnet.paper.studies import study
        from preresnet.study import plan

        made = plan.of_paper(study(self.name), self.rows, plan.parse_scale(self.scale, self.holdout))
        code, found = _do(made, self)
        if self.records is not None and found is not None:
            from preresnet.study import records

            written, different = records.keep(self.out or Path(), found, self.records)
            print(f"{len(written)} new records in {self.records}", file=sys.stderr)
            for place in different:
                print(f"left alone: {place} holds another result", file=sys.stderr)
        return code


@dataclass(frozen=True)
class Sweep:
    """Train a recipe with every combination of some values.

    The same command again continues. Choose between settings on held-out images (--holdout 5000), not on the test set.
    """

    name: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A recipe by name, or a JSON file, as in `preresnet train`."""
    out: Path | None = None
    """Folder for the study; created. Needed for all but --dry-run."""
    vary: UseAppendAction[tuple[str, ...]] = ()
    """A field with its values, for example schedule.lr=0.05,0.1; several --vary make a grid, one value sets a field."""
    holdout: int | None = None
    """As in `preresnet train`: evaluate on N training images that are kept out, never on the test set."""
    seeds: int = 1
    """Runs of each combination, with the seeds from 0."""
    data_root: Path | None = None
    """Folder with the official CIFAR folder (python or binary), or with train/CLASS/ and val/CLASS/, in it; without it
    CIFAR is downloaded."""
    executor: Literal["local", "ray"] = "local"
    """local: processes on this machine. ray: a Ray cluster (pip install 'preresnet[cluster]')."""
    jobs: int = 1
    """Runs at a time, spread over the GPUs of this machine; more than there are share them, as runs share a CPU."""
    gpus_per_run: int | None = None
    """With --executor ray: processes of each run, each with a GPU, or with a share of a cluster's processors."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    memory: Literal["auto", MemoryPlan] = "auto"
    """As in `preresnet train`."""
    probe_every: int | Literal["auto"] | None = None
    """As in `preresnet train`; heat maps of each row are in the report then."""
    gpu: tuple[Literal["compiled", "capture", "tensor-lr", "plain"], ...] | None = None
    """As in `preresnet train`."""
    dry_run: bool = False
    """List the runs, with images and predicted hours on this device; train nothing."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Sweep; the exit code is 1 if a run failed."""
        from preresnet.study import sweep

        fixed = () if self.holdout is None else (f"data.holdout={self.holdout}",)
        made = sweep.of_sweep(self.name, read_recipe(self.name), self.vary and self.vary + fixed, note)
        return _do(made, self)[0]


@dataclass(frozen=True)
class PlanCommand:
    """Predict time and memory of a run on several devices.

    Steps are timed on the device of this machine.
    """

    name: Annotated[Positional[str], arg(metavar="RECIPE|TABLE|paper")]
    """A recipe by name, or a JSON file; or a table or figure, or all tables of the paper, for a line of each row."""
    devices: int
    """Devices, each with one process."""
    link: float = 10.0
    """GB/s at which each of them sends and receives; 10 is what PCI Express 3 gives."""
    data_root: Path | None = None
    """Folder with images, where the recipe leaves open how many there are."""
    device: str = "auto"
    """The device that steps are timed on: auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Predict, and print."""
        from preresnet.paper.studies import STUDIES
        from preresnet.study import scaling

        tables = [f"table{number}" for number in range(1, 6)] if self.name == "paper" else [self.name]
        rows = [row for table in tables if table in STUDIES for row in STUDIES[table].rows]
        recipes = {row.recipe: read_recipe(row.recipe) for row in rows} or {self.name: read_recipe(self.name)}
        said = (lambda line: None) if self.json else (lambda line: print(line, file=sys.stderr, flush=True))
        found = scaling.predict(recipes, self.devices, self.link, self.device, self.data_root, said)
        if not rows:
            found |= found.pop("rows")[0]
        print(json.dumps(found)) if self.json else display.planned(found)
        return 0


def _do(plan: "Plan", given: Reproduce | Sweep) -> tuple[int, "Manifest | None"]:
    """Predict or do a study, and print it; the exit code, and the manifest of what was done."""
    if given.dry_run:
        from preresnet.study import cost

        said = (lambda line: None) if given.json else (lambda line: print(line, file=sys.stderr, flush=True))
        predicted = cost.predict(plan, given.seeds, given.device, given.out, given.data_root, said)
        print(json.dumps(predicted)) if given.json else display.predicted(predicted)
        return 0, None
    if given.out is None:
        raise UserError("give a folder for the runs with --out, or --dry-run to see what they would cost")
    from preresnet.study import manifest, reproduce

    execution = reproduce.Execution(
        out=given.out,
        data_root=given.data_root,
        executor=given.executor,
        jobs=given.jobs,
        gpus_per_run=given.gpus_per_run,
        device=given.device,
        memory=given.memory,
        probe_every=given.probe_every,
        gpu=given.gpu,
        command=command_line(),
    )
    with _Bars() as bars:
        found = reproduce.reproduce(
            plan, given.seeds, execution, reproduce.Progress(bars.begin, bars.moved, bars.ended)
        )
    if given.json:
        print(manifest.as_json(found))
    else:
        display.study(found)
        print(f"study    {given.out}")
        print(f"next     {shown('report', given.out)}")
    asked = {row.name for row in plan.rows}
    broken = [
        run
        for row in found.rows
        for run in row.runs
        # a loss that was not finite is a result, the paper's "fail"
        if row.row in asked and run.seed < given.seeds and run.status not in ("done", "diverged")
    ]
    return (1 if broken else 0), found


class _Bars:
    """The progress of a study: bars in a terminal, a line for each run that ends elsewhere."""

    def __init__(self) -> None:
        self.console = terminal.lines(stderr=True)
        self.bars = terminal.progress("{task.description}", "{task.completed:,.0f}/{task.total:,.0f}", self.console)
        self.tasks: dict[str, Any] = {}
        self.ended_runs = 0

    def __enter__(self) -> "_Bars":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def begin(self, jobs: Sequence[Any]) -> None:
        """The runs that are to be done."""
        self.num_runs = len(jobs)
        self.all = self.bars.add_task("runs", total=len(jobs))

    def moved(self, job: Any, step: int) -> None:
        """A run has come to a step."""
        if job.name not in self.tasks:
            self.tasks[job.name] = self.bars.add_task(job.name, total=job.request.recipe.schedule.steps)
        self.bars.update(self.tasks[job.name], completed=step)

    def ended(self, job: Any, outcome: Any) -> None:
        """What became of a run; one that stopped is not counted."""
        self.ended_runs += outcome.status != "stopped"
        self.bars.update(self.all, completed=self.ended_runs)
        if job.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(job.name))
        words = outcome.message if outcome.error_pct is None else f"{outcome.error_pct:.2f} %"
        self.console.print(f"{self.ended_runs}/{self.num_runs}  {job.name}: {outcome.status}, {words}")


@dataclass(frozen=True)
class Report:
    """Write one HTML page about runs and studies.

    Its pictures lie beside it, as PNG and SVG.
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")]
    """Folders of runs (`preresnet train`) and of studies (with study.json), all in one page."""
    out: Path | None = None
    """The page; report.html in the first folder by default. Only a page that a report wrote is replaced."""

    def run(self) -> int:
        """Write, and print where the page and its pictures are."""
        from preresnet.report import page

        if not self.folders:
            raise UserError("no folder given; name one or more runs or studies")
        written, figures, number = page.write(self.folders, self.out)
        words = terminal.lines()
        words.print(f"report   {written}")
        words.print(f"figures  {figures} ({number} picture{'s' if number != 1 else ''}, as PNG and SVG)")
        return 0
