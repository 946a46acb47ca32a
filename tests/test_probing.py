import json
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from safetensors.torch import load_file

import preresnet
from preresnet.cli import main
from preresnet.data import loaders, sets
from preresnet.data.loaders import TrainingBatches
from preresnet.pictures import canvas, depth, heatmaps
from preresnet.propagation import series, verdict
from preresnet.propagation.probe import Probe, probe
from preresnet.recipe import Recipe
from preresnet.spec import UserError
from preresnet.train import runlog, watch
from preresnet.train.folder import Request
from preresnet.train.trainer import train


def small(**changes: Any) -> Recipe:
    base = preresnet.recipe("digits/resnet20-preact")
    fields: dict[str, Any] = {
        "network": "resnet8-preact-dropout-0.5",  # dropout, so that random state matters
        "data": replace(base.data, image_size=8),
        "schedule": replace(base.schedule, steps=20, warmup_steps=4),
        "global_batch": 16,
        "precision": "float32",
        "log_every": 5,
        "eval_every": 10,
        "save_every": 7,
    }
    return replace(base, **(fields | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probed") / "run"
    train(Request(small(), folder, seed=3), series.watch(6))
    series.draw_heat_maps(folder, "a run")
    return folder


def call(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1


# --- along training ------------------------------------------------------------------------------------------------


def test_probes_do_not_change_the_run_by_a_bit(run: Path, tmp_path: Path) -> None:
    train(Request(small(), tmp_path / "alone", seed=3))
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (run, tmp_path / "alone"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    timing = {"images_per_s", "data_wait_pct"}
    lines = [
        [{key: value for key, value in line.items() if key not in timing} for line in runlog.read(folder)]
        for folder in (run, tmp_path / "alone")
    ]
    assert lines[0] == lines[1]
    assert not (tmp_path / "alone" / "probe.jsonl").exists()


def test_the_series_starts_before_the_first_step_and_ends_after_the_last(run: Path) -> None:
    lines = watch.read(run)
    assert [line["step"] for line in lines] == [0, 6, 12, 18, 20]
    assert len(lines[0]["gradient"]) == len(lines[0]["x_rms"]) + 1 == 4
    assert lines[0]["loss"] != lines[-1]["loss"]
    assert lines[0]["unmoved"] == lines[0]["scales"] > lines[-1]["unmoved"]
    with Image.open(run / "probe.png") as picture:
        assert picture.width > 400


def test_a_resumed_run_continues_its_series(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    at = TrainingBatches.at

    def stopping(self: TrainingBatches, step: int) -> Any:
        if step == 17:
            raise KeyboardInterrupt
        return at(self, step)

    monkeypatch.setattr(TrainingBatches, "at", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(Request(small(), folder, seed=3), series.watch(3))
    assert [line["step"] for line in watch.read(folder)] == [0, 3, 6, 9, 12, 15]  # saved at 14
    monkeypatch.setattr(TrainingBatches, "at", at)
    train(Request(small(), folder, seed=3, resume=True), series.watch(6))
    assert [line["step"] for line in watch.read(folder)] == [0, 3, 6, 9, 12, 18, 20]
    ends = [{key: value for key, value in watch.read(one)[-1].items() if key != "seconds"} for one in (folder, run)]
    assert ends[0] == ends[1]


def test_train_by_command_draws_the_heat_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--network", "resnet8-preact", "--data.image-size", "8", "--precision", "float32", "--global-batch", "16"]
    tiny += ["--schedule.steps", "4", "--schedule.warmup-steps", "2"]
    folder = tmp_path / "run"
    assert call("train", "digits/resnet20-preact", "--out", str(folder), "--probe-every", "2", *tiny) == 0
    assert (folder / "probe.png").is_file()
    assert [line["step"] for line in watch.read(folder)] == [0, 2, 4]
    assert "probes: 3, " in capsys.readouterr().err
    assert call("train", "digits/resnet20-preact", "--out", str(tmp_path / "b"), "--probe-every", "0", *tiny) == 2
    assert "probe-every 0; it must be 1 or more, or auto" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slow = 0.0  # more, for the first step

    def perf_counter(self) -> float:
        return self.now


def fixed_digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = small().data
    train = sets.load(data, None).train
    return loaders.fixed_batch(train, data, loaders.fit(train, data), count)


def watched(
    folder: Path, clock: Clock, cost: float, steps: int = 1000, stop: int = 1000, start: int = 0
) -> watch.Watching:
    """Steps of a second each, and probes that take ``cost`` seconds."""

    def measure(*_: object) -> dict[str, Any]:
        clock.now += cost
        return {}

    model = preresnet.create_model("resnet8-preact", in_channels=1, seed=0)
    every = watch.Watch("auto", lambda depth: 4, measure)
    found = watch.Watching(every, folder, model, fixed_digits, start=start, last=steps, trained=float(start), say=print)
    for step in range(start, stop + 1):
        if step > start or step == 0:
            clock.now += (step > 0) + clock.slow * (step == 1)
            found.look(step)
    return found


@pytest.mark.parametrize("cost", [0.01, 0.4, 3.0, 9.9])
def test_auto_keeps_probes_within_3_per_cent_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    found = watched(tmp_path, clock, cost)
    steps = [line["step"] for line in watch.read(tmp_path)]
    assert steps[0] == 0
    assert steps[-1] == 1000
    assert found.seconds == pytest.approx(cost * len(steps))
    assert found.seconds <= watch.SHARE * (1000 + found.seconds)
    affordable = int(watch.ALLOWED * 1000 / cost)
    assert min(affordable, watch.MOST_LINES + 1) - 1 <= len(steps) <= watch.MOST_LINES + 1
    gaps = [after - before for before, after in pairwise(steps)]
    assert max(gaps) <= 1.5 * min(gaps) + 10  # spread evenly


def test_auto_is_not_misled_by_slow_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.slow = 200.0  # for the first step, as where kernels are compiled
    monkeypatch.setattr(watch, "time", clock)
    found = watched(tmp_path, clock, 3.0)
    assert found.seconds <= watch.SHARE * (1200 + found.seconds)
    assert found.count >= 10


def test_auto_in_a_short_run_probes_its_start_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    watched(tmp_path, clock, 100.0)
    assert [line["step"] for line in watch.read(tmp_path)] == [0]


def test_auto_goes_on_with_what_was_spent_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    before = watched(tmp_path, clock, 3.0, stop=455)
    clock.now += 1e6  # nobody trained meanwhile
    found = watched(tmp_path, clock, 3.0, start=455)
    assert found.count > before.count > 3
    assert found.seconds == pytest.approx(3.0 * found.count)
    assert 9 <= found.count <= 10
    assert watch.read(tmp_path)[-1]["step"] == 1000


def test_a_network_that_cannot_be_measured_does_not_end_the_run(tmp_path: Path) -> None:
    said: list[str] = []

    def measure(*_: object) -> dict[str, Any]:
        raise ValueError("the loss is nan")

    model = preresnet.create_model("resnet8-preact", in_channels=1, seed=0)
    found = watch.Watching(
        watch.Watch(5, lambda depth: 4, measure),
        tmp_path,
        model,
        fixed_digits,
        start=0,
        last=10,
        trained=0.0,
        say=said.append,
    )
    for step in range(11):
        found.look(step)
    assert said == [f"step {step} was not probed: the loss is nan" for step in (0, 5, 10)]
    assert watch.read(tmp_path) == []
    series.draw_heat_maps(tmp_path, "a run")
    assert not (tmp_path / "probe.png").exists()


# --- the command ---------------------------------------------------------------------------------------------------

QUICK = ["--batch", "4", "--image-size", "8"]


def test_json_and_nothing_else_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("probe", "resnet8-preact", "--json", *QUICK) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["data"] == "noise"
    assert found["probes"]["resnet8-preact"]["images"] == 4
    assert "probing resnet8-preact" in captured.err


def test_a_table_a_folder_and_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "probe"
    arguments = ["probe", str(run), "--against", "resnet8-original", "--data", "digits", "--out", str(out)]
    assert call(*arguments, "--batch", "4", "--batches", "2") == 0
    printed = capsys.readouterr().out
    assert "the two ways to split the gradient agree" in printed
    assert re.search(r" 1 .* stages\.0\.units\.0 .*\n.* 2 .* stages\.1\.units\.0 ", printed)  # counted as in pictures
    found = json.loads((out / "probe.json").read_text())
    assert [one["images"] for one in found["probes"].values()] == [8, 8]
    assert found["versions"]["torch"] == torch.__version__
    for name in ("probe.png", "training.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 400
    assert call(*arguments) == 2
    assert "already exists and is not empty; give another --out" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a", "b"):
        shutil.copytree(run, tmp_path / place / "seed0")
    drawn: list[list[str]] = []
    monkeypatch.setattr(depth, "draw_depth", lambda probes: drawn.append(list(probes)))
    monkeypatch.setattr(heatmaps, "draw_heatmaps", lambda runs: drawn.append(list(runs)))
    monkeypatch.setattr(canvas, "encoded", lambda figure, kind, **_: b"")
    names = [str(tmp_path / place / "seed0") for place in ("a", "b")]
    assert call("probe", names[0], "--against", names[1], "--out", str(tmp_path / "out"), "--batch", "4") == 0
    assert drawn == [names, names]


def test_bad_input_of_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["resnet8-preac"], "did you mean"),
        (["resnet8-preact", "--batch", "1"], "batch 1; it must be 2 or more"),
        (["resnet8-preact", "--verdict"], "a verdict needs labelled images"),
        (["resnet8-preact", "--against", "resnet8-preact"], "the same name is given twice"),
        ([str(run), "--data", "cifar10"], "takes images of 1 channels, cifar10 has 3"),
        ([str(run / "nothing.safetensors")], "there is no run, weights file or specification"),
        ([str(run / "nothing")], "there is no run, weights file or specification"),
        ([str(run.parent)], "no weights.safetensors in"),
    ):
        assert call("probe", *arguments) == 2
        assert words in capsys.readouterr().err


def test_svg_and_other_pictures(tmp_path: Path) -> None:
    found = probe(preresnet.create_model("resnet8-plain", seed=0), torch.randn(3, 3, 8, 8)).as_dict()
    canvas.save(depth.draw_depth({"plain": found}), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().lstrip().startswith("<?xml")
    quantities: tuple[depth.Quantity, ...] = ("signal", "activation", "factor", "product", "straight", "gradient")
    canvas.save(depth.draw_lines({"plain": found}, quantities), tmp_path / "b.png")
    runs = [{"first": "stages.0.units.0", "from_first": [1e-8, 1e-7, None]}]
    canvas.save(depth.draw_pairs({"one": runs, "two": runs}), tmp_path / "d.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("a.svg", "b.png", "d.png"))
    with pytest.raises(ValueError, match=r"a picture is .png or .svg"):
        canvas.save(depth.draw_depth({"plain": found}), tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="nothing was probed in this run"):
        heatmaps.draw_heatmaps({"run": []})


def test_a_colour_means_one_thing_in_all_rows() -> None:
    found = probe(preresnet.create_model("resnet8-original", seed=0), torch.randn(3, 3, 8, 8)).as_dict()
    meanings: dict[tuple[float, ...], set[str]] = {}
    for axis in depth.draw_depth({"one": found, "two": found}).axes:
        assert axis.get_xlim() == (0.5, 4.5)  # 3 units from 1, and the end
        for line in axis.get_lines():
            if not str(line.get_label()).startswith("_"):  # boundaries of stages have no name
                thing = re.split(r"[,:]| at x| through", str(line.get_label()))[0]
                meanings.setdefault(to_rgb(line.get_color()), set()).add(thing)
    assert len(meanings) == 10
    assert all(len(things) == 1 for things in meanings.values()), meanings


# --- the verdict ---------------------------------------------------------------------------------------------------


def digits(count: int, batch: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = small().data
    loaded = sets.load(data, None)
    batches = loaders.training_batches(loaded.train, data, loaders.fit(loaded.train, data), batch, 0)
    return [batches.at(step) for step in range(count)]


def test_a_network_that_learns_digits_will_train() -> None:
    model = preresnet.create_model("resnet20-preact", in_channels=1, seed=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = verdict.judge(model, digits(verdict.STEPS))
    assert found.grade == "will train"
    assert found.sigmas > verdict.SIGMAS
    assert "it has begun to learn" in found.because
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_deep_plain_network_will_not() -> None:
    found = verdict.judge(preresnet.create_model("resnet110-plain", in_channels=1, seed=0), digits(8, 16))
    assert found.grade == "will not train"
    assert "no shortcut passes anything through 54 units" in found.because
    assert "the residual branches do not make up for it" in found.because
    assert found.product == 0
    assert found.largest_update > 1
    frozen = preresnet.create_model("resnet8-plain", in_channels=1).requires_grad_(False)
    with pytest.raises(UserError, match="all parameters are frozen; a verdict needs some"):
        verdict.judge(frozen, digits(4))
    with pytest.raises(ValueError, match="3 batches; a verdict needs 4 or more"):
        verdict.judge(preresnet.create_model("resnet8-plain", in_channels=1), digits(3))


def measured(**changes: Any) -> Probe:
    found = probe(preresnet.create_model("resnet8-original-scale-0.5-1", seed=0), torch.randn(4, 3, 8, 8))
    return replace(found, weights={"w": {"gradient": 1.0, "weight": 1.0, "ratio": 1.0}}, **changes)


def test_the_rule() -> None:
    def grade(wrong: int, rate: float = 0.01, losses: float = 2.3, straight: float = 1.0) -> str:
        found = measured()
        back = found.backward | {"straight": [straight, *found.backward["straight"][1:]], "gradient": [1.0] * 4}
        return verdict.decide(replace(found, backward=back), [losses] * 8, [wrong] * 8, rate, 100, 10).grade

    assert grade(50) == "will train"
    assert grade(90) == "will train, but worse"  # nothing learned, but nothing wrong either
    assert grade(50, rate=2.0) == "will train, but worse"
    assert grade(90, rate=2.0) == "will not train"
    assert grade(90, straight=1e-9) == "will not train"
    assert grade(50, straight=1e-9) == "will train, but worse"
    assert grade(50, losses=math.nan) == "will not train"


def test_the_gates_that_the_paper_prints_as_one_row_count_as_one() -> None:
    grades: dict[str, verdict.Grade] = dict.fromkeys(
        (f"resnet110-original-exclusive-gate-{bias}" for bias in range(6)), "will train"
    )
    grades["resnet110-original-exclusive-gate-0"] = "will not train"
    grades["resnet110-original-exclusive-gate-6"] = "will train"
    found = verdict.score(grades)["table1"]
    assert found == {"hits": 2, "networks": 7, "settings_hit": 1.17, "settings": 2}


def test_the_score_counts_what_the_paper_calls_fail() -> None:
    grades: dict[str, verdict.Grade] = {
        "resnet110-plain": "will not train",
        "resnet110-original": "will train, but worse",
        "resnet110-original-dropout-0.5": "will train",
        "resnet164-preact": "will not train",
        "resnet20-plain": "will train",
    }
    found = verdict.score(grades)
    assert found["table1"] == {"hits": 2, "networks": 3, "settings_hit": 2, "settings": 3}
    assert found["table2"] == {"hits": 1, "networks": 2, "settings_hit": 1, "settings": 2}
    assert [row["network"] for row in found["rows"] if not row["hit"]] == [
        "resnet110-original-dropout-0.5",
        "resnet164-preact",
    ]


# --- the records ---------------------------------------------------------------------------------------------------

RECORDS = Path(__file__).parents[1] / "records" / "probe"


def test_the_score_is_that_of_the_records() -> None:
    """Counted again from the records and from the rows that Table 1 marks "fail"; Table 2 has none."""
    records = {path.stem: json.loads(path.read_text()) for path in RECORDS.glob("resnet*.json")}
    gates = {f"resnet110-original-exclusive-gate-{bias}" for bias in range(6)}  # one row of the table
    failed = gates | {"resnet110-plain", "resnet110-original-scale-0.5-1", "resnet110-original-dropout-0.5"}
    score = json.loads((RECORDS / "score.json").read_text())
    hits = {}
    for table, num_rows in ((1, 16), (2, 10)):
        rows = {row["network"]: row for row in score["rows"] if row["table"] == table}
        assert len(rows) == num_rows
        for name, row in rows.items():
            assert row["verdict"] == records[name]["verdict"]["grade"]
            assert (row["paper"] == "fail") == (name in failed)
        hits[table] = {name for name, row in rows.items() if (row["verdict"] == "will not train") == (name in failed)}
        assert hits[table] == {name for name, row in rows.items() if row["hit"]}
    settings = round(len(hits[1] - gates) + len(hits[1] & gates) / 6, 2)
    assert score["table1"] == {"hits": len(hits[1]), "networks": 16, "settings_hit": settings, "settings": 11}
    assert score["table2"] == {"hits": len(hits[2]), "networks": 10, "settings_hit": len(hits[2]), "settings": 10}
    for name, record in records.items():
        assert record["command"] == f"preresnet probe {name} --data cifar10 --verdict"
        assert max(record["agreement"].values()) < 1e-4
        assert len(record["backward"]["gradient"]) == len(record["units"]) + 1


def test_half_and_half_is_half_and_one_with_a_larger_stem() -> None:
    """Why no probe can tell (0.5, 0.5), which the paper trained to 12.35 %, from (0.5, 1), which failed."""
    nets = []
    for name in ("scale-0.5-0.5", "scale-0.5-1"):
        spec = preresnet.create_model(f"resnet20-original-{name}").spec
        spec = replace(spec, dialect=replace(spec.dialect, norm_eps=1e-12))
        nets.append(preresnet.build(spec, 0).double())
    half, one = nets
    for parameter in (one.stem.norm.weight, one.stem.norm.bias):  # F normalises what it gets: F(2 x) = F(x)
        parameter.data.mul_(2)
    one.head.linear.weight.data.mul_(0.5)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(half(x), one(x), rtol=1e-6, atol=1e-8)
