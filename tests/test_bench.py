"""The bench: what it measures and how it answers. No test asserts a time."""

import errno
import json
from pathlib import Path

import pytest

from preresnet.bench import measure as bench
from preresnet.cli import main

SMALL = ["resnet8-preact", "--batch", "4", "--rounds", "2", "--steps", "1", "--precision", "float32"]


def test_a_bench_measures_all_and_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed" / "small.json"
    given = [*SMALL, "--against", "eager", "limit", "--memory", "plain", "sqrt", "--out", str(out), "--json"]
    assert main(["bench", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert [(row["system"], row["mode"]) for row in found["rows"]] == [
        ("preresnet", "plain"),
        ("preresnet", "sqrt"),
        ("preresnet", "eager"),
        ("limit", "best"),
    ]
    for row in found["rows"]:
        assert row["images_per_s"] > 0
        assert row["first_step_s"] > 0
        assert row["peak_bytes"] > 0
        assert len(row["rounds"]) == 2
        assert ("predicted_bytes" in row) == (row["system"] == "preresnet")
    assert set(found["ratios"]) >= {"preresnet plain / preresnet eager", "preresnet sqrt / limit best"}
    assert main(["bench", *given]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_said_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "small.json"
    monkeypatch.setattr(Path, "write_text", full)
    assert main(["bench", *SMALL, "--against", "eager", "--out", str(out), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"][0]["images_per_s"] > 0
    assert f"{out} could not be written (No space left on device" in said.err
    assert not out.exists()


def test_inference_is_measured_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SMALL, "--inference", "--against", "eager"]) == 0
    out = capsys.readouterr().out
    assert "resnet8-preact, inference, batch 4" in out
    assert "preresnet default / preresnet eager" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["resnet20-preac"], "resnet20-preact"),
        (["resnet20-preact", "--batch", "0"], "batch 0"),
        (["resnet20-preact", "--batch", "1"], "cannot train on one image"),
        (["resnet20-preact", "--rounds", "0"], "rounds 0"),
        (["resnet20-preact", "--against", "timm"], "timm has no resnet20-preact; it is compared on resnet50-preact"),
    ],
)
def test_bad_input_is_one_line(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_system_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pytorchcv is not installed; pip install 'preresnet\[peers\]'"):
        bench.bench("resnet20-preact", 8, ("pytorchcv",))


def test_the_fastest_setting_is_the_best() -> None:
    def row(mode: str, speed: float) -> dict[str, object]:
        return {"system": "pytorchcv", "mode": mode, "images_per_s": speed, "peak_bytes": 1}

    rows = bench._name_best([row("default", 4), row("best", 2), row("compiled", 3)])
    assert [r["mode"] for r in rows] == ["default", "eager", "best"]
    rows = bench._name_best([row("default", 1), row("best", 3), row("compiled", 2), row("onnxruntime", 1)])
    assert [r["mode"] for r in rows] == ["default", "best", "compiled", "onnxruntime"]
