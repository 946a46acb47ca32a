"""Studies as a user does them: whole, killed, stopped, continued. No run is lost and none is done twice."""

import errno
import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import preresnet
from preresnet.cli import main
from preresnet.data import cifar, sets
from preresnet.spec import UserError
from preresnet.study import executors
from preresnet.study.plan import Plan
from preresnet.study.reproduce import Execution, reproduce
from preresnet.study.runs import Job, Outcome, kept, work
from preresnet.study.sweep import of_sweep
from preresnet.train import folder, trainer, watch
from preresnet.train.folder import Request

DIGITS = "digits/resnet20-preact"
TINY = ("network=resnet8-preact", "data.image_size=8", "global_batch=16", "precision=float32", "log_every=10")


def tiny(rates: str, steps: int = 20) -> list[str]:
    """A sweep over learning rates on 8x8 digits: a step takes a few milliseconds."""
    vary = [f"schedule.lr={rates}", *TINY, f"schedule.steps={steps}", "schedule.warmup_steps=4", "save_every=20"]
    return [word for one in vary for word in ("--vary", one)]


def start(out: Path, rates: str, steps: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "preresnet", "sweep", DIGITS, "--out", str(out), *tiny(rates, steps), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = "".join(process.communicate(timeout=300))
    assert "Traceback" not in said, said
    return process.returncode, said


def until(what: Callable[[], Any], seconds: float = 240) -> Any:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) * 10 if path.is_file() else 0


def history(out: Path, name: str) -> list[str]:
    """What happened to a run: start at step N, done."""
    path = out / ".logs" / f"{name}.log"
    return re.findall(r"process \d+: (start at step \d+|\w+)", path.read_text()) if path.is_file() else []


def worker(out: Path, name: str) -> int:
    """Process of the run's last worker."""
    return int(re.findall(r"process (\d+):", (out / ".logs" / f"{name}.log").read_text())[-1])


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "study.json").read_text())


def statuses(out: Path) -> list[str]:
    return [run["status"] for row in manifest(out)["rows"] for run in row["runs"]]


