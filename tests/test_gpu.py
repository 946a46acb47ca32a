"""What needs a CUDA device: pytest -m gpu."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import preresnet
from preresnet import device as devices
from preresnet.data.loaders import TrainingBatches
from preresnet.model.network import set_fused
from preresnet.recipe import Milestones, Precision
from preresnet.train.capture import Mechanism, TrainingStep, own_stream
from preresnet.train.folder import Request
from preresnet.train.optim import build_optimizer, set_lr, update
from preresnet.train.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


MECHANISMS: list[tuple[Mechanism, ...]] = [
    (),
    ("compiled",),
    ("tensor-lr",),
    ("tensor-lr", "capture"),
    ("compiled", "tensor-lr", "capture"),
]


@pytest.mark.parametrize("name", ["resnet20-preact", "resnet20-original-shortcut-gate-6", "resnet29-preact-bottleneck"])
def test_a_gpu_computes_what_a_cpu_does(name: str) -> None:
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    losses = {}
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = preresnet.create_model(name, seed=0).double()
        devices.place(model, device)
        optimizer = build_optimizer(model, preresnet.recipe("cifar10/resnet20-preact").optim)
        set_lr(optimizer, 0.05)
        inputs = x.double().to(device), y.to(device)
        losses[device.type] = [update(model, optimizer, *inputs, None, "float32")[0].item() for _ in range(5)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-8)


@pytest.mark.parametrize("name", ["resnet20-preact", "resnet29-preact-bottleneck", "resnet20-original-conv1x1"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("gpu", MECHANISMS[1:], ids="-".join)
def test_a_step_with_a_mechanism_is_the_plain_step(name: str, precision: Precision, gpu: tuple[Mechanism, ...]) -> None:
    """Same losses, weights and statistics as without, while the rate and the size of the images change."""
    device, losses, states = torch.device("cuda"), [], []
    for mechanisms in ((), gpu):
        model = devices.place(preresnet.create_model(name, seed=0), device)
        set_fused(model, "compiled" in mechanisms)
        torch.backends.cudnn.benchmark = False  # the same kernels both times
        with own_stream(device):
            optimizer = build_optimizer(model, preresnet.recipe("cifar10/resnet20-preact").optim)
            step = TrainingStep(model, optimizer, None, precision, mechanisms)
            source = torch.Generator().manual_seed(1)
            found = []
            for number in range(12):
                size = 24 if number < 6 else 32
                x = torch.randn(16, 3, size, size, generator=source).to(device, memory_format=torch.channels_last)
                set_lr(optimizer, 0.001 * (number + 1))
                found.append(step(x, (torch.arange(16) % 10).to(device))[0])
            assert len(step.captured) == 2 * ("capture" in mechanisms)
        losses.append(torch.stack(found).double().cpu())
        states.append({key: value.double().cpu() for key, value in model.state_dict().items()})
    # Some of cuDNN's kernels add in any order.
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(states[1], states[0], rtol=1e-2, atol=1e-3)


def test_a_captured_step_draws_new_masks() -> None:
    device = torch.device("cuda")
    model = devices.place(preresnet.create_model("resnet8-original-dropout-0.5", seed=0), device)
    with own_stream(device):
        optimizer = build_optimizer(model, preresnet.recipe("cifar10/resnet20-preact").optim)
        step = TrainingStep(model, optimizer, None, "float32", ("tensor-lr", "capture"))
        x = torch.randn(16, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        losses = [step(x, (torch.arange(16) % 10).to(device))[0].item() for _ in range(8)]  # at rate 0
    assert len(step.captured) == 1
    assert len(set(losses)) == 8


def test_float32_is_not_rounded() -> None:
    model = devices.place(preresnet.create_model("resnet8-preact", seed=0).eval(), torch.device("cuda"))
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        found = model(x.cuda().contiguous(memory_format=torch.channels_last)).cpu().double()
        expected = model.cpu().double()(x.double())
    assert float((found - expected).norm() / expected.norm()) < 1e-5  # TF32: about 1e-3


@pytest.mark.parametrize("gpu", MECHANISMS, ids=lambda gpu: "-".join(gpu) or "plain")
def test_auto_precision_trains_digits(tmp_path: Path, gpu: tuple[Mechanism, ...]) -> None:
    recipe = preresnet.recipe("digits/resnet20-preact")
    result = train(Request(recipe, tmp_path / "run", device="cuda", gpu=gpu))
    assert result["gpu"] == list(gpu)
    assert result["precision"] == "bfloat16"
    assert result["error_pct"] < 4


def test_a_gpu_run_resumes_with_and_without_mechanisms(tmp_path: Path) -> None:
    recipe = preresnet.recipe("digits/resnet20-preact")
    recipe = replace(recipe, schedule=Milestones(steps=20, warmup_steps=0), save_every=10, eval_every=10)
    at = TrainingBatches.at
    for gpu, stop in zip((MECHANISMS[3], MECHANISMS[0], MECHANISMS[4]), (12, 15, 99), strict=True):

        def stopping(self: TrainingBatches, step: int, stop: int = stop) -> tuple[torch.Tensor, torch.Tensor]:
            if step == stop:
                raise KeyboardInterrupt
            return at(self, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingBatches, "at", stopping)
            with pytest.raises(KeyboardInterrupt) if stop < 20 else nullcontext():
                train(Request(recipe, tmp_path / "run", device="cuda", gpu=gpu, resume=True))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 20
