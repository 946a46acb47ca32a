"""The processes of one run, as torchrun or Ray Train describes them: which one this is, what all agree on, their sums.

A single process is world size 1: everything here then does nothing, at no cost.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from preresnet.spec import UserError

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
JOIN_S = 30  # that a process waits for the others before the run begins
WAIT_S = 1800  # later on: reading data and evaluating take as long as they take


class DisagreementError(UserError):
    """The processes of a run cannot begin together; every one of them says so."""

    silent = False


@dataclass(frozen=True)
class World:
    """Which process this is.

    Args:
        rank: among all; 0 writes and prints.
        size: processes of the run.
        local_rank: among those of this machine: the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0


def world() -> World:
    """The processes that have joined; one alone where nobody has."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


_restarted = False


def restarted() -> bool:
    """Whether this run was started before and lost a process, in any of its processes' eyes."""
    return _restarted or _restarts() > 0


def _restarts() -> int:
    # Of several hosts only those count whose own processes had ended.
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def processes_beside(device: torch.device) -> int:
    """How many processes of this run share the memory of a device, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if device.type == "cpu" and world().size > 1 else 1


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the processes that the environment names (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``).

    Args:
        device: of the run; gloo carries what lies on a CPU, NCCL what lies on GPUs.

    Raises:
        DisagreementError: the others did not come in `JOIN_S`, or the environment is not complete.
        UserError: what a run was refused for that is now started again.
    """
    global _restarted
    if int(os.environ.get("WORLD_SIZE") or 1) == 1 or dist.is_initialized():
        yield world()
        return
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        limit = timedelta(seconds=JOIN_S)
        store, rank, size = _within(JOIN_S + 2, lambda: next(iter(rendezvous("env://", timeout=limit))))
        while isinstance(store, PrefixStore):  # PyTorch's names the attempt, which hosts count differently
            store = store.underlying_store
        store.set_timeout(timedelta(seconds=JOIN_S))
        meeting = _meet(store, rank, size)
        refused = store.get("refused").decode() if store.check(["refused"]) else ""
        store = PrefixStore(meeting, store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=WAIT_S),
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        there = ", ".join(f"{name}={os.environ.get(name, 'not set')}" for name in names)
        raise DisagreementError(
            f"the processes of this run did not find each other within {JOIN_S} s ({there}: "
            f"{(str(error) or 'no answer').splitlines()[0]}); start all of them, with one free port, as torchrun does"
        ) from None
    before, _restarted = _restarted, not meeting.endswith(" 1")
    try:
        if refused:  # it would take up what it was refused for
            raise UserError(refused)
        yield world()
    except Exception as error:
        undecided = not hasattr(error, "silent")  # the others may have the same: whoever comes first says it
        if undecided:
            error.silent = False  # type: ignore[attr-defined]
        with suppress(RuntimeError):  # the process that keeps the store may have ended
            if isinstance(error, UserError):
                store.underlying_store.set("refused", str(error))
            if undecided:
                error.silent = store.add(f"said {error}", 1) > 1  # type: ignore[attr-defined]
        raise
    finally:
        _restarted = before
        _norm_groups.cache_clear()
        dist.destroy_process_group()


def _within(seconds: float, do: Callable[[], T]) -> T:
    """What a call returns that may wait for ever: PyTorch does for the answer of a stranger who listens at the port.

    Raises:
        TimeoutError: it did not return in time; it goes on until this process ends.
    """
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(do())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found.result(seconds)


def _meet(store: Store, rank: int, size: int) -> str:
    """A name for this attempt that all its processes agree on and none before has had; it ends with its number.

    torchrun keeps one store for all attempts, so that it holds what processes said that have ended: nothing in it is
    believed before those of now have answered each other.

    Raises:
        RuntimeError: the others did not come in `JOIN_S`.
    """
    mine, deadline = f"{uuid.uuid4()} {_restarts()}", time.monotonic() + JOIN_S

    def said(name: str) -> str:
        return store.get(name).decode() if store.check([name]) else ""

    store.set(f"here {rank}", mine)
    while time.monotonic() < deadline:
        if rank == 0:
            here = "\n".join(said(f"here {other}") for other in range(size))
            store.set("who is here", here)
            if all(said(f"seen by {other}") == here for other in range(1, size)):
                restarts = max(int(line.split()[1]) for line in here.splitlines())
                number = max(store.add("attempts", 1), restarts + 1)
                store.set("meeting", f"{here}\n{number}")
                return f"attempt {mine} {number}"
        else:
            here, met = said("who is here"), said("meeting").splitlines()
            if mine in here.splitlines():
                store.set(f"seen by {rank}", here)
                if mine in met:
                    return f"attempt {met[0]} {met[-1]}"
        time.sleep(0.02)
    raise RuntimeError(f"{size} processes did not meet")


