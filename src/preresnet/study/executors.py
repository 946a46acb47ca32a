"""The processes and machines that do the runs of a study, and what happens when one of them is lost."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any, Literal

import torch

from preresnet.signals import Signals, held_back, take_no_interrupts
from preresnet.spec import UserError
from preresnet.study import together
from preresnet.study.runs import Job, Outcome, work, work_together

Executor = Literal["local", "ray"]
Report = Callable[[Job, Outcome], None]

TICK_S = 1.0  # between two looks at the runs that are going on
RETRIES = 5  # of a run whose process or machine was lost, by Ray
GRACE_S = 120.0  # for the checkpoints of runs that Ray was asked to stop


def local(jobs: Sequence[Job], parallel: int, report: Report, tick: Callable[[], None]) -> int:
    """Do runs on this machine, each in a process of its own, so that none can harm another.

    Ctrl-C and SIGTERM stop all of them after their checkpoints; a second one kills them. Should this process be killed,
    its runs notice, save and stop too.

    Args:
        jobs: in order.
        parallel: runs at a time; they share the GPUs, or the threads of a CPU.
        report: is told what became of a run.
        tick: is called about every `TICK_S` seconds.

    Returns:
        The signal that ended it, or 0.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // parallel) if parallel > 1 else None
    waiting = deque(replace(job, threads=threads) for job in jobs)
    running: dict[Any, tuple[Any, Job]] = {}

    def end_all(again: bool) -> None:
        for process, _ in running.values():
            process.kill() if again else process.terminate()

    with Signals(_said(end_all)) as signals:
        try:
            while running or (waiting and not signals.received):
                while waiting and len(running) < parallel and not signals.received:
                    busy = [other.request.device for _, other in running.values()]
                    job = placed(waiting.popleft(), busy, torch.cuda.device_count())
                    here, there = context.Pipe()
                    process = context.Process(target=_serve, args=(there, job))
                    with held_back():
                        process.start()
                    there.close()
                    running[here] = process, job
                    if signals.received:  # between start and here
                        process.terminate()
                for pipe in wait(list(running), timeout=TICK_S):
                    process, job = running.pop(pipe)
                    report(job, _answer(pipe, process, signals.received))
                tick()
        finally:
            end_all(again=False)
    return signals.received


def placed(job: Job, busy: Sequence[str], gpus: int) -> Job:
    """A run that may take any GPU, on the one with the fewest runs.

    Args:
        job: of a study.
        busy: devices of the runs that are going on.
        gpus: of this machine.
    """
    if gpus < 2 or job.request.device not in ("auto", "cuda"):
        return job
    freest = min(range(gpus), key=lambda number: busy.count(f"cuda:{number}"))
    return replace(job, request=replace(job.request, device=f"cuda:{freest}"))


def _said(stop: Callable[[bool], None]) -> Callable[[bool], None]:
    """``stop``, with words for whoever sent the signal."""

    def say_and_stop(again: bool) -> None:
        with suppress(OSError):  # a terminal that is gone is one reason for a signal
            words = "killing the runs" if again else "stopping: the runs save and end; once more kills them"
            print(words, file=sys.stderr, flush=True)
        stop(again)

    return say_and_stop


def _answer(pipe: Any, process: Any, stopped: int) -> Outcome:
    try:
        outcome = pipe.recv()
    except (EOFError, ConnectionResetError):
        outcome = None
    process.join()
    pipe.close()
    if outcome is not None:
        return outcome
    if stopped:
        return Outcome("stopped", message="stopped before its first step, or killed")
    code = process.exitcode
    words = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Outcome("failed", message=f"its process ended with {words} (out of memory?)")


