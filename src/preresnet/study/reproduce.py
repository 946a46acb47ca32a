"""A study is done, stopped and continued without losing or repeating a run."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

import preresnet.device as devices
from preresnet.data import sets
from preresnet.propagation import series
from preresnet.spec import MemoryPlan, UserError
from preresnet.study import entries, executors, manifest
from preresnet.study.manifest import Manifest
from preresnet.study.plan import Plan, run_folder
from preresnet.study.runs import Job, Outcome, kept, step
from preresnet.train import folder
from preresnet.train.capture import Mechanism, chosen
from preresnet.train.checkpoint import not_written


class InterruptedStudyError(Exception):
    """Ctrl-C or SIGTERM ended a study after its runs were saved."""

    def __init__(self, signal_number: int, out: Path) -> None:
        super().__init__(f"stopped; the runs are saved in {out}. The same command continues")
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Execution:
    """Where and how the runs of a study are done.

    Args:
        out: folder of the study.
        data_root: folder of the official files; None downloads.
        executor: ``local`` or ``ray``.
        jobs: runs at a time on one device.
        gpus_per_run: processes of each run, placed by Ray Train, each with a GPU; None: a run is one process.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory: plan of each run.
        probe_every: steps between two probes of a run, or ``auto``; None: none.
        gpu: mechanisms of each run on a CUDA device; None: as is best there.
        command: that started it, for records.
    """

    out: Path
    data_root: Path | None = None
    executor: executors.Executor = "local"
    jobs: int = 1
    gpus_per_run: int | None = None
    device: str = "auto"
    memory: Literal["auto"] | MemoryPlan = "auto"
    probe_every: series.Every = None
    gpu: tuple[Mechanism, ...] | None = None
    command: str = ""


@dataclass(frozen=True)
class Progress:
    """Who is told how a study goes; each does nothing by default.

    Args:
        begin: the runs that are to be done.
        moved: a run has come to a step.
        ended: what became of a run.
    """

    begin: Callable[[Sequence[Job]], None] = lambda jobs: None
    moved: Callable[[Job, int], None] = lambda job, step: None
    ended: Callable[[Job, Outcome], None] = lambda job, outcome: None


def reproduce(plan: Plan, seeds: int, execution: Execution, progress: Progress | None = None) -> Manifest:
    """Do the runs of a study that are not done yet, and compute what they say.

    Finished runs are kept; others continue from their checkpoints. A run that fails does not stop the others, and is
    tried again next time; one whose loss was not finite is a result (the paper's "fail") and is not.

    Args:
        plan: from `preresnet.study.plan`.
        seeds: runs of each row, with the seeds from 0.
        execution: where and how.
        progress: who is told.

    Returns:
        What ``study.json`` holds.

    Raises:
        ValueError: bad input; nothing was changed.
        InterruptedStudyError: a signal ended it.
    """
    progress = progress or Progress()
    out = execution.out.absolute()
    for name, value in (("seeds", seeds), ("jobs", execution.jobs)):
        if value < 1:
            raise UserError(f"--{name} {value}; it must be 1 or more")
    if execution.gpus_per_run is not None and execution.executor == "local":
        raise UserError("--gpus-per-run is for --executor ray")
    if execution.probe_every is not None:
        series.watch(execution.probe_every)  # refuses what is no number of steps
    recipes = [row.recipe for row in plan.rows]
    for recipe in recipes:
        num_classes, in_channels = sets.shape(recipe.data, execution.data_root)
        folder.resolve_network(recipe, num_classes, in_channels)
    entries.open_study(out, plan, range(seeds), execution.command)  # refused before anything is made
    if execution.executor == "local":
        chosen(execution.gpu, devices.choose(execution.device))
    else:
        executors.require_ray()
    for recipe in {recipe.data: recipe for recipe in recipes}.values():
        # read here once: a missing file is bad input, and a download must not be done by several processes
        sets.load(recipe.data, execution.data_root)
    known = out / ".locks"
    try:
        known.mkdir(parents=True, exist_ok=True)
        lock = FileLock(known / "study.lock", timeout=0).acquire()
    except Timeout:
        raise UserError(f"another command works at {out}; end it first, or give another --out") from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise not_written(out, error) from error
    with lock:
        # read under the lock: another command may have changed it since
        found = entries.open_study(out, plan, range(seeds), execution.command)
        return _do(plan, seeds, execution, found, out, progress)


def _jobs(plan: Plan, seeds: int, execution: Execution, out: Path) -> list[Job]:
    """All runs of a plan, the first seed of every row before the second of any: a table is whole early."""
    scale = f", shortened: {plan.scale}" if plan.scale else ""
    probed = "" if execution.probe_every is None else f" --probe-every {execution.probe_every}"
    mechanisms = f" --gpu {' '.join(execution.gpu)}" if execution.gpu else ""
    jobs = []
    for seed in range(seeds):
        for row in plan.rows:
            request = folder.Request(
                recipe=row.recipe,
                out=run_folder(out, row, seed),
                seed=seed,
                data_root=execution.data_root and execution.data_root.absolute(),
                device=execution.device,
                resume=True,
                memory=execution.memory,
                gpu=execution.gpu,
                name=row.base + scale,
                command=row.train_command(seed) + probed + mechanisms,
            )
            jobs.append(Job(row.name, request, out, crop=row.crop, probe_every=execution.probe_every))
    return jobs


def _do(plan: Plan, seeds: int, execution: Execution, found: Manifest, out: Path, progress: Progress) -> Manifest:
    due: list[Job] = []
    sharing: dict[Path, list[Job]] = {}  # rows that test the same run: one job does it
    for job in _jobs(plan, seeds, execution, out):
        same = sharing.setdefault(job.request.out, [])
        same.append(job)
        outcome = kept(job.request, job.crop)
        found = entries.note(found, job.row, job.request.seed, outcome or Outcome("stopped"))
        if outcome is None and same[0] is job:
            due.append(job)
    found = entries.refresh(out, found)
    manifest.write(out, found)
    steps = {job.name: step(job) for job in due}
    unfinished = {job.name: job for job in due}  # also those that stop
    stopped: set[str] = set()
    running: set[str] = set()

    def report(job: Job, outcome: Outcome) -> None:
        nonlocal found
        if outcome.status == "stopped":
            stopped.add(job.name)
        else:
            del unfinished[job.name]
        for one in sharing[job.request.out]:
            found = entries.note(found, one.row, one.request.seed, kept(one.request, one.crop) or outcome)
        found = entries.refresh(out, found)
        manifest.write(out, found)
        progress.ended(job, outcome)

    def tick() -> None:
        nonlocal found
        for name, job in unfinished.items():
            now = step(job)
            if now == steps[name] or name in stopped:
                continue
            steps[name] = now
            progress.moved(job, now)
            if name not in running:
                running.add(name)
                found = entries.note(found, job.row, job.request.seed, None)
                manifest.write(out, found)

    progress.begin(due)
    signal_number = 0
    if due and execution.executor == "local":
        signal_number = executors.local(due, execution.jobs, report, tick)
    elif due:
        signal_number = executors.on_ray(due, execution.jobs, report, tick, execution.gpus_per_run)
    for name, job in unfinished.items():
        if name not in stopped:
            found = entries.note(found, job.row, job.request.seed, Outcome("stopped"))
    manifest.write(out, found)
    if signal_number and unfinished:  # a signal after the end of the last run stops nothing
        raise InterruptedStudyError(signal_number, execution.out)
    return found
