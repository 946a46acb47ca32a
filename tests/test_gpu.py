"""What needs a CUDA device: pytest -m gpu."""

import json
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from own_photos import CLASSES, fill, result
from torch.nn.parallel import DistributedDataParallel

import preresnet
from preresnet import device as devices
from preresnet.bench import measure as bench
from preresnet.cli import main
from preresnet.data.loaders import TrainingBatches
from preresnet.model import memory
from preresnet.model.network import set_fused
from preresnet.recipe import Milestones, Precision
from preresnet.spec import MEMORY_PLANS
from preresnet.train.capture import Mechanism, TrainingStep, own_stream
from preresnet.train.folder import Request
from preresnet.train.optim import build_optimizer, set_lr, update
from preresnet.train.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


MECHANISMS: list[tuple[Mechanism, ...]] = [
    ("plain",),
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
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gpu", MECHANISMS[1:], ids="-".join)
def test_a_step_with_a_mechanism_is_the_plain_step(name: str, dtype: torch.dtype, gpu: tuple[Mechanism, ...]) -> None:
    """Same losses, weights and statistics as without, while the rate and the size of the images change.

    Not in float32: some of cuDNN's kernels add in any order, and after 12 steps two plain runs differ by 1e-2.
    """
    precision: Precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    device, losses, states = torch.device("cuda"), [], []
    for mechanisms in ((), gpu):
        model = devices.place(preresnet.create_model(name, seed=0).to(weights), device)
        set_fused(model, "compiled" in mechanisms)
        torch.backends.cudnn.benchmark = False  # the same kernels both times
        with own_stream(device):
            optimizer = build_optimizer(model, preresnet.recipe("cifar10/resnet20-preact").optim)
            step = TrainingStep(model, optimizer, None, precision, mechanisms)
            source = torch.Generator().manual_seed(1)
            found = []
            for number in range(12):
                size = 24 if number < 6 else 32
                x = torch.randn(16, 3, size, size, generator=source).to(
                    device, weights, memory_format=torch.channels_last
                )
                set_lr(optimizer, 0.001 * (number + 1))
                found.append(step(x, (torch.arange(16) % 10).to(device))[0])
            assert len(step.captured) == 2 * ("capture" in mechanisms)
        losses.append(torch.stack(found).double().cpu())
        states.append({key: value.double().cpu() for key, value in model.state_dict().items()})
    tolerance = 1e-7 if dtype == torch.float64 else 0.1 if "compiled" in gpu else 1e-3  # its passes round elsewhere
    torch.testing.assert_close(losses[1], losses[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(states[1], states[0], rtol=tolerance, atol=tolerance)


def test_a_step_of_several_processes_is_captured(tmp_path: Path) -> None:
    """Gradients that NCCL sums, in a world of one: the numbers of the step without."""
    device, losses = torch.device("cuda"), []
    meeting = f"file://{tmp_path}/store"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=meeting, rank=0, world_size=1)
    try:
        for together in (False, True):
            model = devices.place(preresnet.create_model("resnet20-preact", seed=0), device)
            torch.backends.cudnn.benchmark = False
            with own_stream(device):
                optimizer = build_optimizer(model, preresnet.recipe("cifar10/resnet20-preact").optim)
                called = DistributedDataParallel(model, gradient_as_bucket_view=True) if together else None
                mechanisms: tuple[Mechanism, ...] = ("tensor-lr", "capture") if together else ()
                with closing(TrainingStep(model, optimizer, 8, "bfloat16", mechanisms, called=called)) as step:
                    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
                    x = x.contiguous(memory_format=torch.channels_last)
                    set_lr(optimizer, 0.01)
                    found = [step(x, (torch.arange(16) % 10).to(device))[0] for _ in range(15)]
                    assert len(step.captured) == together
            losses.append(torch.stack(found).double().cpu())
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)


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


@pytest.mark.parametrize("gpu", MECHANISMS, ids="-".join)
def test_auto_precision_trains_digits(tmp_path: Path, gpu: tuple[Mechanism, ...]) -> None:
    recipe = preresnet.recipe("digits/resnet20-preact")
    result = train(Request(recipe, tmp_path / "run", device="cuda", gpu=gpu))
    assert result["gpu"] == [name for name in gpu if name != "plain"]
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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["resnet20-preact", "resnet20-original-exclusive-gate-6"])
def test_memory_plans_give_the_same_gradients_in_less_memory(name: str, fused: bool) -> None:
    device, grads, peaks = torch.device("cuda"), {}, {}
    for plan in MEMORY_PLANS:
        model = devices.place(preresnet.create_model(name, seed=0), device)
        set_fused(model, fused)
        torch.backends.cudnn.benchmark = False
        memory.set_plan(model, plan)
        x = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        for _ in range(2):  # the first one compiles, and cuDNN takes its workspaces
            model.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            model(x).square().mean().backward()
            peaks[plan] = torch.cuda.max_memory_allocated() - before
        grads[plan] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for plan in MEMORY_PLANS:
        torch.testing.assert_close(grads[plan], grads["plain"], rtol=1e-3, atol=1e-5)
    assert peaks["sqrt"] < 0.7 * peaks["plain"]


@pytest.mark.parametrize("gpu", [MECHANISMS[0], MECHANISMS[4]], ids=["plain", "all"])
def test_photographs_from_the_folder_to_the_answers(
    tmp_path: Path, gpu: tuple[Mechanism, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "cache"))
    photos, out = fill(tmp_path / "photos", dict.fromkeys(CLASSES, 20)), tmp_path / "run"
    options = [
        "--data-root",
        str(photos),
        "--epochs",
        "12",
        "--data.mixed",
        "0.5",
        "--device",
        "cuda",
        "--workers",
        "1",
    ]
    options += ["--gpu", *gpu]
    assert main(["train", "images/resnet8-preact", *options, "--out", str(out)]) == 0
    assert result(out)["device"] == torch.cuda.get_device_name()
    assert result(out)["error_pct"] < 40
    capsys.readouterr()
    answers = {}
    for device in ("cuda", "cpu"):
        image = str(photos / "ant" / "0.jpg")
        assert main(["predict", str(out), image, "--device", device, "--precision", "float32", "--json"]) == 0
        answers[device] = json.loads(capsys.readouterr().out)
    found, expected = (answers[device]["images"][0]["top"] for device in ("cuda", "cpu"))
    assert [one["class"] for one in found] == [one["class"] for one in expected]
    assert [one["probability"] for one in found] == pytest.approx([one["probability"] for one in expected], abs=1e-4)
    assert main(["evaluate", str(out), "--device", "cuda", "--data-root", str(photos)]) == 0
    assert main(["explain", str(out), image, "--device", "cuda", "--out", str(tmp_path / "seen")]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0


def test_the_probe_measures_what_it_does_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for device in ("cuda", "cpu"):
        assert main(["probe", "resnet20-preact", "--batch", "16", "--device", device, "--json"]) == 0
        found[device] = json.loads(capsys.readouterr().out)
    losses = {device: answer["probes"]["resnet20-preact"]["loss"] for device, answer in found.items()}
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)


def test_the_bench_measures_every_mechanism(tmp_path: Path) -> None:
    given = bench.bench(
        "resnet8-preact",
        64,
        ["limit"],
        ["plain", "sqrt"],
        gpu=["compiled", "capture"],
        device="cuda",
        rounds=2,
        steps=2,
    )
    modes = [row["mode"] for row in given["rows"]]
    assert modes == ["plain", "sqrt", "compiled", "tensor-lr capture", "compiled tensor-lr capture", "best"]
    for row in given["rows"]:
        assert row["peak_bytes"] > 0
