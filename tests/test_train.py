import errno
import io
import json
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import preresnet
from preresnet import device as devices
from preresnet import inference
from preresnet.cli import main
from preresnet.data.loaders import TrainingBatches
from preresnet.model import memory
from preresnet.recipe import SGD, Milestones, Muon, OneCycle, Recipe
from preresnet.spec import MEMORY_PLANS, MemoryPlan, from_json, to_json
from preresnet.train import checkpoint, progress, runlog, trainer
from preresnet.train.folder import Request
from preresnet.train.optim import build_optimizer, set_lr, update
from preresnet.train.progress import Meter
from preresnet.train.trainer import train

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNALS = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup is respected

NAME = "digits/resnet20-preact"


def small(**changes: Any) -> Recipe:
    """Eight layers on 8x8 digits: a step takes milliseconds. Dropout, so that random state matters."""
    base = preresnet.recipe(NAME)
    fields: dict[str, Any] = {
        "network": "resnet8-preact-dropout-0.5",
        "data": replace(base.data, image_size=8),
        "schedule": replace(base.schedule, steps=40, warmup_steps=8),
        "global_batch": 16,
        "precision": "float32",
        "log_every": 5,
        "eval_every": 20,
        "save_every": 7,
    }
    return replace(base, **(fields | changes))


def command(folder: Path, recipe: Recipe, *more: str) -> list[str]:
    path = folder.parent / "recipe-of-this-test.json"
    path.write_text(to_json(recipe))
    return [sys.executable, "-m", "preresnet", "train", str(path), "--out", str(folder), "--seed", "3", *more]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300)


def measured(folder: Path) -> list[dict[str, Any]]:
    timing = {"images_per_s", "data_wait_pct"}
    return [{key: value for key, value in line.items() if key not in timing} for line in runlog.read(folder)]


def assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert measured(one) == measured(other)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert results[0]["evaluations"] == results[1]["evaluations"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted, started as a user starts it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = run(*command(folder, small()))
    assert done.returncode == 0, done.stderr
    assert "at the last step" in done.stdout
    assert str(folder) in done.stdout
    assert f"preresnet report {folder}" in done.stdout
    assert "step 40/40" in done.stderr
    assert "data wait" in done.stderr
    return folder


def test_a_line_of_the_log_is_the_mean_since_the_line_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves at 7, 14, ... fall between lines at 5, 10, ..., and an evaluation falls on one; time is that of steps."""
    clock, seen = Clock(), []
    add, at, logits = Meter.add, TrainingBatches.at, inference.logits

    def slow_at(self: TrainingBatches, step: int) -> Any:
        clock.now += 2.0
        return at(self, step)

    def slow_logits(*given: Any) -> Any:
        clock.now += 1000.0
        return logits(*given)

    def recording(self: Meter, loss: torch.Tensor, wrong: torch.Tensor, wait: float) -> None:
        seen.append((float(loss), int(wrong)))
        clock.now += 6.0
        add(self, loss, wrong, wait)

    monkeypatch.setattr(Meter, "add", recording)
    monkeypatch.setattr(TrainingBatches, "at", slow_at)
    monkeypatch.setattr(inference, "logits", slow_logits)
    for module in (trainer, progress):
        monkeypatch.setattr(module, "time", clock)
    train(Request(small(), tmp_path / "run", seed=3))
    lines = [line for line in runlog.read(tmp_path / "run") if "loss" in line]
    for line in lines:
        steps = seen[line["step"] - 5 : line["step"]]
        assert line["loss"] == pytest.approx(sum(loss for loss, _ in steps) / 5, rel=1e-12)
        assert line["train_error_pct"] == pytest.approx(100 * sum(wrong for _, wrong in steps) / (5 * 16))
        assert line["images_per_s"] == pytest.approx(16 / 8)
        assert line["data_wait_pct"] == pytest.approx(25)
    assert len(lines) == 8


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("step", [20, 40])
def test_a_failed_evaluation_loses_nothing_and_is_done_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    folder, logits, calls = tmp_path / "run", inference.logits, []

    def failing(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == step // 20:
            raise RuntimeError("out of memory")
        return logits(*given)

    monkeypatch.setattr(inference, "logits", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(Request(small(), folder, seed=3))
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert kept["progress"]["step"] == step
    assert f"The checkpoint of step {step}" in capsys.readouterr().err
    assert (folder / "weights.safetensors").is_file()
    train(Request(small(), folder, seed=3, resume=True))
    assert_same_run(finished, folder)


FILE_TOO_LARGE = """
import resource, sys
from preresnet.cli import main
from preresnet.train import checkpoint
save, saved = checkpoint.save, []
def limit(bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))
def save_and_limit(*given):
    if len(saved) == 1 and CASE == "checkpoint":
        limit(100_000)
    save(*given)
    saved.append(1)
    if len(saved) == 2 and CASE == "weights":
        limit(100_000)
