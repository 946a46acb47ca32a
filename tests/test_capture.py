"""Captured steps. What only a GPU can show is in test_gpu.py; here, a recorder stands for the graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import preresnet
from preresnet.model import memory
from preresnet.spec import MemoryPlan
from preresnet.train import capture
from preresnet.train.capture import EAGER_STEPS, Steps
from preresnet.train.optim import set_lr, sgd, update

OPTIM = preresnet.recipe("cifar10/resnet20-preact").optim


def test_on_a_cpu_a_step_is_the_update() -> None:
    losses = []
    for captured in (False, True):
        model = preresnet.create_model("resnet8-preact", seed=0)
        optimizer = sgd(model, OPTIM)
        step = Steps(model, optimizer, None, "float32")
        source = torch.Generator().manual_seed(0)
        for number in range(3):
            set_lr(optimizer, 0.1 * number)
            x, y = torch.randn(4, 3, 8, 8, generator=source), torch.arange(4)
            found = step(x, y) if captured else update(model, optimizer, x, y, None, "float32")
            losses.append(found[0].item())
    assert losses[:3] == losses[3:]


class Recorder:
    """Stands for a CUDA graph: what `work` does while recording is done again at each replay."""

    recording: "Recorder | None" = None

    def __init__(self) -> None:
        self.again: Callable[[], None] = lambda: None

    def pool(self) -> int:
        return 7

    def replay(self) -> None:
        self.again()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the batches that ran uncaptured."""
    ran: list[tuple[int, ...]] = []

    @contextmanager
    def graph(recorder: Recorder, **settings: Any) -> Iterator[None]:
        Recorder.recording = recorder
        yield
        Recorder.recording = None

    def work(model: Any, optimizer: Any, x: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        rate = optimizer.param_groups[0]["lr"]
        if Recorder.recording is None:
            ran.append(tuple(x.shape))
            return x.sum() * rate, y.sum()
        loss, wrong = torch.zeros(()), torch.zeros((), dtype=torch.long)

        def again() -> None:
            loss.copy_(x.sum() * rate)
            wrong.copy_(y.sum())

        Recorder.recording.again = again
        return loss, wrong

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(capture, "update", work)
    monkeypatch.setattr(capture, "captures", lambda device: True)
    return ran


def test_later_steps_are_replays_with_their_own_batch_and_rate(recorded: list[tuple[int, ...]]) -> None:
    model = preresnet.create_model("resnet8-preact", seed=0)
    optimizer = sgd(model, OPTIM)
    step = Steps(model, optimizer, None, "float32")
    rate = optimizer.param_groups[0]["lr"]
    assert isinstance(rate, Tensor)
    found = []
    for number in range(12):
        rate.fill_(number)  # as `set_lr` does on a GPU
        shape = (2, 3) if number < 6 else (4, 3)
        found.append(step(torch.full(shape, float(number)), torch.full((2,), number)))
    expected = [number * number * (6 if number < 6 else 12) for number in range(12)]
    assert [loss.item() for loss, _ in found] == expected  # kept apart, although all replays write to one place
    assert [wrong.item() for _, wrong in found] == [2 * number for number in range(12)]
    assert recorded == [(2, 3)] * EAGER_STEPS + [(4, 3)] * EAGER_STEPS
    assert len(step.captured) == 2


def test_a_step_that_cannot_be_captured_runs_as_it_is(
    recorded: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refuse(*_: Any, **__: Any) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    step = Steps(model := preresnet.create_model("resnet8-preact", seed=0), sgd(model, OPTIM), None, "float32")
    for _ in range(EAGER_STEPS):
        step(torch.ones(2, 3), torch.ones(2))
    with pytest.warns(UserWarning, match="runs uncaptured, which is slower .operation not permitted"):
        step(torch.ones(2, 3), torch.ones(2))
    step(torch.ones(2, 3), torch.ones(2))
    assert len(recorded) == EAGER_STEPS + 2


@pytest.mark.parametrize(
    ("name", "plan", "captured"),
    [
        ("resnet8-original-dropout-0.5", "units", 0),
        ("resnet8-original-dropout-0.5", "recompute", 1),
        ("resnet8-preact", "units", 1),
    ],
)
def test_a_dropout_that_is_recomputed_is_not_captured(
    recorded: list[tuple[int, ...]], name: str, plan: MemoryPlan, captured: int
) -> None:
    model = preresnet.create_model(name, seed=0)
    memory.set_plan(model, plan)
    step = Steps(model, sgd(model, OPTIM), None, "float32")
    for _ in range(6):
        step(torch.ones(2, 3), torch.ones(2))
    assert len(step.captured) == captured
