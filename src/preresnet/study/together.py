"""One run in several processes of a Ray cluster: Ray Train places them, starts them, and starts them again.

Ray Train's workers compute nothing. Each starts one process with the environment that torchrun would give it, so that
signals, threads and the loop are those of a run under torchrun, and ends with it.
"""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preresnet.signals import Signals
from preresnet.spec import UserError

TICK_S = 0.5  # between two looks at what the processes have said
RETRIES = 5  # of a run that lost a process or a machine
CHILD = "from preresnet.study.together import serve; serve()"


class LostError(Exception):
    """Processes of a run were lost more often than it is started again; its checkpoint stands."""

    exit_code = 1


@dataclass(frozen=True)
class Task:
    """What every process of a run does.

    Args:
        do: a function of a module, called in each.
        argument: given to it.
        processes: of the run, each with a GPU, or with a share of the processors.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    do: Callable[[Any], Any]
    argument: Any
    processes: int
    device: str


def run(task: Task, out: Path, say: Callable[[str, bool], None]) -> tuple[Any, int]:
    """Do a run on the cluster that Ray is connected to.

    Ctrl-C and SIGTERM are passed on to all its processes, which save and end.

    Args:
        task: what to do.
        out: folder of the run, which all machines see. Ray Train keeps notes beside it while the run goes on.
        say: is given each line that a process prints, and whether it is of its errors.

    Returns:
        What ``do`` returned in the first process; and the signal that was passed on, or 0.

    Raises:
        UserError: the cluster has too few GPUs or processors.
        LostError: see there.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    share, on_gpus = _share(ray, task.processes, task.device)
    board = ray.remote(num_cpus=0, max_concurrency=4 * task.processes + 8)(_Board).remote()  # type: ignore[call-overload]
    out.parent.mkdir(parents=True, exist_ok=True)
    notes = Path(tempfile.mkdtemp(prefix=".ray-", dir=out.parent))
    trainer = TorchTrainer(
        _work,
        train_loop_config={"task": task, "board": board, "folder": os.getcwd()},
        torch_config=TorchConfig(backend="gloo"),  # for the number of a port; the processes of the run have their own
        scaling_config=ScalingConfig(num_workers=task.processes, use_gpu=on_gpus, resources_per_worker=share),
        run_config=RunConfig(name="run", storage_path=str(notes), failure_config=FailureConfig(max_failures=RETRIES)),
    )
    failed: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failed.append(error)

    def stop(again: bool) -> None:
        if again:
            os._exit(1)  # what Ray runs for this process ends with it
        board.stop.remote()

    thread = threading.Thread(target=fit, daemon=True)  # in the main thread, fit takes Ctrl-C for itself
    with Signals(stop) as signals:
        thread.start()
        try:
            while thread.is_alive():
                thread.join(TICK_S)
                for line in ray.get(board.lines.remote()):
                    say(*line)
            answers: dict[int, Any] = ray.get(board.answers.remote())
        finally:
            shutil.rmtree(notes, ignore_errors=True)
    if 0 not in answers:
        words = str(failed[0]).strip().splitlines()[0] if failed else "no answer"
        raise LostError(
            f"the run lost its processes {RETRIES + 1} times ({words}); --resume goes on from its checkpoint"
        )
    return answers[0], signals.received


