"""Predictions for several devices: what they add up, what they refuse, and what the command prints."""

import json

import pytest

import preresnet
from preresnet.cli import main
from preresnet.fields import with_fields
from preresnet.paper.recipes import recipe
from preresnet.spec import UserError
from preresnet.study import cost, scaling

DIGITS = recipe("digits/resnet20-preact")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which an image takes 1 ms of training and 0.25 ms of evaluation."""
    monkeypatch.setattr(cost, "line", lambda work, device: lambda adds: (1e-3, 0.25e-3))


@pytest.mark.usefixtures("timed")
def test_a_step_is_its_share_of_images_and_what_it_waits_for() -> None:
    apart = with_fields(DIGITS, norm_batch=16)
    (row,) = scaling.predict({"digits": apart}, 4, 0.1, "cpu")["rows"]
    one, two, four = row["table"]
    assert [entry["devices"] for entry in (one, two, four)] == [1, 2, 4]
    assert one["step_s"] == pytest.approx(64e-3)
    assert one["waiting_s"] == 0
    model = preresnet.create_model("resnet20-preact", num_classes=10, in_channels=1)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())  # bytes of gradients, all in one bucket
    assert two["step_s"] == pytest.approx(32e-3 + weights / 1e8)
    assert four["step_s"] == pytest.approx(16e-3 + 1.5 * weights / 1e8)
    assert four["efficiency"] == pytest.approx(one["step_s"] / (4 * four["step_s"]), abs=1e-4)
    assert row["step_s"] == four["step_s"]
    assert row["images_per_s"] == pytest.approx(64 / four["step_s"])
    evaluated = 360 * DIGITS.schedule.steps // DIGITS.eval_every
    assert row["hours"] * 3600 == pytest.approx(
        DIGITS.schedule.steps * row["step_s"] + evaluated * 0.25e-3 / 4, rel=1e-3
    )


@pytest.mark.usefixtures("timed")
def test_norms_that_see_all_devices_wait_for_them() -> None:
    def step(norm_batch: int | None) -> float:
        (row,) = scaling.predict({"digits": with_fields(DIGITS, norm_batch=norm_batch)}, 2, 10, "cpu")["rows"]
        return row["step_s"]

    assert step(None) - step(32) == pytest.approx(2 * 19 * scaling.LATENCY_S)


def test_the_command_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits/resnet20-preact", "--devices", "2", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"step_s", "images_per_s", "peak_bytes", "hours", "assumes", "table"} <= found.keys()
    assert found["devices"] == 2
    assert 0 < found["step_s"] < 60


@pytest.mark.usefixtures("timed")
def test_the_rows_of_the_paper_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "table3", "--devices", "8", "--device", "cpu", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["recipe"] for row in rows} >= {"cifar10/resnet110-preact", "cifar100/resnet164-preact"}
    assert {row["devices"] for row in rows} == {8}
    assert main(["plan", "table3", "--devices", "8", "--device", "cpu"]) == 0
    assert "cifar10/resnet110-preact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--devices", "0"], "--devices 0; it must be 1 or more"),
        (["--devices", "2", "--link", "0"], "--link 0; it must be more than 0 GB/s"),
        (["--devices", "3"], "use 2 or 4 processes"),
    ],
)
def test_bad_input_is_one_line(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits/resnet20-preact", *given]) == 2
    assert said in capsys.readouterr().err


def test_a_batch_is_refused_before_anything_is_timed() -> None:
    told: list[str] = []
    with pytest.raises(UserError, match="equal parts"):
        scaling.predict({"digits": DIGITS}, 5, 10, "cpu", report=told.append)
    assert not told
