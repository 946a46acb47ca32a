"""One run in several processes, joined by gloo: the losses, weights and files of one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from own_photos import CLASSES, fill
from safetensors.torch import load_file

import preresnet
from preresnet import distributed
from preresnet.data.image_set import Images
from preresnet.data.loaders import fit, training_batches
from preresnet.data.order import ImageOrder, slice_of
from preresnet.fields import with_fields
from preresnet.kernels import native
from preresnet.model import memory
from preresnet.paper.recipes import recipe
from preresnet.spec import MemoryPlan, UserError
from preresnet.train import folder, parallel
from preresnet.train.capture import TrainingStep
from preresnet.train.optim import build_optimizer, set_lr

HERE = Path(__file__).parent
BATCH, STEPS = 24, 10
SHORT = ["--schedule.steps", "6", "--schedule.warmup-steps", "0", "--log-every", "2", "--eval-every", "6"]
SHORT += ["--save-every", "2", "--global-batch", "24", "--device", "cpu", "--precision", "float32"]
Case = tuple[str, int | None, MemoryPlan]
ORDERS = ["preact", "original", "bn-after", "relu-before", "relu-only"]
SHORTCUTS = [
    "original-scale-0.5-0.5",
    "original-exclusive-gate-6",
    "original-shortcut-gate-6",
    "original-conv1x1",
    "original-dropout-0.5",
]


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(size: int, *command: str | Path, **more: str) -> list[subprocess.Popen[str]]:
    """So many processes that know of each other."""
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **place, **threads, "RANK": str(rank), "LOCAL_RANK": str(rank), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen[str]], within: float = 200) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        said = [process.communicate(timeout=within) for process in processes]
        return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def trained(name: str, norm_batch: int | None, plan: MemoryPlan = "plain") -> dict[str, torch.Tensor]:
    """Losses, weights and statistics of ten steps in float64, in whatever processes there are."""
    world = distributed.world()
    model = preresnet.create_model(name, num_classes=4, seed=0).double()
    memory.set_plan(model, plan)
    given = with_fields(recipe("cifar10/resnet20-preact"), global_batch=BATCH, norm_batch=norm_batch)
    division = parallel.divide(given, world.size)
    optimizer = build_optimizer(model, given.optim)
    called = parallel.wrapped(model)
    step = TrainingStep(model, optimizer, division.part, "float32", (), 5, division.ranks, called)
    chance = torch.Generator().manual_seed(1)
    images = Images(
        torch.randint(0, 256, (60, 8, 8, 3), generator=chance, dtype=torch.uint8),
        torch.randint(0, 4, (60,), generator=chance),
    )
    data = with_fields(given.data, pad=1)
    batches = training_batches(images, data, fit(images, data), BATCH, 3, rank=world.rank, world_size=world.size)
    losses = []
    for number in range(STEPS):
        x, y = batches.at(number)
        set_lr(optimizer, 0.01)
        losses.append(step(x.double().contiguous(memory_format=torch.channels_last), y, number)[0])
    parallel.mean_statistics(model)
    losses = distributed.summed(torch.stack(losses)) / world.size
    return {"losses": losses, **{key: value.clone() for key, value in model.state_dict().items()}}


def work(out: str, cases: list[Case]) -> None:
    """What each process does: all cases, one after the other."""
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        found = {str(case): trained(*case) for case in cases}
        if distributed.world().first:
            torch.save(found, out)


def compare(size: int, cases: list[Case], tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import test_distributed as t; t.work(sys.argv[1], {cases!r})"
    )
    for code, _, said in ended(start(size, "-c", script, tmp_path / "found.pt")):
        assert code == 0, said
    found = torch.load(tmp_path / "found.pt")
    for case in cases:
        expected = trained(*case)
        assert expected["losses"].std() > 0
        for key, value in expected.items():
            torch.testing.assert_close(found[str(case)][key], value, rtol=1e-10, atol=1e-10, msg=f"{case} {key}")


@pytest.mark.parametrize(
    ("size", "norms"),
    [
        (2, [None, 4, 12]),
        pytest.param(3, [None, 4, 8], marks=pytest.mark.slow),
        pytest.param(4, [None, 12, 3, 6], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_number_of_processes_trains_as_one(size: int, norms: list[int | None], tmp_path: Path) -> None:
    """Parts of a share, a share, several shares, all: losses, weights and statistics to 1e-10."""
    cases: list[Case] = [("resnet8-preact", count, "plain") for count in norms]
    cases += [("resnet8-original-dropout-0.5", norms[-1], "plain"), ("resnet8-preact", None, "sqrt")]
    compare(size, cases, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_order_and_shortcut_trains_as_in_one_process(size: int, tmp_path: Path) -> None:
    names = [f"resnet8-{name}" for name in (*ORDERS, *SHORTCUTS)] + ["resnet11-preact-bottleneck"]
    compare(size, [(name, norms, "plain") for name in names for norms in (None, BATCH // size, 2)], tmp_path)


@pytest.mark.parametrize(
    ("batch", "norms", "size", "said"),
    [
        (128, None, 3, "use 2 or 4 processes, or --global-batch 126 or 129"),
        (24, 8, 2, "use --norm-batch 6 or 12, or 1 or 3 processes"),
        (24, 8, 4, "use --norm-batch 6 or 12, or 3 or 6 processes"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_what_can(batch: int, norms: int | None, size: int, said: str) -> None:
    given = with_fields(recipe("cifar10/resnet20-preact"), global_batch=batch, norm_batch=norms)
    with pytest.raises(UserError, match="processes") as refused:
        parallel.divide(given, size)
    assert said in str(refused.value)


def test_a_run_of_two_processes_leaves_the_files_of_one(tmp_path: Path) -> None:
    command = ["-m", "preresnet", "train", "digits/resnet20-preact", "--network", "resnet8-preact", *SHORT]
    (alone,) = ended(start(1, *command, "--out", tmp_path / "one"))
    assert alone[0] == 0, alone[2]
    first, second = ended(start(2, *command, "--out", tmp_path / "two"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1] + second[2] == ""
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert two["world_size"] == 2
    assert two["num_images"] == one["num_images"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    names = [sorted(p.name for p in (tmp_path / name).iterdir() if "events" not in p.name) for name in ("one", "two")]
    assert names[0] == names[1]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1])
    for here, there in zip(*lines, strict=True):
        assert json.loads(here).get("loss", 0) == pytest.approx(json.loads(there).get("loss", 0), rel=1e-3)
    reports = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    assert reports[0].keys() == reports[1].keys()


def test_photographs_are_mixed_over_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "cache"))
    from preresnet.data import sets, streaming

    photos = fill(tmp_path / "photos", dict.fromkeys(CLASSES, 12))
    spec = with_fields(recipe("images/resnet8-preact").data, image_size=32, mixed=1.0)
    data = sets.load(spec, photos)

    def of(rank: int, size: int) -> Any:
        return training_batches(
            data.train,
            spec,
            streaming.normalisation(),
            12,
            0,
            0,
            0,
            data.classes,
            rank,
            size,  # type: ignore[arg-type]
        )

    for step in range(4):
        whole, parts = of(0, 1).at(step), [of(rank, 3).at(step) for rank in range(3)]
        for place in (0, 1):
            torch.testing.assert_close(torch.cat([part[place] for part in parts]), whole[place], rtol=0, atol=0)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 4)])
def test_every_image_is_seen_as_often_as_in_one_process_when_their_number_changes(before: int, after: int) -> None:
    stream, seen = ImageOrder(50, BATCH, 7), Counter[int]()
    for step in range(20):
        size = before if step < 9 else after
        for rank in range(size):
            seen.update(stream.indices(step)[slice_of(rank, size, BATCH)].tolist())
    assert seen == Counter(torch.cat([stream.indices(step) for step in range(20)]).tolist())
    assert set(seen.values()) == {9, 10}  # 480 of 50 images


@pytest.mark.slow
def test_a_process_that_is_killed_costs_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    """torchrun starts all again, and the end is that of a run that nobody disturbed."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    run = ["-m", "preresnet", "train", "digits/resnet20-preact", "--network", "resnet8-preact", *SHORT]
    run += ["--schedule.steps", "60", "--eval-every", "60"]
    for name in ("calm", "killed"):
        out = tmp_path / name
        more = [] if name == "calm" else ["--max-restarts", "1"]
        (begun,) = start(1, *command, str(port()), *more, *run, "--out", out)
        deadline = time.monotonic() + 120
        while name == "killed" and time.monotonic() < deadline:
            if (out / "checkpoint.pt").is_file():
                os.kill(json.loads((out / folder.HOLDER_FILE).read_text())["pid"], signal.SIGKILL)
                break
            time.sleep(0.05)
        ((code, _, said),) = ended([begun])
        assert code == 0, said
    calm, killed = (load_file(tmp_path / name / "weights.safetensors") for name in ("calm", "killed"))
    assert calm.keys() == killed.keys()
    for key, value in calm.items():
        torch.testing.assert_close(killed[key], value, rtol=0, atol=0)