def check(ray: Any, processes: int, device: str) -> int:
    """How many runs of so many processes the cluster has room for at a time.

    Raises:
        UserError: not one.
    """
    share, on_gpus = _share(ray, processes, device)
    return max(1, _fitting(ray, share, "GPU" if on_gpus else "CPU") // processes)


def _fitting(ray: Any, share: dict[str, float], kind: str) -> int:
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return sum(int(node.get(kind, 0) // share[kind]) for node in nodes)


def _share(ray: Any, processes: int, device: str) -> tuple[dict[str, float], bool]:
    """What one process takes of its machine: a GPU, or as many whole processors as all of them can have."""
    if processes < 1:
        raise UserError(f"--gpus-per-run {processes}; it must be 1 or more")
    gpus, cpus = _fitting(ray, {"GPU": 1.0}, "GPU"), _fitting(ray, {"CPU": 1.0}, "CPU")
    if device != "cpu" and gpus:
        if gpus < processes:
            raise UserError(f"--gpus-per-run {processes}: the Ray cluster has {gpus} GPUs")
        return {"GPU": 1.0, "CPU": 1.0}, True
    if device.startswith("cuda"):
        raise UserError("the Ray cluster has no GPU; use --device cpu or auto")
    able = [share for share in range(1, cpus + 1) if _fitting(ray, {"CPU": float(share)}, "CPU") >= processes]
    if not able:
        raise UserError(
            f"--gpus-per-run {processes}: the Ray cluster has no GPU, and {cpus} processors are too few to give each "
            "process one"
        )
    return {"CPU": float(max(able))}, False


class _Board:
    """What the processes of a run and whoever started it tell each other; an actor of Ray."""

    def __init__(self) -> None:
        import asyncio

        self._stopped = asyncio.Event()
        self._lines: list[tuple[str, bool]] = []
        self._answers: dict[int, Any] = {}
        self._attempts: dict[int, int] = {}

    async def begin(self, rank: int) -> int:
        """How often a process was started before."""
        before = self._attempts.get(rank, 0)
        self._attempts[rank] = before + 1
        return before

    async def say(self, line: str, is_error: bool) -> None:
        """A line that a process has printed."""
        self._lines.append((line, is_error))

    async def lines(self) -> list[tuple[str, bool]]:
        """The lines since the call before."""
        found, self._lines = self._lines, []
        return found

    async def answer(self, rank: int, value: Any) -> None:
        """What a process returned."""
        self._answers[rank] = value

    async def answers(self) -> dict[int, Any]:
        """What the processes returned, by rank."""
        return self._answers

    async def stop(self) -> None:
        """Let all processes stop."""
        self._stopped.set()

    async def stopped(self) -> None:
        """Wait until they are to stop."""
        await self._stopped.wait()


def _work(config: dict[str, Any]) -> None:
    """Body of a worker of Ray Train: starts the process, passes on what it says, and waits for it."""
    import ray
    import torch.distributed as dist
    from ray.train.torch import get_device

    task, board, rank = config["task"], config["board"], int(os.environ["RANK"])
    attempt = ray.get(board.begin.remote(rank))
    port = [_free_port()]
    dist.broadcast_object_list(port)
    device = get_device()
    here = {"MASTER_PORT": str(port[0]), "TORCHELASTIC_RESTART_COUNT": str(attempt)}
    if device.type == "cuda":
        here["LOCAL_RANK"] = str(device.index or 0)
    if not os.path.isdir(config["folder"]):
        raise RuntimeError(f"{config['folder']} is not there on every machine; start from a folder that all share")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", CHILD],
            env={**os.environ, **here},
            cwd=config["folder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        pickle.dump((task.do, task.argument, str(answer)), process.stdin)
        process.stdin.flush()  # it stays open: where this worker ends, so does the process

        def pass_on(stream: Any, is_error: bool) -> None:
            for line in stream:
                board.say.remote(line.decode(errors="backslashreplace").rstrip("\n"), is_error)

        def stop_when_told() -> None:
            ray.get(board.stopped.remote())
            process.terminate()

        said = [
            threading.Thread(target=pass_on, args=given, daemon=True)
            for given in ((process.stdout, False), (process.stderr, True))
        ]
        for thread in (*said, threading.Thread(target=stop_when_told, daemon=True)):
            thread.start()
        code = process.wait()
        for thread in said:
            thread.join()
        if not answer.is_file():
            raise RuntimeError(f"process {rank} of the run ended with code {code}")
        ray.get(board.answer.remote(rank, pickle.loads(answer.read_bytes())))  # noqa: S301 - our own process wrote it


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def serve() -> None:
    """Body of a process of the run: what it does comes through its input, whose end ends it."""
    do, argument, answer = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one

    def watch() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    found = do(argument)
    sys.stdout.flush()
    partial = Path(answer).with_suffix(".partial")
    partial.write_bytes(pickle.dumps(found))
    partial.rename(answer)