checkpoint.save = save_and_limit
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("case", "file", "step"),
    [("checkpoint", "checkpoint.pt", 7), ("weights", "weights.safetensors", 14)],
)
def test_a_full_disk_is_named_with_what_stands(finished: Path, tmp_path: Path, case: str, file: str, step: int) -> None:
    folder = tmp_path / "run"
    code = FILE_TOO_LARGE.replace("CASE", repr(case))
    full = run(sys.executable, "-c", code, *command(folder, small())[3:])
    assert full.returncode == 1, full.stderr
    assert f"{folder / file} could not be written (" in full.stderr
    assert f"The checkpoint of step {step} in {folder} stands" in full.stderr
    assert "Traceback" not in full.stderr
    assert not any("partial" in path.name for path in folder.iterdir())
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["progress"]["step"] == step
    assert run(*command(folder, small(), "--resume")).returncode == 0
    assert_same_run(finished, folder)


@pytest.mark.parametrize("step", [3, 22])
def test_a_killed_run_resumes_to_the_same_bits(finished: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "run"
    code = (
        "import os, sys; from preresnet.data.loaders import TrainingBatches; from preresnet.cli import main\n"
        "at = TrainingBatches.at\n"
        f"TrainingBatches.at = lambda self, step: os.kill(os.getpid(), 9) if step == {step} else at(self, step)\n"
        "main(sys.argv[1:])"
    )
    arguments = command(folder, small())[3:]
    killed = run(sys.executable, "-c", code, *arguments)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    done = run(*command(folder, small(), "--resume"))
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, folder)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_says_where_and_exits(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    slow = (
        "import sys, time; from preresnet.data.loaders import TrainingBatches; from preresnet.cli import main\n"
        "at = TrainingBatches.at\n"
        "TrainingBatches.at = lambda self, step: (time.sleep(0.6), at(self, step))[1]\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command(folder, small())[3:]], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 180
    while not runlog.read(folder):  # its first line: the loop is running
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert main(command(folder, small(), "--resume")[3:]) == 2  # a second one is told who trains there
    said = capsys.readouterr().err
    assert f"{folder} is in use: process {process.pid} on {platform.node()} trains there since 20" in said
    process.send_signal(number)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 128 + number
    assert str(folder) in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert run(*command(folder, small(), "--resume")).returncode == 0
    assert_same_run(finished, folder)


def test_a_run_folder_holds_what_it_says(finished: Path) -> None:
    files = {path.name for path in finished.iterdir()}
    expected = {"recipe.json", "network.json", "run.json", "metrics.jsonl", "checkpoint.pt", "weights.safetensors"}
    assert expected | {"result.json", "evaluation.json", "curve.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert not any("partial" in name for name in files)
    assert from_json(Recipe, (finished / "recipe.json").read_text()) == small()
    lines = runlog.read(finished)
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, 41, 5))
    assert [line["step"] for line in lines if "error_pct" in line] == [20, 40]
    result = json.loads((finished / "result.json").read_text())
    assert result["error_pct"] == lines[-1]["error_pct"]
    assert result["best_error_pct_chosen_on_test"] == min(line["error_pct"] for line in lines if "error_pct" in line)
    assert result["command"].startswith("preresnet train")
    assert result["num_images"] == 360
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert (evaluation["split"], evaluation["error_pct"]) == ("test", result["error_pct"])
    assert sum(map(sum, evaluation["confusion"])) == 360


def test_a_loaded_network_answers_as_the_trained_one(finished: Path) -> None:
    model = preresnet.load(finished)
    again = preresnet.load(finished / "weights.safetensors")
    assert not model.training
    assert model.spec.num_classes == 10
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), again(x))


def test_tensorboard_reads_the_events(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(5, 41, 5))