def agree(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Refuse to begin where something differs between the processes.

    Args:
        facts: gives what must be the same, by name; not called in a process alone.

    Raises:
        DisagreementError: in every process, naming what differs and where.
    """
    if world().size == 1:
        return
    found: list[Any] = [None] * world().size
    dist.all_gather_object(found, dict(facts()))
    for name, first in found[0].items():
        for rank, others in enumerate(found):
            if others[name] != first:
                raise DisagreementError(
                    f"the processes of this run differ in {name}: {first} in rank 0, {others[name]} in rank {rank}; "
                    "start all with the same command, code and data"
                )


def all_or_none(do: Callable[[], T]) -> T:
    """What every process does for itself; where one cannot, none goes on.

    Raises:
        UserError: the first one that any process raised.
    """
    size = world().size
    if size == 1:
        return do()
    error, result = None, None
    try:
        result = do()
    except UserError as raised:
        error = raised
    found: list[Any] = [None] * size
    dist.all_gather_object(found, error)
    if failed := next((one for one in found if one is not None), None):
        raise said_by_first(failed)
    return result  # type: ignore[return-value] - it is there where there is no error


def shared(do: Callable[[], T]) -> T:
    """What rank 0 finds, in every process; an error of it too."""
    if world().size == 1:
        return do()
    answer: list[Any] = [None, None]
    if world().first:
        try:
            answer[0] = do()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise said_by_first(answer[1])
    return answer[0]


def said_by_first(error: E) -> E:
    """An error that every process raises: the first one says it."""
    error.silent = not world().first  # type: ignore[attr-defined]
    return error


def union(found: Sequence[str]) -> list[str]:
    """What any process found, each once, in order."""
    if world().size == 1:
        return list(found)
    of_all: list[Any] = [None] * world().size
    dist.all_gather_object(of_all, list(found))
    return sorted({one for ones in of_all for one in ones})


def on_first(do: Callable[[], object]) -> None:
    """Done in rank 0, which the others wait for; an error there is raised in every process."""

    def done() -> None:
        do()

    shared(done)


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    value = value.cpu()
    if world().size > 1:
        dist.all_reduce(value)
    return value


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, on the CPU: (n, ...) -> (n of all, ...)."""
    if world().size == 1:
        return rows
    found: list[Any] = [None] * world().size
    dist.all_gather_object(found, rows.cpu())
    return torch.cat(found)


def my_share(count: int) -> range:
    """The places of count things that are this process's, neighbours; all processes together have each once."""
    rank, size = world().rank, world().size
    return range(count * rank // size, count * (rank + 1) // size)


def is_of_others(error: RuntimeError) -> bool:
    """Whether an error is that of a process that waits for one that has ended."""
    if world().size == 1:
        return False
    words = ("gloo/transport", "closed by peer", "reset by peer", "nccl")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


class StopFlag:
    """Whether any process was told to stop, known to all at the same step, without waiting for each other."""

    def __init__(self) -> None:
        self._number, self._work = torch.zeros(1, dtype=torch.int64), None

    def agreed(self, received: int) -> int:
        """The number of a signal that some process had received by the step before; 0: none had.

        Args:
            received: by this process, or 0.
        """
        if world().size == 1:
            return received
        found = 0
        if self._work is not None:
            self._work.wait()
            found = int(self._number)
        self._number = torch.tensor([received])
        self._work = dist.all_reduce(self._number, dist.ReduceOp.MAX, async_op=True)
        return found


# Norms that see the images of several processes.

_norm_ranks = 1  # not of a thread: the backward pass has its own


@lru_cache
def _norm_groups(count: int) -> Any:
    """Of each block of so many ranks, a group; this process's own. Every process makes all of them."""
    size, mine = world().size, None
    for first in range(0, size, count):
        ranks = list(range(first, first + count))
        group = dist.new_group(ranks)
        if world().rank in ranks:
            mine = group
    return mine


@contextmanager
def norms_over(ranks: int) -> Iterator[None]:
    """Inside, a norm in training sees the images of so many neighbouring ranks."""
    global _norm_ranks
    if ranks > 1:
        _norm_groups(ranks)
    before, _norm_ranks = _norm_ranks, ranks
    try:
        yield
    finally:
        _norm_ranks = before


def norm_place() -> tuple[int, int]:
    """Which of the processes that a norm sees this is, and how many they are."""
    return (world().rank % _norm_ranks, _norm_ranks) if _norm_ranks > 1 else (0, 1)


def norms_are_shared() -> bool:
    """Whether norms see the images of other processes now."""
    return _norm_ranks > 1


def moments(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """Mean and variance over the processes that a norm sees, from those of this one; and how many values they are of.

    The mean of means by their counts, and the variances within and between them: what one process would compute.

    Args:
        mean: (c,).
        var: (c,), biased.
        count: values of a channel here.
    """
    mine = torch.cat([mean, var, mean.new_tensor([count])])
    found = [torch.empty_like(mine) for _ in range(_norm_ranks)]
    dist.all_gather(found, mine, _norm_groups(_norm_ranks))
    means, variances, counts = torch.stack(found).split([len(mean), len(mean), 1], 1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean, var, count * _norm_ranks


def norm_sum(value: Tensor) -> Tensor:
    """The sum over the processes that a norm sees."""
    dist.all_reduce(value, group=_norm_groups(_norm_ranks))
    return value