def stamps(folder: Path) -> dict[str, int]:
    """When each file of a run was changed; its lock is no part of it."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name[0] != "."}


def started_late(line: str) -> bool:
    return int(line.removeprefix("start at step ")) > 0


FIRST, SECOND = "schedule.lr=0.05", "schedule.lr=0.1"


def test_a_study_killed_in_its_second_run_loses_and_repeats_nothing(tmp_path: Path) -> None:
    out = tmp_path / "study"
    process = start(out, "0.05,0.1", 800)
    until(lambda: steps_logged(out / SECOND / "seed0") >= 100 and statuses(out)[1] == "running")
    child = worker(out, f"{SECOND}-seed0")
    for number in (process.pid, child):  # as a power cut would: no time to save
        os.kill(number, signal.SIGKILL)
    finish(process)
    assert statuses(out) == ["done", "running"]
    before = stamps(out / FIRST / "seed0")

    code, said = finish(start(out, "0.05,0.1", 800))
    assert code == 0, said
    assert statuses(out) == ["done", "done"]
    assert before == stamps(out / FIRST / "seed0")
    assert history(out, f"{FIRST}-seed0") == ["start at step 0", "done"]
    first, second, done = history(out, f"{SECOND}-seed0")
    assert (first, done) == ("start at step 0", "done")
    assert started_late(second)
    assert str(out) in said


def test_the_runs_of_a_killed_command_save_and_stop(tmp_path: Path) -> None:
    out = tmp_path / "study"
    process = start(out, "0.05,0.1", 20_000)
    until(lambda: steps_logged(out / FIRST / "seed0") >= 100)
    process.kill()
    finish(process)
    until(lambda: history(out, f"{FIRST}-seed0")[-1] == "stopped")
    assert (out / FIRST / "seed0" / "checkpoint.pt").is_file()
    with folder.hold(out / FIRST / "seed0", wait_s=60):
        pass  # and nobody holds the run any more


def test_ctrl_c_stops_all_runs_after_their_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "study"
    process = start(out, "0.05,0.1,0.2", 20_000, "--jobs", "2")
    until(lambda: all(steps_logged(out / name / "seed0") >= 50 for name in (FIRST, SECOND)))
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == 130
    assert "The same command continues" in said
    assert statuses(out) == ["waiting"] * 3
    for name in (FIRST, SECOND):
        assert history(out, f"{name}-seed0")[-1] == "stopped"
        assert "stopped at step" in next(
            run["message"] for row in manifest(out)["rows"] if row["row"] == name for run in row["runs"]
        )
        assert (out / name / "seed0" / "checkpoint.pt").is_file()
    assert not (out / "schedule.lr=0.2").exists()


def test_a_run_that_dies_or_diverges_does_not_stop_the_others(tmp_path: Path) -> None:
    out = tmp_path / "study"
    process = start(out, "0.05,1e30,0.1", 600)
    until(lambda: steps_logged(out / FIRST / "seed0") >= 50)
    os.kill(worker(out, f"{FIRST}-seed0"), signal.SIGKILL)
    code, said = finish(process)
    assert code == 1
    assert statuses(out) == ["failed", "diverged", "done"]
    died, diverged, _ = (row["runs"][0] for row in manifest(out)["rows"])
    assert "signal SIGKILL" in died["message"]
    assert "signal SIGKILL" in said
    assert re.search("the loss was (nan|inf) at step", diverged["message"])
    assert diverged["error_pct"] is None
    row = manifest(out)["rows"][1]["statistics"]
    assert (row["n"], row["diverged"], row["failed"], row["median"]) == (1, 1, None, None)
    kept = json.loads((out / "schedule.lr=1e+30" / "seed0" / "diverged.json").read_text())
    assert kept["command"].startswith("preresnet train digits/resnet20-preact ")

    before = stamps(out / "schedule.lr=1e+30" / "seed0")
    code, _ = finish(start(out, "0.05,1e30,0.1", 600))
    assert code == 0  # a loss that is not finite is a result: the paper's "fail"
    assert statuses(out) == ["done", "diverged", "done"]
    assert before == stamps(out / "schedule.lr=1e+30" / "seed0")
    assert started_late(history(out, f"{FIRST}-seed0")[1])


def in_this_process(
    jobs: Sequence[Job], parallel: int, report: Callable[[Job, Outcome], None], tick: Callable[[], None]
) -> int:
    """An executor for what does not need processes, and for data that exist in this process alone."""
    for job in jobs:
        report(job, work(job))
        tick()
    return 0


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "local", in_this_process)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A run of a few steps in a study that has begun."""
    (tmp_path / "study.json").write_text("{}")
    recipe = preresnet.recipe("digits/resnet20-preact")
    short = replace(recipe, schedule=replace(recipe.schedule, steps=2, warmup_steps=0), network="resnet8-preact")
    return Job("row", Request(short, tmp_path / "row" / "seed0", device="cpu"), tmp_path)


def test_a_run_that_the_first_version_finished_is_kept(job: Job) -> None:
    assert work(job).status == "done"
    file = job.request.out / "result.json"
    found = json.loads(file.read_text())
    for name in ("pool", "pool_padding"):  # the first version knew none of these
        del found["network"]["stem"][name]
    for stage in found["network"]["stages"]:
        del stage["bottleneck_ratio"]
    del found["network"]["dialect"]["conv_padding"], found["recipe"]["optim"]["kind"]
    found["recipe"]["optim"]["orthogonal_scale"] = 0.0
    file.write_text(json.dumps(found))
    assert kept(job.request) == Outcome("done", found["error_pct"], top5_error_pct=found["top5_error_pct"])
    found["network"]["unit"]["order"]["after_add"] = "R"
    file.write_text(json.dumps(found))
    assert kept(job.request) is None


def test_a_run_is_done_though_its_diary_cannot_be_written(job: Job) -> None:
    job.log.parent.write_text("no folder, as where a disk is full")
    assert work(job).status == "done"