def test_an_existing_folder_is_never_overwritten(finished: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    with pytest.raises(ValueError, match=r"already holds a run; add --resume"):
        train(Request(small(), finished, seed=3))
    with pytest.raises(ValueError, match=r"global_batch: 16 there, 8 now"):
        train(Request(small(global_batch=8), finished, seed=3, resume=True))
    with pytest.raises(ValueError, match=r"seed: 3 there, 4 now"):
        train(Request(small(), finished, seed=4, resume=True))
    assert before == {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not empty and holds no run"):
        train(Request(small(), tmp_path, resume=True))


def test_resuming_a_finished_run_changes_nothing_but_the_words(finished: Path) -> None:
    before = (finished / "weights.safetensors").read_bytes(), measured(finished)
    result = train(Request(small(), finished, seed=3, resume=True))
    assert result["steps"] == 40
    assert before == ((finished / "weights.safetensors").read_bytes(), measured(finished))


def test_a_log_on_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = runlog.RunLog(tmp_path, 10, 0)
    log.write(1, loss=1.0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log._events, "add_scalar", full)
    with pytest.raises(trainer.NotWrittenError, match=r"metrics\.jsonl could not be written \(No space left on device"):
        log.write(2, loss=1.0)
    log.close()


def test_a_terminal_that_is_gone_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    result = train(Request(small(schedule=Milestones(steps=6, warmup_steps=0)), tmp_path / "run"))
    assert result["steps"] == 6


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    recipe = small(schedule=Milestones(steps=2, lr=0.1, warmup_steps=0), save_every=1)
    train(Request(recipe, tmp_path / "run"))
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"half a checkpo")
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint\.pt"):
        train(Request(recipe, tmp_path / "run", resume=True))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    # The second update multiplies weights by about 1e30; the loss of step 10 or so overflows.
    recipe = small(schedule=Milestones(steps=40, lr=1e30, warmup_lr=0.01, warmup_steps=8, milestones=()), save_every=4)
    words = r"the loss was (nan|inf) at step (9|10); the run stopped; .*\. The checkpoint of step 8 in .* stands"
    with pytest.raises(trainer.NotFiniteError, match=words):
        train(Request(recipe, tmp_path / "run"))
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert kept["progress"]["step"] == 8
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_promises_none(tmp_path: Path) -> None:
    recipe = small(schedule=Milestones(steps=40, lr=1e30, milestones=(), warmup_steps=0))
    with pytest.raises(trainer.NotFiniteError, match=r"the run stopped; .*\. There is no checkpoint in .* yet"):
        train(Request(recipe, tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_checkpoint_never_holds_weights_that_are_not_finite(tmp_path: Path) -> None:
    """The ninth update overflows, its loss, computed before, does not."""
    recipe = small(schedule=Milestones(steps=40, lr=1e39, warmup_lr=0.01, warmup_steps=8, milestones=()), save_every=1)
    with pytest.raises(trainer.NotFiniteError, match=r"a weight was .* at step 9; .* The checkpoint of step 8 in"):
        train(Request(recipe, tmp_path / "run"))
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert kept["progress"]["step"] == 8


def test_a_holdout_run_never_evaluates_on_the_test_set(tmp_path: Path) -> None:
    recipe = small(schedule=Milestones(steps=4, warmup_steps=0))
    result = train(Request(replace(recipe, data=replace(recipe.data, holdout=100)), tmp_path / "run"))
    assert (result["split"], result["num_images"]) == ("holdout", 100)
    assert "best_error_pct_chosen_on_holdout" in result


def test_the_network_may_come_from_a_file(tmp_path: Path) -> None:
    from preresnet.paper.networks import network

    spec = network("resnet8-preact")
    spec = replace(spec, dialect=replace(spec.dialect, norm_eps=1e-3))
    (tmp_path / "net.json").write_text(json.dumps({"spec": json.loads(to_json(spec))}))
    recipe = small(network=str(tmp_path / "net.json"), schedule=Milestones(steps=1, warmup_steps=0))
    train(Request(recipe, tmp_path / "run"))
    model = preresnet.load(tmp_path / "run")
    assert model.spec.dialect.norm_eps == 1e-3
    assert model.spec.in_channels == 1


def test_the_recipe_learns(tmp_path: Path) -> None:
    recipe = small(network="resnet8-preact", schedule=OneCycle(steps=150, lr=0.2, warmup_steps=30))
    result = train(Request(replace(recipe, global_batch=64), tmp_path / "run"))
    assert result["error_pct"] < 15  # chance is 90


def linear_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()


def test_parts_of_a_batch_add_up_to_its_mean_gradient() -> None:
    x, y = torch.randn(8, 3, 2, 2).double(), torch.arange(8) % 4
    losses, weights = [], []
    for norm_batch in (None, 2):
        model = linear_model()
        optimizer = build_optimizer(model, SGD())
        set_lr(optimizer, 0.1)
        losses.append(update(model, optimizer, x, y, norm_batch, "float32")[0])
        weights.append(model[1].weight.detach())  # type: ignore[index]
    assert torch.allclose(losses[0], losses[1])
    assert torch.allclose(weights[0], weights[1])


@pytest.mark.parametrize(("momentum", "norm_batch"), [(0.1, 2), (0.1, 8), (1.0, 4), (0.3, 3)])
def test_parts_of_a_batch_move_running_statistics_once(momentum: float, norm_batch: int) -> None:
    """(1 - m) old + m times the mean over the parts, by hand, over two updates; 3 of 8 leaves a smaller last part."""
    norm = nn.BatchNorm2d(3, momentum=momentum)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 4)).double()
    optimizer, y = build_optimizer(model, SGD()), torch.arange(8) % 4
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    for _ in range(2):
        x = torch.randn(8, 3, 2, 2).double() + 3
        update(model, optimizer, x, y, norm_batch, "float32")
        parts = x.split(norm_batch)
        seen = [(part.mean((0, 2, 3)), part.var((0, 2, 3)), len(part) / 8) for part in parts]
        mean = (1 - momentum) * mean + momentum * sum(share * one for one, _, share in seen)
        var = (1 - momentum) * var + momentum * sum(share * one for _, one, share in seen)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.num_batches_tracked == 2
    assert norm.momentum == momentum


@pytest.mark.parametrize("plan", MEMORY_PLANS)
def test_parts_move_the_statistics_of_a_network_once(plan: MemoryPlan) -> None:
    """Its first norm sees what the stem makes of each part; a repetition in the backward pass moves nothing."""
    model = devices.place(preresnet.create_model("resnet8-preact", seed=0), torch.device("cpu"))
    memory.set_plan(model, plan)
    x, y = torch.randn(8, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(8) % 4
    with torch.no_grad():
        expected = 0.1 * torch.stack([model.stem(part).mean((0, 2, 3)) for part in x.split(2)]).mean(0)
    update(model, build_optimizer(model, SGD()), x, y, 2, "float32")
    found = model.state_dict()
    torch.testing.assert_close(found["stages.0.units.0.pre.running_mean"], expected)
    assert {int(value) for name, value in found.items() if name.endswith("num_batches_tracked")} == {1}


def test_sgd_is_the_papers_update() -> None:
    """v = m v + (g + d w); w = w - lr v, by hand over three steps."""
    model = linear_model()
    optimizer = build_optimizer(model, SGD(momentum=0.9, weight_decay=0.01))
    weight = model[1].weight.detach().clone()  # type: ignore[index]
    velocity = torch.zeros_like(weight)
    x, y = torch.randn(8, 3, 2, 2).double(), torch.arange(8) % 4
    for lr in (0.1, 0.1, 0.05):
        set_lr(optimizer, lr)
        update(model, optimizer, x, y, None, "float32")
        velocity = 0.9 * velocity + model[1].weight.grad + 0.01 * weight  # type: ignore[index]
        weight = weight - lr * velocity
    assert torch.allclose(model[1].weight, weight, rtol=1e-12)  # type: ignore[index]


def test_decay_can_leave_norms_and_biases_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    groups = build_optimizer(model, SGD(decay_all=False)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 1e-4), (3, 0.0)]
    assert len(build_optimizer(model, SGD()).param_groups) == 1


def test_orthogonal_steps_turn_all_directions_alike_and_keep_the_norm() -> None:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(6, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, 4))
    optimizer = build_optimizer(model, Muon(momentum=0.9, nesterov=True, weight_decay=0.0, orthogonal_scale=0.25))
    set_lr(optimizer, 0.4)
    kernels = [convolution.weight for convolution in convolutions]
    x, y = torch.randn(8, 6, 6, 6), torch.arange(8) % 4
    update(model, optimizer, x, y, None, "float32")
    before = [kernel.detach().clone() for kernel in kernels]
    update(model, optimizer, x, y, None, "float32")
    for kernel, old in zip(kernels, before, strict=True):
        old = old * 4**0.5 / old.norm()
        singular = torch.linalg.svdvals(((old - kernel) / (0.25 * 0.4)).flatten(1).detach())
        assert singular.min() > 0.5
        assert singular.max() < 1.3


def test_orthogonal_steps_are_resumed_too(tmp_path: Path) -> None:
    recipe = small(optim=Muon(nesterov=True, orthogonal_scale=0.25))
    train(Request(recipe, tmp_path / "whole"))

    class StopError(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        save = checkpoint.save

        def save_and_stop(*arguments: Any) -> None:
            save(*arguments)
            if arguments[3]["step"] == 14:
                raise StopError

        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(StopError):
            train(Request(recipe, tmp_path / "parts"))
    train(Request(recipe, tmp_path / "parts", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_random_state_of_the_caller_is_not_the_runs(tmp_path: Path) -> None:
    recipe = small(schedule=Milestones(steps=3, warmup_steps=0))
    torch.manual_seed(1)
    train(Request(recipe, tmp_path / "one"))
    torch.manual_seed(2)
    train(Request(recipe, tmp_path / "two"))
    assert_same_run(tmp_path / "one", tmp_path / "two")
