"""What needs a CUDA device: pytest -m gpu."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import preresnet
from preresnet import device as devices
from preresnet.recipe import Schedule
from preresnet.train.folder import Request
from preresnet.train.optim import set_lr, sgd, update
from preresnet.train.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", ["resnet20-preact", "resnet20-original-shortcut-gate-6", "resnet29-preact-bottleneck"])
def test_a_gpu_computes_what_a_cpu_does(name: str) -> None:
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    losses = {}
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = preresnet.create_model(name, seed=0).double()
        devices.place(model, device)
        optimizer = sgd(model, preresnet.recipe("cifar10/resnet20-preact").optim)
        set_lr(optimizer, 0.05)
        inputs = x.double().to(device), y.to(device)
        losses[device.type] = [update(model, optimizer, *inputs, None, "float32")[0].item() for _ in range(5)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-8)


def test_auto_precision_trains_digits(tmp_path: Path) -> None:
    recipe = preresnet.recipe("digits/resnet20-preact")
    result = train(Request(recipe, tmp_path / "run", device="cuda"))
    assert result["precision"] == "bfloat16"
    assert result["error_pct"] < 4


def test_a_gpu_run_resumes(tmp_path: Path) -> None:
    recipe = preresnet.recipe("digits/resnet20-preact")
    recipe = replace(recipe, schedule=Schedule(steps=20, warmup_steps=0), save_every=10, eval_every=10)
    train(Request(recipe, tmp_path / "run", device="cuda"))
    again = train(Request(recipe, tmp_path / "run", device="cuda", resume=True))
    assert again["steps"] == 20
