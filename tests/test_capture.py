"""The training step on a CPU, and what is refused there. Captured steps need a GPU: test_gpu.py."""

from contextlib import closing, nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import preresnet
from preresnet import distributed
from preresnet.bench import measure
from preresnet.cli import main
from preresnet.model import memory
from preresnet.spec import MemoryPlan, UserError
from preresnet.train import capture
from preresnet.train.capture import Mechanism, TrainingStep, check_mechanisms, is_capturable
from preresnet.train.optim import build_optimizer, set_lr, update

OPTIM = preresnet.recipe("cifar10/resnet20-preact").optim


def test_on_a_cpu_a_step_is_the_update() -> None:
    losses = []
    for as_step in (False, True):
        model = preresnet.create_model("resnet8-preact", seed=0)
        optimizer = build_optimizer(model, OPTIM)
        step = TrainingStep(model, optimizer, 2, "float32")
        source = torch.Generator().manual_seed(0)
        for number in range(3):
            set_lr(optimizer, 0.1 * number)
            x, y = torch.randn(4, 3, 8, 8, generator=source), torch.arange(4)
            found = step(x, y) if as_step else update(model, optimizer, x, y, 2, "float32")
            losses.append(found[0].item())
    assert losses[:3] == losses[3:]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    ("mechanisms", "device", "words"),
    [
        (("compiled",), "cpu", "--gpu compiled is for CUDA devices, and this is cpu"),
        (("plain", "compiled"), "cuda", "plain means none of the others"),
        (("capture",), "cuda", "give --gpu capture tensor-lr"),
        (("fast",), "cuda", "--gpu fast; there are compiled, capture, tensor-lr, plain"),
    ],
)
def test_what_a_device_cannot_do_is_refused(mechanisms: tuple[Mechanism, ...], device: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_mechanisms(mechanisms, torch.device(device))


@pytest.mark.parametrize("mechanisms", [(), ("compiled",), ("tensor-lr",), ("tensor-lr", "capture")])
def test_each_mechanism_has_its_own_switch(mechanisms: tuple[Mechanism, ...]) -> None:
    check_mechanisms(mechanisms, torch.device("cuda"))


@pytest.mark.parametrize(
    "command",
    [
        ["train", "digits/resnet20-preact", "--out", "{out}", "--gpu", "compiled", "--device", "cpu"],
        [
            "sweep",
            "digits/resnet20-preact",
            "--out",
            "{out}",
            "--vary",
            "lr=0.1",
            "--gpu",
            "compiled",
            "--device",
            "cpu",
        ],
        ["bench", "resnet8-preact", "--out", "{out}", "--gpu", "compiled", "--device", "cpu"],
    ],
)
def test_commands_refuse_them_on_a_cpu(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert main([*command, "--out", str(out), "--device", "cpu", "--gpu", "compiled"]) == 2
    assert "--gpu compiled is for CUDA devices" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_step_is_captured_in_all_processes_or_in_none(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides it, without a GPU: capturing itself is stood in for."""
    monkeypatch.setattr(capture, "check_mechanisms", lambda *_: None)
    monkeypatch.setattr(capture.torch.cuda, "CUDAGraph", Mock)
    monkeypatch.setattr(capture.torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(capture.torch.cuda, "current_stream", lambda *_: None)
    monkeypatch.setattr(distributed, "union", lambda found: [*found, "NCCL error"] if elsewhere else found)
    model = preresnet.create_model("resnet8-preact", seed=0)
    with closing(TrainingStep(model, build_optimizer(model, OPTIM), None, "float32", ("capture",))) as step:
        x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
        for _ in range(capture.EAGER_STEPS):
            step(x, y)
            assert not step.captured
        with pytest.warns(UserWarning, match="uncaptured.*NCCL error") if elsewhere else nullcontext():
            step(x, y)
        assert len(step.captured) == (not elsewhere)
        step(x, y)  # without another word
        assert len(step.captured) == (not elsewhere)
    assert not step.captured


def test_on_a_gpu_the_bench_has_a_row_for_each_and_for_all() -> None:
    found = measure.setups(
        "resnet8-preact",
        8,
        ("eager", "limit"),
        (),
        "float32",
        torch.device("cuda"),
        training=True,
        gpu=("compiled", "capture"),
    )
    rows = [(job.name, job.fused, job.gpu) for job in found]
    assert rows == [
        ("preresnet default", False, ("tensor-lr", "capture")),
        ("preresnet compiled", True, ("compiled",)),
        ("preresnet tensor-lr capture", False, ("tensor-lr", "capture")),
        ("preresnet compiled tensor-lr capture", True, ("compiled", "tensor-lr", "capture")),
        ("preresnet eager", False, ()),
        ("limit best", False, ("tensor-lr", "capture")),
    ]


@pytest.mark.parametrize(
    ("name", "plan", "capturable"),
    [
        ("resnet8-original-dropout-0.5", "units", False),
        ("resnet8-original-dropout-0.5", "recompute", True),
        ("resnet8-preact", "units", True),
    ],
)
def test_a_dropout_that_is_recomputed_asks_the_host(name: str, plan: MemoryPlan, capturable: bool) -> None:
    model = preresnet.create_model(name, seed=0)
    memory.set_plan(model, plan)
    assert is_capturable(model) == capturable
