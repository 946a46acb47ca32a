"""A real Ray cluster of two nodes on this machine, one of which is killed during a run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_without_ray_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from preresnet.cli import main

    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["sweep", "digits/resnet20-preact", "--vary", "lr=0.1", "--executor", "ray"]
    assert main([*given, "--out", str(tmp_path / "study")]) == 2
    assert "pip install 'preresnet[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
