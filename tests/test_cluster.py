"""A real Ray cluster of two nodes on this machine, one of which is killed during a run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_distributed import ended, start

from preresnet.study import manifest

# In a process of its own: Ray starts threads and warns, and leaves nothing behind when it ends.
STUDY = """
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from preresnet.paper.recipes import recipe
from preresnet.study.reproduce import Progress, Execution, reproduce
from preresnet.study.sweep import of_sweep

NAME = "digits/resnet20-preact"
SMALL = 80 << 20  # bytes for objects; the outcomes of runs are tiny
TINY = ("network=resnet8-preact", "data.image_size=8", "schedule.steps=800", "schedule.warmup_steps=4",
        "global_batch=16", "precision=float32", "log_every=10", "save_every=20", "eval_every=800")


def study(out):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": SMALL})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=SMALL) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    killed = []

    def kill_a_node_at_work(job, step):
        if step >= 50 and not killed:
            killed.append(job.name)
            cluster.remove_node(nodes[0], allow_graceful=False)

    plan = of_sweep(NAME, recipe(NAME), ("schedule.lr=0.05,0.1,0.2", *TINY))
    try:
        reproduce(plan, 1, Execution(out, executor="ray", device="cpu"), Progress(moved=kill_a_node_at_work))
    finally:
        ray.shutdown()
        cluster.shutdown()


study(Path(sys.argv[1]))
"""


@pytest.mark.slow  # two minutes on two cores
def test_a_study_outlives_a_node_of_its_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed (pip install 'preresnet[cluster]')")
    out = tmp_path / "study"
    done = subprocess.run([sys.executable, "-c", STUDY, str(out)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3_000:]
    rows = json.loads((out / "study.json").read_text())["rows"]
    assert [run["status"] for row in rows for run in row["runs"]] == ["done"] * 3
    interrupted = []
    for row in rows:
        text = (out / ".logs" / f"{row['row']}-seed0.log").read_text()
        workers = re.findall(r"process (\d+): start at step (\d+)", text)
        assert text.count(": done") == 1, text  # nothing is run twice to the end
        assert workers[0][1] == "0"
        if len(workers) > 1:
            interrupted.append(row["row"])
            assert workers[0][0] != workers[1][0]
            assert int(workers[1][1]) > 0  # it goes on from its checkpoint, on the other node
        metrics = (out / row["row"] / "seed0" / "metrics.jsonl").read_text()
        steps = [json.loads(line)["step"] for line in metrics.splitlines()]
        losses = sorted(set(steps))
        assert losses == list(range(10, 801, 10))  # nothing is lost
    assert len(interrupted) == 1


TINY = ["--network", "resnet8-preact", "--schedule.warmup-steps", "4", "--global-batch", "16", "--device", "cpu"]
TINY += ["--data.image-size", "8", "--precision", "float32", "--save-every", "20", "--log-every", "20"]
TWO = ["--executor", "ray", "--gpus-per-run", "2"]


def on_ray(*command: str | Path) -> subprocess.Popen[str]:
    """A command of ours on a cluster of its own, with two processors."""
    return subprocess.Popen(
        [sys.executable, "-m", "preresnet", *map(str, command)],
        env={**os.environ, "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}', "RAY_worker_niceness": "0", "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow  # a minute on two cores
def test_ray_train_replaces_a_process_that_is_lost_and_the_weights_are_those_of_a_calm_run(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed (pip install 'preresnet[cluster]')")
    command = ["train", "digits/resnet20-preact", *TINY, "--schedule.steps", "600", "--eval-every", "600"]
    calm = ended(start(2, "-m", "preresnet", *command, "--out", tmp_path / "calm"))
    assert [code for code, _, _ in calm] == [0, 0], calm
    running = on_ray(*command, *TWO, "--out", tmp_path / "run")
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 5) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-f", "study.together"], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    ((code, out, said),) = ended([running], 400)
    assert code == 0, said
    assert out.count("test error") == 1
    calm_weights, weights = (load_file(tmp_path / name / "weights.safetensors") for name in ("calm", "run"))
    assert all(weights[name].equal(tensor) for name, tensor in calm_weights.items())
    assert json.loads((tmp_path / "run" / "result.json").read_text())["world_size"] == 2
    assert not list(tmp_path.glob(".ray*"))


@pytest.mark.slow  # a minute on two cores
def test_ctrl_c_saves_a_run_on_ray_and_bad_input_is_said_once(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed (pip install 'preresnet[cluster]')")
    command = ["train", "digits/resnet20-preact", *TINY, *TWO]
    ((code, _, said),) = ended([on_ray(*command, "--schedule.steps", "40", "--network", "nothing", "--out", tmp_path)])
    assert code == 2
    assert said.count("error: ") == 1
    running = on_ray(*command, "--schedule.steps", "9000", "--eval-every", "9000", "--out", tmp_path / "run")
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    ((code, _, said),) = ended([running], 200)
    assert code == 130, said
    assert said.count("resume") == 1
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


@pytest.mark.slow  # a minute on two cores
def test_a_study_of_runs_in_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed (pip install 'preresnet[cluster]')")
    steps = ["--vary", "schedule.steps=40", "--vary", "schedule.warmup_steps=4", "--vary", "eval_every=40"]
    fields = ["--vary", "network=resnet8-preact", "--vary", "data.image_size=8", "--vary", "global_batch=16"]
    out = tmp_path / "study"
    command = ["sweep", "digits/resnet20-preact", "--vary", "schedule.lr=0.05,0.1", *steps, *fields]
    ((code, _, said),) = ended([on_ray(*command, *TWO, "--device", "cpu", "--out", out)], 500)
    assert code == 0, said
    rows = json.loads((out / manifest.STUDY_FILE).read_text())["rows"]
    assert [run["status"] for row in rows for run in row["runs"]] == ["done"] * 2
    for row in rows:
        assert json.loads((out / row["row"] / "seed0" / "result.json").read_text())["world_size"] == 2


def test_processes_of_a_run_are_for_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from preresnet.cli import main

    for command in (
        ["train", "digits/resnet20-preact"],
        ["sweep", "digits/resnet20-preact", "--vary", "schedule.lr=1"],
    ):
        assert main([*command, "--gpus-per-run", "2", "--out", str(tmp_path / "run")]) == 2
        assert "--executor ray" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_ray_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from preresnet.cli import main

    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["sweep", "digits/resnet20-preact", "--vary", "lr=0.1", "--executor", "ray"]
    assert main([*given, "--out", str(tmp_path / "study")]) == 2
    assert "pip install 'preresnet[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