SHARED_NORM = """
import torch
from preresnet import distributed
from preresnet.model.preactivation import _SharedNorm

with distributed.joined("cpu") as world, distributed.norms_over(2):
    torch.manual_seed(world.rank)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        x = (3 + 2 * torch.randn(4, 24, 9, 9)).to(dtype, memory_format=torch.channels_last)
        grad = torch.randn(4, 24, 9, 9).to(dtype, memory_format=torch.channels_last)
        found = []
        for fused in (True, False):
            vectors = torch.linspace(-1, 1, 24), torch.ones(24)
            given = [one.clone().requires_grad_() for one in (x, *vectors)]
            y, mean, var = _SharedNorm.apply(*given, 1e-5, True, fused)
            y.backward(grad)
            found.append([y.detach(), mean, var, *(one.grad for one in given)])
        for ours, plain in zip(*found):
            assert (ours - plain).abs().max() <= bound * plain.abs().max(), (dtype, ours, plain)
"""


@pytest.mark.skipif(not native.available(), reason="no kernels are built here")
def test_passes_of_our_own_give_the_norm_over_processes() -> None:
    for code, _, said in ended(start(2, "-c", SHARED_NORM)):
        assert code == 0, said


def test_processes_that_differ_do_not_begin(tmp_path: Path) -> None:
    command = ["-m", "preresnet", "train", "digits/resnet20-preact", *SHORT, "--out", str(tmp_path / "run")]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "OMP_NUM_THREADS": "1"}
    begun = [
        subprocess.Popen(
            [sys.executable, *command, "--seed", str(rank)],
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for code, _, said in ended(begun, 60):
        assert code == 2, said
        assert said.count("differ in seed: 0 in rank 0, 1 in rank 1") == 1
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_what_all_find_wrong_is_said_once(tmp_path: Path) -> None:
    command = ["-m", "preresnet", "train", "digits/resnet20-preact", *SHORT, "--device", "nowhere"]
    found = ended(start(2, *command, "--out", tmp_path / "run"), 60)
    assert [code for code, _, _ in found] == [2, 2]
    assert "".join(said for _, _, said in found).count("error: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_was_refused_is_not_taken_up_by_a_restart(tmp_path: Path) -> None:
    """torchrun starts again whatever ended; the folder's own run, which it would resume, stays as it is."""
    run = ["-m", "preresnet", "train", "digits/resnet20-preact", "--network", "resnet8-preact", *SHORT]
    run += ["--out", tmp_path / "run"]
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", "--master-port"]
    ((code, _, said),) = ended(start(1, *command, str(port()), *run))
    assert code == 0, said
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()}
    ((code, _, said),) = ended(start(1, *command, str(port()), *run))
    assert code != 0
    assert "error: " in said
    assert "--resume" in said
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()} == before


def test_a_process_that_is_missing_is_waited_for_half_a_minute(tmp_path: Path) -> None:
    command = ["-m", "preresnet", "train", "digits/resnet20-preact", *SHORT, "--out", tmp_path / "run"]
    begin = time.monotonic()
    others = start(2, *command)
    others[1].kill()
    (code, _, said), _ = ended(others, 90)
    assert code == 2
    assert "did not find each other within 30 s (RANK=0, WORLD_SIZE=2" in said
    assert "Traceback" not in said
    assert time.monotonic() - begin < 75  # on a busy machine
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_port_that_a_stranger_has_is_no_meeting_place(tmp_path: Path) -> None:
    command = ["-m", "preresnet", "train", "digits/resnet20-preact", *SHORT, "--out", tmp_path / "run"]
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        found = ended(start(2, *command, MASTER_PORT=str(stranger.getsockname()[1])), 90)
    for code, _, said in found:
        assert code == 2, said
        assert said.count("error: the processes of this run did not find each other") == 1
        assert "Traceback" not in said
    assert "address already in use" in found[0][2]
    assert not (tmp_path / "run").exists()


def test_a_signal_to_one_process_stops_all_at_one_step_and_another_number_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["-m", "preresnet", "train", "digits/resnet20-preact", "--network", "resnet8-preact", *SHORT]
    command += ["--schedule.steps", "100000", "--out", str(out)]
    begun = start(2, *command)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    begun[1].send_signal(signal.SIGTERM)
    (first, _, said), (second, _, quiet) = ended(begun, 120)
    assert (first, second) == (143, 143), said + quiet
    assert said.count("stopped at step") == 1
    assert "stopped" not in quiet
    step = torch.load(out / "checkpoint.pt", weights_only=True)["progress"]["step"]
    assert f"stopped at step {step}" in said
    (code, _, said), *_ = ended(
        start(3, *command[:-4], "--schedule.steps", "100000", "--out", out, "--resume", "--seed", "1")
    )
    assert code == 2
    assert "holds another run (seed: 0 there, 1 now)" in said