def test_a_run_that_cannot_begin_says_which_file_could_not_be_written(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    outcome = work(job)
    assert outcome.status == "failed"
    assert "could not be written (No space left on device" in outcome.message


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few random images in the official layout, with the checksums that belong to them."""
    python, binary = cifar._LAYOUTS["cifar10"]
    folder = tmp_path / "data" / python.folder
    folder.mkdir(parents=True)
    random, digests = np.random.RandomState(0), {}
    contents = {"batches.meta": {"label_names": [f"class{label}" for label in range(10)]}}
    for file in (*python.train, *python.test):
        contents[file] = {"data": random.randint(0, 256, (8, 3072), dtype=np.uint8), "labels": [*range(8)]}  # type: ignore[dict-item]
    for file, content in contents.items():
        text = pickle.dumps(content)
        (folder / file).write_bytes(text)
        digests[file] = hashlib.md5(text).hexdigest()
    monkeypatch.setitem(cifar._LAYOUTS, "cifar10", (replace(python, digests=digests), binary))
    return tmp_path / "data"


def test_a_shortened_table_is_labelled_and_kept_apart(
    small_cifar: Path, tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, records = tmp_path / "study", tmp_path / "records"
    given = ["reproduce", "table2", "--rows", "*110*", "--scale", "steps=8,batch=8,depth=8", "--out", str(out)]
    given += ["--data-root", str(small_cifar), "--records", str(records)]
    assert main([*given, "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    heading = next(line for line in said.splitlines() if "median" in line)
    columns = [word.strip() for word in heading.strip("┃ ").split("┃")]
    assert columns == [
        "row",
        "shortened, median %",
        "n",
        "mean ± std",
        "95 % of the median",
        "(paper, at full length)",
    ]
    line = next(line for line in said.splitlines() if "BN after addition" in line)
    assert line.rstrip("│ ").split("│")[-1].strip() == "8.17"
    assert "shortened: steps=8, batch=8, depth=8" in said
    assert "not enough runs" in said

    found = manifest(out)
    assert found["scale"] == {"steps": 8, "batch": 8, "depth": 8}
    assert [row["row"] for row in found["rows"]][:2] == ["cifar10-resnet8-original", "cifar10-resnet8-bn-after"]
    assert found["rows"][1]["paper"] == {
        "error_pct": 8.17,
        "top5_error_pct": None,
        "fail": False,
        "spread": "",
    }
    assert [row["label"] for row in found["rows"]][:1] == ["8 layers, original (here resnet8-original)"]
    assert all("110" not in claim["text"] for claim in found["claims"])
    assert all(row["statistics"]["failed"] is None for row in found["rows"])
    assert all(claim["evidence"].startswith("Shortened (steps=8, ") for claim in found["claims"])
    assert {claim["answer"] for claim in found["claims"]} == {"not enough runs"}
    assert {"lower error", "lower early training loss"} <= {claim["kind"] for claim in found["claims"]}
    result = json.loads((out / "cifar10-resnet8-preact" / "seed0" / "result.json").read_text())
    assert result["name"] == "cifar10/resnet110-preact, shortened: steps=8, batch=8, depth=8"
    assert result["error_pct"] == found["rows"][4]["runs"][0]["error_pct"]
    place = records / "table2-scaled-steps8-batch8-depth8" / "cifar10-resnet8-preact" / "seed0.json"
    assert json.loads(place.read_text()) == result

    # more seeds of one row later: the table keeps what it has, and the records too
    given += ["--probe-every", "4"]
    place.write_text("{}")
    given[given.index("*110*")] = "resnet110-preact"
    before = stamps(out / "cifar10-resnet8-preact" / "seed0")
    assert main([*given, "--seeds", "3"]) == 0
    said = capsys.readouterr()
    assert f"left alone: {place}" in said.err
    assert place.read_text() == "{}"
    assert before == stamps(out / "cifar10-resnet8-preact" / "seed0")
    assert [len(row["runs"]) for row in manifest(out)["rows"]] == [1, 1, 1, 1, 3]
    assert manifest(out)["rows"][4]["statistics"]["n"] == 3
    assert manifest(out)["rows"][4]["statistics"]["interval"] is not None
    assert not (out / "cifar10-resnet8-preact" / "seed0" / "probe.jsonl").exists()
    probed = out / "cifar10-resnet8-preact" / "seed1"
    assert [line["step"] for line in watch.read(probed)] == [0, 4, 8]
    assert (probed / "probe.png").is_file()
    assert json.loads((probed / "result.json").read_text())["command"].endswith(" --probe-every 4")

    given[given.index("--scale") + 1] = "steps=9,batch=8,depth=8"
    assert main(given) == 2
    assert "holds another study (scale" in capsys.readouterr().err


def plan(*rates: float, steps: int = 3) -> Plan:
    recipe = preresnet.recipe(DIGITS)
    words = ",".join(map(str, rates))
    return of_sweep(
        DIGITS, recipe, (f"schedule.lr={words}", *TINY, f"schedule.steps={steps}", "schedule.warmup_steps=0")
    )


def test_a_study_that_another_command_works_at_is_refused(tmp_path: Path, here: None) -> None:
    reproduce(plan(0.1, 0.2), 1, Execution(tmp_path / "study"))
    with (
        FileLock(tmp_path / "study" / ".locks" / "study.lock"),
        pytest.raises(ValueError, match="another command works"),
    ):
        reproduce(plan(0.1, 0.2), 1, Execution(tmp_path / "study"))


@contextmanager
def held_elsewhere(run: Path) -> Iterator[None]:
    """Somebody else trains in a folder: locks are kept apart by thread, too."""
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with folder.hold(run):
            holding.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_run_has_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second, a study or `train`, waits, then finds it done; or gives up without touching it."""
    monkeypatch.setattr("preresnet.study.runs.LOCK_WAIT_S", 0.1)
    out, jobs = tmp_path / "study", list[Job]()
    monkeypatch.setattr(executors, "local", lambda given, *_: jobs.extend(given) or 0)
    reproduce(plan(0.1, 0.2), 1, Execution(out))
    job = jobs[0]
    words = f"{job.request.out} is in use: process {os.getpid()} on "
    with held_elsewhere(job.request.out):
        outcome = work(job)
        with pytest.raises(UserError, match=re.escape(words)):
            trainer.train(job.request)
        assert not (job.request.out / "recipe.json").exists()
    assert outcome.status == "failed"
    assert outcome.message.startswith(words)
    assert [work(job).status for _ in range(2)] == ["done"] * 2
    assert history(out, "schedule.lr=0.1-seed0") == ["start at step 0", "done"]


def test_a_folder_that_a_worker_cannot_see_is_named(
    tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(executors, "local", lambda given, *_: jobs.extend(given) or 0)
    reproduce(plan(0.1, 0.2), 1, Execution(tmp_path / "study"))
    outcome = work(replace(jobs[0], study=tmp_path / "elsewhere"))
    assert outcome.status == "failed"
    assert "share" in outcome.message
    assert not (tmp_path / "elsewhere").exists()


def test_what_lies_in_the_way_is_kept_and_named(tmp_path: Path, here: None) -> None:
    out = tmp_path / "study"
    found = reproduce(plan(0.1, 0.2), 1, Execution(out))
    assert found.rows[0].runs[0].status == "done"
    before = stamps(out / "schedule.lr=0.1" / "seed0")
    changed = plan(0.1, 0.2, steps=4)
    found = reproduce(replace(changed, title=found.title), 1, Execution(out))
    (run,) = found.rows[0].runs
    assert (run.status, run.error_pct) == ("failed", None)
    assert "holds another run" in run.message
    assert before == stamps(out / "schedule.lr=0.1" / "seed0")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no study"):
        reproduce(plan(0.1, 0.2), 1, Execution(tmp_path / "thesis"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"recipe": 3, "network": {}, "seed": 0}'])
def test_a_damaged_result_of_a_run_is_named(tmp_path: Path, job: Job, content: str) -> None:
    job.request.out.mkdir(parents=True, exist_ok=True)
    (job.request.out / "result.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(str(job.request.out / "result.json"))):
        kept(job.request)


def test_a_dry_run_lists_runs_and_their_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["reproduce", "table3", "--rows", "*1layer", "resnet110-preact", "--scale", "steps=2000,batch=16,depth=20"]
    assert main([*given, "--seeds", "2", "--dry-run", "--json", "--out", str(tmp_path / "study")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "study").exists()
    assert len(found["runs"]) == 6
    for run in found["runs"]:
        assert run["images"] == 2_000 * 16
        assert run["hours"] > 0
        assert run["multiply_adds"] > 40e6  # 40.6 million at 20 layers
    assert found["images"] == 6 * 2_000 * 16
    assert found["hours"] == pytest.approx(sum(run["hours"] for run in found["runs"]), abs=1e-3)
    assert main(["sweep", DIGITS, "--vary", "lr=0.1,0.2", *[w for v in TINY for w in ("--vary", v)], "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "schedule.lr = 0.2" in said
    assert "timed steps of two shallow networks" in said


def test_a_dry_run_of_table_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["reproduce", "table5", "--rows", "resnet152-original", "--seeds", "1"]
    assert main([*given, "--dry-run", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["row"] for run in runs] == ["imagenet-resnet152-original-crop224", "imagenet-resnet152-original"]
    assert [run["folder"] for run in runs] == ["imagenet-resnet152-original/seed0"] * 2
    assert [run["images"] for run in runs] == [90 * 5_005 * 256, 0]  # tested twice, trained once
    assert main([*given, "--out", str(tmp_path / "study")]) == 2
    assert "imagenet is not downloaded; give the folder that holds train/ and val/" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["reproduce", "table1"], "--out"),
        (["reproduce", "table1", "--out", "{new}", "--rows", "nothing"], "no row 'nothing'"),
        (["reproduce", "table1", "--out", "{new}", "--scale", "epochs=3"], "steps=2000"),
        (["reproduce", "table1", "--out", "{new}", "--data-root", "{new}"], "cifar-10-batches-py"),
        (["reproduce", "table1", "--out", "{new}", "--seeds", "0"], "--seeds 0"),
        (["reproduce", "table1", "--dry-run", "--seeds", "0"], "--seeds 0"),
        (["reproduce", "table1", "--out", "{new}", "--jobs", "0"], "--jobs 0"),
        (["reproduce", "table1", "--out", "{new}", "--probe-every", "0"], "probe-every 0"),
        (["reproduce", "table3", "--out", "{new}", "--scale", "depth=20"], "the same network"),
        (["sweep", DIGITS, "--out", "{new}"], "--vary"),
        (["sweep", DIGITS, "--out", "{new}", "--vary", "network=resnet9-preact"], "6n+2"),
        (["sweep", DIGITS, "--out", "{new}", "--vary", "lr=0.1", "--device", "tpu"], "no device 'tpu'"),
        (["sweep", "digits/resnet20-preac", "--out", "{new}", "--vary", "lr=0.1"], "did you mean"),
    ],
)
def test_bad_input_is_one_message(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    assert main([word.replace("{new}", str(new)) for word in given]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not new.exists()


def test_a_study_is_read_under_its_lock(tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that ends between the start of another and its lock leaves rows that the other keeps."""
    out, loaded = tmp_path / "study", sets.load

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(sets, "load", loaded)
        reproduce(plan(0.3, 0.4), 1, Execution(out))
        return loaded(*given)

    monkeypatch.setattr(sets, "load", meanwhile)
    found = reproduce(plan(0.1, 0.2), 1, Execution(out))
    assert sorted(row.label for row in found.rows) == [f"schedule.lr = {rate}" for rate in (0.1, 0.2, 0.3, 0.4)]
    assert statuses(out) == ["done"] * 4


def test_a_stopped_run_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped_in_the_last(jobs: Sequence[Job], parallel: int, report: Any, tick: Any) -> int:
        for job in jobs[:-1]:
            report(job, work(job))
        report(jobs[-1], Outcome("stopped", message="stopped at step 1"))
        return signal.SIGINT

    monkeypatch.setattr(executors, "local", stopped_in_the_last)
    given = ["sweep", DIGITS, "--out", str(tmp_path / "study"), *tiny("0.1,0.2", 3)]
    assert main(given) == 130
    said = capsys.readouterr().err
    assert "1/2  schedule.lr=0.2 seed 0: stopped, stopped at step 1" in said
    assert "2/2" not in said
    assert statuses(tmp_path / "study") == ["done", "waiting"]


def test_a_signal_after_the_last_run_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(executors, "local", lambda *given: in_this_process(*given) or signal.SIGINT)
    assert main(["sweep", DIGITS, "--out", str(tmp_path / "study"), *tiny("0.1,0.2", 3)]) == 0
    said = capsys.readouterr()
    assert "2/2" in said.err
    assert "stopped" not in said.err
    assert "next     preresnet report" in said.out


def test_runs_are_spread_over_the_gpus_of_a_machine(tmp_path: Path) -> None:
    job = Job("row", Request(preresnet.recipe("digits/resnet20-preact"), tmp_path / "row"), tmp_path)
    busy: list[str] = []
    for _ in range(5):
        busy.append(executors.placed(job, busy, gpus=2).request.device)
    assert busy == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert executors.placed(job, ["cuda:0", "cuda:0", "cuda:1"], gpus=2).request.device == "cuda:1"
    assert executors.placed(job, [], gpus=1) == job  # any one
    asked = replace(job, request=replace(job.request, device="cuda:1"))
    assert executors.placed(asked, ["cuda:1"], gpus=2) == asked
