"""Labels that are probably wrong, what a report shows of images, and the statistics behind both."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from own_photos import CLASSES, SMALL, fill, picture
from scipy import stats

from preresnet import inference
from preresnet.cli import main
from preresnet.data.image_set import ImageSet
from preresnet.study import suspects
from preresnet.train import length, trainer


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(length, "_seconds", lambda run, budget: (2.0, 1.0))  # as many steps on any machine, about


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 30, of which two images lie in the wrong folder, one is broken and one is there twice."""
    root = fill(tmp_path / "photos", dict.fromkeys(CLASSES, 30))
    picture("cow", 90).save(root / "ant" / "wrong.jpg", quality=92)
    picture("ant", 91).save(root / "bee" / "wrong too.jpg", quality=92)
    (root / "bee" / "half.jpg").write_bytes((root / "bee" / "1.jpg").read_bytes()[:400])
    (root / "cow" / "again.jpg").write_bytes((root / "cow" / "1.jpg").read_bytes())
    return root


def asked(photos: Path, out: Path, *more: str) -> list[str]:
    options = ["--recipe", "images/resnet8-preact", "--folds", "3", "--minutes", "5", "--workers", "0"]
    return ["data", "suspects", str(photos), "--out", str(out), *options, *more]


def test_wrong_labels_come_first_and_every_image_once(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(asked(photos, out, "--json")) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "1 files are no whole images and are not judged" in said.err
    names = [one["file"] for one in found["suspects"]]
    assert sorted(names) == sorted(
        str(path.relative_to(photos)) for path in photos.glob("*/*.jpg") if path.name != "half.jpg"
    )
    assert set(names[:2]) == {"ant/wrong.jpg", "bee/wrong too.jpg"}
    first = {one["file"]: one for one in found["suspects"][:2]}
    assert first["ant/wrong.jpg"]["label"] == "ant"
    assert first["ant/wrong.jpg"]["answer"] == "cow"
    assert all(one["probably_wrong"] for one in first.values())
    scores = [one["score"] for one in found["suspects"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] <= 1
    assert json.loads((out / "suspects.json").read_text())["suspects"] == found["suspects"]
    plan = json.loads((out / "folds.json").read_text())["images"]
    assert plan["cow/1.jpg"] == plan["cow/again.jpg"]
    # Again: nothing is trained, and the answer is the same.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train", lambda *_, **__: pytest.fail("trained again"))
        assert main(asked(photos, out)) == 0
    said = capsys.readouterr()
    assert "ant/wrong.jpg" in said.out
    assert f"all      {out / 'suspects.json'}" in said.out
    # Other images: another folder is asked for.
    (photos / "cow" / "2.jpg").unlink()
    assert main(asked(photos, out)) == 2
    assert "judges something else (images differ)" in capsys.readouterr().err


def test_a_stopped_search_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length, "_seconds", lambda run, budget: (20.0, 1.0))
    out, trained = tmp_path / "out", []

    class StopError(Exception):
        pass

    def stopping(request: Any, watch: Any = None, data: ImageSet | None = None) -> Any:
        if len(trained) == 1:
            raise StopError
        trained.append(request.out.name)
        return train(request, watch, data)

    train = trainer.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train", stopping)
        with pytest.raises(StopError):
            main(asked(photos, out))
    assert trained == ["fold0"]
    steps = json.loads((out / "fold0" / "recipe.json").read_text())["schedule"]["steps"]
    kept = (out / "fold0" / "weights.safetensors").stat().st_mtime_ns
    assert main(asked(photos, out)) == 0
    assert (out / "fold0" / "weights.safetensors").stat().st_mtime_ns == kept
    assert json.loads((out / "fold2" / "recipe.json").read_text())["schedule"]["steps"] == steps


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds", "1"], "--folds 1; it must be 2 or more"),
        (["--folds", "200"], "there are 93 images; give fewer folds"),
        (["--recipe", "cifar10/resnet20-preact"], "give one of those for photographs"),
        (["--minutes", "0"], "--minutes 0.0; it must be above 0"),
    ],
)
def test_bad_input_is_refused(
    options: list[str], words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*asked(photos, tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(asked(photos, tmp_path / "out")) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_train_and_val_are_judged_together(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    fill(root / "train", dict.fromkeys(CLASSES, 6))
    fill(root / "val", dict.fromkeys(CLASSES, 3), first=50)
    classes, images, groups = suspects._read(suspects.Asked(root, tmp_path / "out"), lambda line: None)
    assert classes == CLASSES
    assert len(images) == len(groups) == 27
    assert images.path(0).is_file()
    assert images.path(26) == root / "val" / "cow" / "52.jpg"


# The statistics.


@pytest.mark.parametrize(("wrong", "images"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 500)])
def test_intervals_are_wilsons(wrong: int, images: int) -> None:
    expected = stats.binomtest(wrong, images).proportion_ci(0.95, method="wilson")
    assert inference.interval_pct(wrong, images) == pytest.approx([100 * expected.low, 100 * expected.high], abs=1e-4)


def test_a_temperature_is_found_again() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(20_000, 6, dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert inference.temperature(3.0 * logits, labels) == pytest.approx(3, rel=0.03)
    report = inference.full_report(3.0 * logits, labels, "abcdef")["calibration"]
    assert report["temperature"] == pytest.approx(3, rel=0.03)
    assert report["scaled_ece_pct"] < 1 < report["ece_pct"]
    assert "temperature" not in inference.full_report(logits[:20], labels[:20], "abcdef")["calibration"]


def test_doubts_are_those_of_confident_learning() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.45, 0.55], [0.1, 0.9], [0.97, 0.03]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    score, doubted = inference.doubts(probabilities.double(), labels)
    # usual: (0.9 + 0.7 + 0.2 + 0.45) / 4 = 0.5625 of class 0, (0.9 + 0.03) / 2 = 0.465 of class 1
    assert doubted.tolist() == [False, False, True, True, False, True]
    assert score.tolist() == pytest.approx([0.1, 0.3, 0.8, 0.55, 0.1, 0.97])
    # Where a class is usually surer than 0.9, that much is enough.
    sure = torch.tensor([[0.99, 0.01], [0.98, 0.02], [0.01, 0.99], [0.92, 0.08], [0.01, 0.99]], dtype=torch.float64)
    assert inference.doubts(sure, torch.tensor([0, 0, 1, 1, 1]))[1].tolist() == [False, False, False, True, False]
    # A class without images doubts nobody.
    more = torch.cat([probabilities, torch.zeros(6, 1)], 1)
    more[0] = torch.tensor([0.1, 0.1, 0.8])
    assert not inference.doubts(more.double(), labels)[1][0]


def test_a_report_names_the_surest_wrong_answers() -> None:
    output = torch.tensor([[4.0, 0, 0], [0, 9, 0], [0, 3, 0], [0, 0, 5]])
    found = inference.full_report(output, torch.tensor([0, 0, 0, 2]), CLASSES, ["a", "b", "c", "d"])
    assert [one["image"] for one in found["surest_wrong"]] == ["b", "c"]
    assert found["surest_wrong"][0] == {
        "image": "b",
        "label": "ant",
        "answer": "bee",
        "probability": round(float(output[1].double().softmax(0)[1]), 4),
    }
    many = inference.full_report(
        torch.randn(2_000, 3), torch.randint(3, (2_000,)), CLASSES, list(map(str, range(2_000)))
    )
    assert len(many["surest_wrong"]) == len(many["doubted"]) == inference.SHOWN
    assert many["num_doubted"] > inference.SHOWN


def test_a_page_shows_images_and_stays_small(photos: Path, tmp_path: Path) -> None:
    (photos / "bee" / "half.jpg").unlink()
    out = tmp_path / "run"
    options = [
        "--data-root",
        str(photos),
        "--epochs",
        "1",
        "--schedule.lr",
        "1e-9",
        "--workers",
        "0",
        "--out",
        str(out),
    ]
    assert main([*SMALL, *options]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert found["surest_wrong"]
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    for one in found["surest_wrong"]:
        assert f"labelled {one['label']}; {one['image']}" in page
    pictures = re.findall(r'<img src="(data:image/jpeg;base64,[^"]*)"[^>]*loading="lazy"', page)
    wanted = [one["image"] for key in ("surest_wrong", "doubted") for one in found[key]]
    assert len(pictures) == 2 * len(wanted)
    assert not re.search(r'(src|href)="https?:', page)
    assert len(page) < 5_000_000
    # Of any number of images, so many are shown; what is no picture is not put into the page.
    assert 2 * inference.SHOWN * 2 * 40_000 < 5_000_000
    small = json.loads((out / "thumbnails.json").read_text())
    small[wanted[0]] = ['data:image/jpeg;base64,"><script>', small[wanted[0]][1]]
    (out / "thumbnails.json").write_text(json.dumps(small))
    assert main(["report", str(out)]) == 0
    assert "<script>" not in (out / "report.html").read_text()