def _serve(pipe: Any, job: Job) -> None:
    """Body of a process: one run."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # a signal to the group reaches the parent alone, which passes it on
    with suppress(OSError):  # a disk that is full: `work` says so
        job.log.parent.mkdir(exist_ok=True)
        with open(job.log, "ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    take_no_interrupts()
    if job.threads:
        torch.set_num_threads(job.threads)
    answered = threading.Event()

    def watch() -> None:
        try:
            pipe.recv()  # nothing is ever sent: this ends when the parent does
        except (EOFError, OSError):
            if not answered.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    outcome = work(job)
    answered.set()
    pipe.send(outcome)
    sys.stdout.flush()


@contextmanager
def connected() -> Iterator[Any]:
    """Ray, connected to the cluster that is running here or that ``RAY_ADDRESS`` names, else with this machine alone.

    Raises:
        ValueError: it is not installed.
    """
    ray = require_ray()
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as its warning asks
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def on_ray(
    jobs: Sequence[Job], parallel: int, report: Report, tick: Callable[[], None], processes: int | None = None
) -> int:
    """Do runs on a Ray cluster: the one that is running here or that ``RAY_ADDRESS`` names, else this machine.

    The study's folder has to be shared by all machines. A run whose machine is lost is given out again, up to `RETRIES`
    times, and continues from its checkpoint.

    Args:
        jobs: in order.
        parallel: runs that share a GPU; without GPUs, runs that share the processors of a machine.
        report: is told what became of a run.
        tick: is called about every `TICK_S` seconds.
        processes: of each run, placed and started by Ray Train, each with a GPU; None: a run is one process.

    Returns:
        The signal that ended it, or 0.

    Raises:
        ValueError: the cluster has no such device.
    """
    with connected() as ray:
        devices = {job.request.device for job in jobs}
        # one call a process: a run finds memory and settings as fresh as in a process of its own
        if processes is None:
            task, at_once = (
                ray.remote(max_calls=1, max_retries=RETRIES, **_share(ray, parallel, devices))(work),
                len(jobs),
            )
        else:
            task = ray.remote(max_calls=1, num_cpus=0)(_together)
            at_once = min(together.check(ray, processes, device) for device in devices)
        waiting = deque(jobs)
        pending: dict[Any, Job] = {}

        def stop(again: bool) -> None:
            for reference in pending:
                ray.cancel(reference, force=again)

        with Signals(_said(stop)) as signals:
            rounds_left = int(GRACE_S / TICK_S)
            while (pending or (waiting and not signals.received)) and rounds_left > 0:
                while waiting and len(pending) < at_once and not signals.received:
                    job = waiting.popleft()
                    given = (job,) if processes is None else (job, processes)
                    pending[task.remote(*given)] = job
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=TICK_S)
                for reference in ready:
                    report(pending.pop(reference), _result(ray, reference, signals.received))
                tick()
                rounds_left -= bool(signals.received)
            for job in pending.values():
                report(job, Outcome("stopped", message="did not answer in time; its machine still saves it"))
        return signals.received


def _together(job: Job, processes: int) -> Outcome:
    """A run in several processes, started by Ray Train."""
    task = together.Task(work_together, job, processes, job.request.device)
    job.log.parent.mkdir(exist_ok=True)
    with open(job.log, "a", encoding="utf-8", errors="backslashreplace") as log:

        def say(line: str, is_error: bool) -> None:
            print(line, file=log, flush=True)

        try:
            return together.run(task, job.request.out, say)[0]
        except (UserError, together.LostError) as error:
            return Outcome("failed", message=str(error))


def require_ray() -> Any:
    """Ray itself, with what Ray Train needs.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ray
        import ray.train  # it says what it lacks
    except ImportError:
        raise UserError("ray is not installed; pip install 'preresnet[cluster]', or use --executor local") from None
    return ray


def _share(ray: Any, parallel: int, devices: set[str]) -> dict[str, float]:
    """What of a machine one run takes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    if not nodes:
        raise UserError("the Ray cluster has no processors to work with; add a node")
    gpus = sum(resources.get("GPU", 0) for resources in nodes)
    if gpus and devices != {"cpu"}:
        return {"num_gpus": 1 / parallel, "num_cpus": 1}
    if any(device.startswith("cuda") for device in devices):
        raise UserError("the Ray cluster has no GPU; use --device cpu or auto")
    share = min(resources["CPU"] for resources in nodes) / parallel
    return {"num_cpus": int(share) if share >= 1 else share}  # Ray takes whole processors, or a part of one


def _result(ray: Any, reference: Any, stopped: int) -> Outcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        if stopped:
            return Outcome("stopped", message="stopped before its first step")
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Outcome("failed", message=f"{type(error).__name__}, after {RETRIES} retries: {words}")
