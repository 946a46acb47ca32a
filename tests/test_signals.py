"""Signals to a whole group of processes, as `timeout`, a terminal's Ctrl-C and batch systems send them.

A run that reads image files with two worker processes outlives them: it saves, says where, and continues later.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from preresnet import signals
from preresnet.cli import main
from preresnet.recipe import Milestones, PaperPhotographs, Recipe
from preresnet.spec import to_json
from preresnet.train import runlog

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNALS = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup is respected

RECIPE = Recipe(
    network="resnet8-preact",
    data=PaperPhotographs(
        name="folder", image_size=16, augment="scale", shorter_side=(18, 24), test_crops=(16,), test_sides=(18,)
    ),
    schedule=Milestones(steps=20_000, lr=0.02, milestones=(), warmup_steps=0),
    global_batch=4,
    precision="float32",
    log_every=5,
    eval_every=20_000,
    save_every=20_000,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small photographs, in a folder whose name needs quotes."""
    root = tmp_path_factory.mktemp("data") / "my [bold]photos$1"
    random = np.random.RandomState(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = random.randint(0, 256, (24, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "preresnet", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def until(what: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def recipe_file(folder: Path, steps: int = 20_000) -> str:
    path = folder / "recipe.json"
    path.write_text(to_json(replace(RECIPE, schedule=replace(RECIPE.schedule, steps=steps))))
    return str(path)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Processes that it started by multiprocessing."""
    found = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with suppress(OSError):  # it ended meanwhile
            if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
    return found


def test_two_signals_at_once_are_one_and_a_later_one_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []
    with signals.Signals(stopped.append) as noted:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped == [False]
        monkeypatch.setattr(signals, "SAME_S", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped == [False, True]
    assert noted.received == signal.SIGTERM
    monkeypatch.setattr(signals, "SAME_S", 60.0)
    os.kill(os.getpid(), signal.SIGTERM)  # while the process ends: still the same one
    assert stopped == [False, True]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_later_signal_does_what_it_would_have_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_S", 0.0)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # handlers run between two statements

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with signals.Signals():
            interrupt()
            with pytest.raises(KeyboardInterrupt):
                interrupt()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are listed in /proc")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("early", [True, False], ids=["while workers start", "while training"])
def test_a_signal_to_the_group_saves(photos: Path, tmp_path: Path, number: signal.Signals, early: bool) -> None:
    out = tmp_path / "run"
    given = ["train", recipe_file(tmp_path), "--out", str(out), "--data-root", str(photos), "--workers", "2"]
    process = start(*given, "--device", "cpu")
    until(lambda: (len(children(process)) == 2) if early else runlog.read(out), process)
    for _ in range(2):  # `timeout` signals its child, then the group of its child
        os.killpg(process.pid, number)
        time.sleep(0.1)
    said = "".join(process.communicate(timeout=240))
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert "DataLoader worker" not in said
    assert f"saved in {out}" in said
    step = torch.load(out / "checkpoint.pt", weights_only=True)["progress"]["step"]
    assert step >= 1
    assert f"stopped at step {step}" in said


def test_the_commands_that_training_prints_work_as_they_stand(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "-a [run]"
    given = ["train", recipe_file(tmp_path, 4), "--out", str(out), "--data-root", str(photos), "--workers", "1"]
    assert main([*given, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"run      {out}\n" in said
    for heading in ("next", "report"):
        line = next(line for line in said.splitlines() if line.startswith(heading))
        program, *words = shlex.split(line.removeprefix(heading))
        assert program == "preresnet"
        assert main(words) == 0, line
    assert (out / "report.html").is_file()


def test_a_study_stops_its_runs_and_their_workers_save(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    given = ["sweep", recipe_file(tmp_path), "--out", str(out), "--data-root", str(photos), "--device", "cpu"]
    given += ["--vary", "schedule.lr=0.01,0.02"]
    process = start(*given, "--jobs", "2")
    runs = [out / f"schedule.lr={rate}" / "seed0" for rate in (0.01, 0.02)]
    until(lambda: all(runlog.read(run) for run in runs), process)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.1)
    said = "".join(process.communicate(timeout=240))
    assert process.returncode == 143, said
    assert "Traceback" not in said
    statuses = [run["message"] for row in json.loads((out / "study.json").read_text())["rows"] for run in row["runs"]]
    assert all("stopped at step" in message for message in statuses)
    for run in runs:
        assert torch.load(run / "checkpoint.pt", weights_only=True)["progress"]["step"] >= 5
    assert "DataLoader worker" not in "".join(path.read_text() for path in (out / ".logs").iterdir())


@pytest.mark.skipif(signal.SIGINT not in SIGNALS, reason="Ctrl-C is ignored here, as in what a shell puts behind")
def test_a_bench_that_is_interrupted_says_so_in_one_word() -> None:
    process = start("bench", "resnet8-preact", "--batch", "4", "--rounds", "100000", "--against", "eager")
    said = ""
    while "round 1 of" not in said:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line, said
        said += line
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=240)
    assert process.returncode == 130, rest
    assert rest.splitlines()[-1] == "stopped"
    assert "Traceback" not in rest
