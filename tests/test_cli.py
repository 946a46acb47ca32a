import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from preresnet.cli import entry, main, networks

TINY = [
    *("--network", "resnet8-preact", "--data.image-size", "8", "--precision", "float32", "--global-batch", "16"),
    *("--schedule.steps", "12", "--schedule.warmup-steps", "2"),
    *("--log-every", "4", "--eval-every", "12", "--save-every", "12"),
]


def call(*arguments: str) -> int:
    """The exit code, also where the argument parser ends the program."""
    try:
        return main(list(arguments))
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert call("train", "digits/resnet20-preact", "--out", str(folder), *TINY) == 0
    return folder


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "preresnet", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == "0.1.0"


@pytest.mark.parametrize(
    ("arguments", "code", "heavy"),
    [
        (["--help"], 0, ("torch", "tyro", "rich")),
        (["trian"], 2, ("torch", "tyro", "rich")),
        (["list", "recipes", "--json"], 0, ("torch",)),
        (["describe", "resnet164-preakt"], 2, ("torch",)),
        (["train", "cifar10/resnet110-preac", "--out", "never"], 2, ("torch",)),
        (["bench", "--help"], 0, ("torch",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_needs_no_network_is_answered_without_torch(
    arguments: list[str], code: int, heavy: tuple[str, ...]
) -> None:
    script = (
        "import sys; from preresnet.cli import main\n"
        f"try: code = main({arguments})\n"
        "except SystemExit as exit: code = exit.code or 0\n"
        f"print(code, [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{code} []", done.stderr


def test_help_says_of_each_command_what_the_command_says() -> None:
    for module, kind, words in entry.COMMANDS.values():
        told = getattr(importlib.import_module(f"preresnet.cli.{module}"), kind).__doc__
        assert told.splitlines()[0] == words


def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for error in (ValueError("ours"), OSError(28, "No space left on device"), FileNotFoundError(2, "gone", "/ours")):

        def fail(self: networks.List, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(networks.List, "run", fail)
        with pytest.raises(type(error)):
            call("list", "models")


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert call("train", "digits/resnet20-preact", "--out", str(tmp_path / "file" / "run"), *TINY) == 2
    assert call("bench", "resnet8-preact", "--batch", "2", "--out", str(tmp_path / "file" / "b.json")) == 2
    said = capsys.readouterr().err
    assert said.count(str(tmp_path / "file")) == 2


def test_lists_have_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "recipes", "--json") == 0
    names = {entry["name"] for entry in json.loads(capsys.readouterr().out)}
    assert {"cifar10/resnet110-preact", "cifar10/resnet20-preact-quick", "digits/resnet20-preact"} <= names


def test_lists_as_tables_cut_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "models") == 0
    assert "resnet110-original-exclusive-gate-10" in capsys.readouterr().out
    assert call("list", "recipes") == 0
    out = capsys.readouterr().out
    assert "Table 1: fail" in out
    assert "Table 2: 5.46 %" in out


def test_describe_as_json_holds_exact_counts_and_a_spec_that_describes_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("describe", "resnet164-preact", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 1_703_258
    assert found["multiply_adds"] == 244_500_992
    assert sum(part["parameters"] for part in found["parts"]) == found["parameters"]
    (tmp_path / "net.json").write_text(json.dumps(found))
    assert call("describe", str(tmp_path / "net.json"), "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "name": ""} == {**found, "name": ""}


def test_describe_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("describe", "resnet18-preact", "--num-classes", "7") == 0
    out = capsys.readouterr().out
    assert "3x224x224" in out
    assert "stage 4" in out
    assert "512x7x7" in out


def test_evaluate_counts_every_test_image(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", str(run), "--json", "--precision", "float32") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_images"] == 360
    assert found["error_pct"] == json.loads((run / "result.json").read_text())["error_pct"]
    assert np.sum(found["confusion"]) == 360
    assert found == json.loads((run / "evaluation.json").read_text())
    assert call("evaluate", str(run / "weights.safetensors")) == 0
    out = capsys.readouterr().out
    assert "Confusion matrix" in out
    assert "calibration error" in out


def test_evaluate_of_a_holdout_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "run")
    assert call("train", "digits/resnet20-preact", "--out", folder, "--holdout", "50", *TINY) == 0
    assert "holdout error" in capsys.readouterr().out
    assert call("evaluate", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 50
    assert call("evaluate", folder, "--json", "--split", "test") == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 360


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One picture, 50 wide and 40 high, in several formats and pixel types."""
    folder = tmp_path_factory.mktemp("pictures")
    grey = np.linspace(0, 255, 40 * 50).reshape(40, 50).astype(np.uint8)
    image = Image.fromarray(grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    made = {
        "grey.png": image,
        "colour.jpg": image.convert("RGB"),
        "clear.png": image.convert("RGBA"),
        "palette.gif": image.convert("P"),
        "deep.png": deep,
        "x.bmp": image,
        "x.webp": image.convert("RGB"),
        "x.tiff": image,
    }
    for name, one in made.items():
        one.save(folder / name)
    return [folder / name for name in made]


def test_predict_reads_every_common_format_alike(
    run: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", str(run), *map(str, pictures), "--json", "--precision", "float32") == 0
    answers = json.loads(capsys.readouterr().out)["images"]
    assert [answer["image"] for answer in answers] == [str(path) for path in pictures]
    for answer in answers:
        probabilities = [entry["probability"] for entry in answer["top"]]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert probabilities == pytest.approx([entry["probability"] for entry in answers[0]["top"]], abs=0.03)


def test_a_broken_image_is_named_and_the_others_answered(
    run: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.jpg").write_text("not an image")
    (tmp_path / "half.png").write_bytes(pictures[0].read_bytes()[:200])
    files = [pictures[0], tmp_path / "notes.jpg", tmp_path / "half.png", tmp_path / "absent.png", pictures[1]]
    assert call("predict", str(run), *map(str, files)) == 2
    said = capsys.readouterr()
    assert said.out.count("png") + said.out.count("colour.jpg") == 2
    for name in ("notes.jpg", "half.png", "absent.png"):
        assert name in said.err
        assert name not in said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "cifar10/resnet110-preac", "--out", "{new}"], ["did you mean 'cifar10/resnet110-preact'"]),
        (["train", "digits/resnet20-preact"], ["--out"]),
        (["train", "digits/resnet20-preact", "--out", "{new}", "--global-bach", "3"], ["--global-batch"]),
        (["train", "digits/resnet20-preact", "--out", "{new}", "--data.pad", "-3"], ["pad=-3"]),
        (["train", "digits/resnet20-preact", "--out", "{new}", "--device", "tpu"], ["no device 'tpu'", "cpu"]),
        (["train", "digits/resnet20-preact", "--out", "{new}", "--device", "meta"], ["device 'meta'", "cpu"]),
        (["train", "digits/resnet20-preact", "--out", "x" * 300], ["x" * 300, "another"]),
        (["train", "digits/resnet20-preact", "--out", "{new}", "--network", "resnet21-preact"], ["6n+2", "20", "26"]),
        (["train", "cifar10/resnet20-preact", "--out", "{new}", "--data-root", "{new}"], ["cifar-10-batches-py"]),
        (["train", "{file}", "--out", "{new}"], ["schedule.steps", "shoe_size"]),
        (["train", "absent.json", "--out", "{new}"], ["absent.json"]),
        (["train", "digits/resnet20-preact", "--out", "{new}", "--seed", "-1"], ["seed -1", "0 or more"]),
        (["train", "digits/resnet20-preact", "--out", "{new}", "--seed", "9" * 20], ["below 2**63"]),
        (["train", "digits/resnet20-preact", "--out", "{new}", "--workers", "-1"], ["workers -1", "0 or more"]),
        (["probe", "resnet20-preact", "--out", "{new}", "--seed", "-1"], ["seed -1", "0 or more"]),
        (["describe", "resnet164-preakt"], ["did you mean 'resnet164-preact'"]),
        (["describe", "resnet20-preact", "--num-classes", "0"], ["num_classes=0"]),
        (["evaluate", "{new}"], ["no weights at"]),
        (["evaluate", "{run}", "--split", "holdout"], ["held out no images"]),
        (["predict", "{run}"], ["no image given"]),
        (["list", "modles"], ["models"]),
        (["trian"], ["train"]),
        ([], ["train"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], words: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text(
        json.dumps({"base": "digits/resnet20-preact", "schedule": {"steps": "many"}, "shoe_size": 44})
    )
    places = {"{new}": str(tmp_path / "new"), "{file}": str(tmp_path / "bad.json"), "{run}": str(run)}
    assert call(*(places.get(argument, argument) for argument in arguments)) == 2
    said = capsys.readouterr()
    text = said.out + said.err
    assert all(word in text for word in words), text
    assert "Traceback" not in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", ""),
        ("run.json", "[]"),
        ("recipe.json", "{"),
        ("recipe.json", "{}"),
        ("network.json", "3"),
        ("checkpoint.pt", {"progress": {"steps": 3}}),
        ("checkpoint.pt", {"progress": None}),
        ("checkpoint.pt", {"optimizer": {}}),
    ],
    ids=str,
)
def test_a_damaged_file_of_a_run_is_named(
    file: str, content: str | dict[str, Any], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "run" / file
    shutil.copytree(run, damaged.parent)
    if isinstance(content, str):
        damaged.write_text(content)
    else:
        torch.save(torch.load(damaged, weights_only=True) | content, damaged)
    assert call("train", "digits/resnet20-preact", "--out", str(damaged.parent), "--resume", *TINY) == 2
    assert str(damaged) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes", "["),
        ("classes", "3"),
        ("classes", '["a", "b"]'),
        ("normalisation", ""),
        ("normalisation", '{"mean": [0.5]}'),
        ("normalisation", '{"mean": "a", "std": "b"}'),
        ("data", "{}"),
        ("network", "{}"),
    ],
)
def test_damaged_words_beside_the_weights_name_the_file(
    name: str, text: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "weights.safetensors"
    with safe_open(run / "weights.safetensors", framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
        save_file(tensors, damaged, opened.metadata() | {name: text})
    assert call("evaluate", str(damaged)) == 2
    assert str(damaged) in capsys.readouterr().err


@pytest.mark.parametrize("first", [["--seed", "5"], ["--resume"], ["--optim.no-nesterov"], ["--seed=5", "--resume"]])
def test_the_recipe_may_come_after_options(first: list[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert call("train", *first, *out, "cifar10/resnet20-preact", "--data-root", str(tmp_path / "none")) == 2
    assert call("train", *first, *out, "digits/resnet20-preact", *TINY, "--schedule.steps", "1") == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["data"]["name"] == "digits"


def test_a_recipe_file_changes_a_named_recipe(tmp_path: Path) -> None:
    content = {
        "base": "digits/resnet20-preact",
        "network": "resnet8-preact",
        "schedule": {"steps": 3, "warmup_steps": 1},
    }
    (tmp_path / "mine.json").write_text(json.dumps(content))
    more = ["--data.image-size", "8", "--precision", "float32"]
    assert call("train", str(tmp_path / "mine.json"), "--out", str(tmp_path / "run"), *more) == 0
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert stored["schedule"] == {**stored["schedule"], "steps": 3, "warmup_steps": 1, "lr": 0.2}
    assert stored["data"]["image_size"] == 8
    whole = str(tmp_path / "run" / "recipe.json")
    assert call("train", whole, "--out", str(tmp_path / "again"), "--precision", "float32") == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "again")]
    assert results[0]["loss"] == results[1]["loss"]
