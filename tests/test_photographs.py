"""Somebody's own photographs: their division, crops, labels and rare classes, and runs of the recipes for them."""

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_photos import CLASSES, SMALL, fill, picture, result, stopped_at
from PIL import Image
from safetensors.torch import load_file

from preresnet import trained
from preresnet.cli import main
from preresnet.data import balance, crops, division, files, images, leaving_out, loaders, sets, streaming
from preresnet.data.order import ImageOrder, generator
from preresnet.data.photographs import Crops, Mixing
from preresnet.fields import with_fields
from preresnet.paper.recipes import recipe
from preresnet.recipe import Cosine, Photographs
from preresnet.spec import UserError
from preresnet.train import folder, length
from preresnet.train.run import prepare

SPEC = Photographs(name="images", image_size=32, test_crops=(40,), test_sides=(40,))


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of twelve, without val/."""
    return fill(tmp_path / "photos", dict.fromkeys(CLASSES, 12))


def run(*arguments: str | Path) -> int:
    return main([str(one) for one in arguments])


# The division.


def names(part: object, root: Path) -> list[str]:
    assert isinstance(part, files.ImageFiles)
    return part.listed(root)


def test_a_folder_without_val_is_divided_by_a_stable_rule(photos: Path, tmp_path: Path) -> None:
    data = sets.load(SPEC, photos)
    held = names(data.evaluation, photos)
    assert data.split == "holdout"
    assert Counter(one.split("/")[0] for one in held) == dict.fromkeys(CLASSES, 2)  # a fifth of twelve
    assert len(names(data.train, photos)) == 30
    assert not {*held} & {*names(data.train, photos)}
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved)
    assert names(sets.load(SPEC, moved).evaluation, moved) == held
    assert names(sets.load(replace(SPEC, split_seed=1), photos).evaluation, photos) != held
    fill(photos, {"ant": 1}, first=100)
    after = names(sets.load(SPEC, photos).evaluation, photos)
    assert len({*held} - {*after}) <= 1


def test_copies_stay_on_one_side(photos: Path) -> None:
    for number in range(12):
        original = Image.open(photos / "ant" / f"{number}.jpg")
        original.resize((32, 24)).save(photos / "ant" / f"{number}-small.jpg", quality=80)
        shutil.copy(photos / "ant" / f"{number}.jpg", photos / "bee" / f"copy-of-ant-{number}.jpg")
    data = sets.load(SPEC, photos)
    sides = [{one.split("/")[1] for one in names(part, photos)} for part in (data.train, data.evaluation)]
    for number in range(12):
        together = {f"{number}-small.jpg", f"copy-of-ant-{number}.jpg"}
        assert together <= sides[0] or together <= sides[1]


def test_what_group_by_finds_stays_together(photos: Path) -> None:
    for name in CLASSES:
        for number in range(12):
            (photos / name / f"{number}.jpg").rename(photos / name / f"film{number // 3}-{number}.jpg")
    data = sets.load(replace(SPEC, group_by=r"(\w+)/(film\d+)"), photos)
    films = [{one.rsplit("-", 1)[0] for one in names(part, photos)} for part in (data.train, data.evaluation)]
    assert not films[0] & films[1]
    assert len(films[1]) == 3
    with pytest.raises(UserError, match=r"data.group_by='patient_\\\\d\+' finds nothing"):
        sets.load(replace(SPEC, group_by=r"patient_\d+"), photos)
    with pytest.raises(UserError, match="is no regular expression"):
        with_fields(SPEC, group_by="(")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=80),
    st.floats(0.05, 0.6),
    st.integers(0, 3),
)
def test_divisions_hold_what_they_promise(drawn: list[tuple[int, int]], share: float, seed: int) -> None:
    labels = [label for label, _ in drawn]
    grouped = [f"{group}" for _, group in drawn]
    kept = division.divide(labels, grouped, share, seed)
    assert kept == sorted(set(kept))
    assert not {grouped[place] for place in kept} & {grouped[place] for place in {*range(len(labels))} - {*kept}}
    main_class = defaultdict(Counter)
    for label, group in zip(labels, grouped, strict=True):
        main_class[group][label] += 1
    by_class: defaultdict[int, set[str]] = defaultdict(set)
    for group, counts in main_class.items():
        by_class[min(counts, key=lambda label: (-counts[label], label))].add(group)
    for of_class in by_class.values():  # something of each class on both sides, where it has two groups
        inside = {grouped[place] for place in kept} & of_class
        assert (len(inside) >= 1) == (len(of_class) > 1)
        assert len(inside) < len(of_class)
    number = min(3, len(set(grouped)))
    folds = division.folds(labels, grouped, number, seed)
    assert all(len({fold for fold, other in zip(folds, grouped, strict=True) if other == one}) == 1 for one in grouped)
    assert set(folds) <= set(range(number))


def test_folds_have_alike_classes() -> None:
    labels = [place % 4 for place in range(400)]
    folds = division.folds(labels, [str(place) for place in range(400)], 5)
    assert set(Counter(zip(labels, folds, strict=True)).values()) == {20}


def test_chains_of_copies_are_one_group() -> None:
    listed = ["a", "b", "c", "d"]
    assert division.groups(listed, [("b", "c"), ("c", "a")]) == ["a", "a", "a", "d"]
    assert division.groups(listed, [("b", "gone")]) == listed


def test_a_broken_file_is_named_before_anything_is_trained(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bee" / "half.jpg").write_bytes((photos / "bee" / "0.jpg").read_bytes()[:300])
    out = tmp_path / "run"
    assert run(*SMALL, "--data-root", photos, "--epochs", "1", "--out", out) == 2
    said = capsys.readouterr().err
    assert "bee/half.jpg is no whole image" in said
    assert "--leave-out" in said
    assert not out.exists()
    listed = tmp_path / "list.txt"
    assert run("data", "check", photos, "--list-out", listed) == 1
    assert run(*SMALL, "--data-root", photos, "--epochs", "1", "--leave-out", listed, "--out", out) == 0
    assert "half.jpg" not in (out / "validation.txt").read_text()


def test_a_clean_folder_goes_through_the_three_commands(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "run"
    assert run("data", "check", photos, "--list-out", listed) == 0
    assert not leaving_out.read(listed)
    assert run(*SMALL, "--data-root", photos, "--leave-out", listed, "--epochs", "1", "--out", out) == 0
    assert run("report", out) == 0


def test_minutes_are_steps_that_were_timed(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = [*SMALL, "--data-root", photos, "--minutes", "1", "--out", out]
    monkeypatch.setattr(length, "_seconds", lambda run, budget: (2.0, 0.5))
    assert run(*options) == 0
    steps = result(out)["steps"]
    assert 10 <= steps <= 27  # 60 s, less 12 evaluations, and what was spent until here
    assert f"1 minutes are {steps} steps of 4 images" in capsys.readouterr().err
    monkeypatch.setattr(length, "_seconds", lambda run, budget: pytest.fail("timed again"))
    assert run(*options, "--resume") == 0  # with another machine's times it would be another run


def test_steps_and_evaluations_are_timed(photos: Path, tmp_path: Path) -> None:
    request = folder.Request(recipe("images/resnet8-preact"), tmp_path / "run", data_root=photos, workers=0)
    step, evaluation = length._seconds(prepare(request), 1.0)
    assert 0 < step < 60
    assert 0 < evaluation < 600


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "1", "--minutes", "1"], "--epochs and --minutes are both given"),
        (["--epochs", "1", "--schedule.steps", "5"], "schedule.steps is given, and --epochs or --minutes too"),
        (["--epochs", "-1"], "--epochs -1.0; it must be above 0"),
        (["--minutes", "0.0001"], "nothing could be trained"),
        (["--epochs", "1", "--holdout", "36"], "holdout=36, but there are 36 images"),
        (["--epochs", "1", "--data.area", "0.5", "0.2"], "area=(0.5, 0.2); it must rise"),
    ],
)
def test_wrong_options_are_refused(
    options: list[str], words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, "--data-root", photos, *options, "--out", tmp_path / "run") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_epochs_shorten_a_recipe_of_the_papers_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs", "0.05", "--network", "resnet8-preact", "--out", str(tmp_path / "run")]
    assert main(["train", "digits/resnet20-preact", *options]) == 0
    assert result(tmp_path / "run")["steps"] == round(0.05 * 1437 / 64)


@pytest.mark.parametrize("inside", ["", "val"])
def test_a_folder_without_images_is_refused_in_words(
    inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / inside).mkdir(parents=True)
    assert run(*SMALL, "--data-root", tmp_path / "photos", "--epochs", "1", "--out", tmp_path / "run") == 2
    assert "a folder of images for each class" in capsys.readouterr().err
    assert run(*SMALL, "--epochs", "1", "--out", tmp_path / "run") == 2
    assert "no images given; --data-root takes" in capsys.readouterr().err


# Crops.


def turned(tmp_path: Path, orientation: int, image: Image.Image, end: str = "jpg") -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"{orientation}.{end}"
    image.save(path, exif=exif, quality=95)  # which PNG and TIFF take no notice of
    return path


MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_predict_evaluate_and_test_crops_see_the_same(mode: str, orientation: int, tmp_path: Path) -> None:
    """One tensor for one file, whoever asks; of every mode and orientation."""
    end = "jpg" if mode in ("RGB", "L", "CMYK") else "tif" if mode == "I;16" else "png"
    image = picture("ant", 3, (90, 70))
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        stored = image.convert(mode)
    path = turned(tmp_path, orientation, stored, end)
    found = files.ImageFiles(tmp_path, np.array([path.name.encode()]), torch.tensor([0]))
    normalise = streaming.normalisation()
    asked = normalise(trained._pixels(path, SPEC).unsqueeze(0)).permute(0, 3, 1, 2)
    evaluated, _ = next(loaders.evaluations(found, SPEC, normalise, 0)[40])
    plain, _ = next(loaders.plain_batches(found, SPEC, normalise, 1, 0))
    assert torch.equal(asked, evaluated)
    assert torch.equal(asked, plain)
    assert asked.shape == (1, 3, 40, 40)
    if mode == "RGB":  # and it is upright
        upright = images.pixels(crops.centre(images.open_image(path), 40, 40)).double()
        whole = Image.open(path)
        whole = images.Image.Image.transpose(whole, images._TURNED[orientation]) if orientation > 1 else whole
        assert (upright - images.pixels(crops.centre(whole.convert("RGB"), 40, 40)).double()).abs().max() == 0


@pytest.mark.parametrize("orientation", [1, 6])
def test_training_crops_of_large_photographs_are_decoded_small(orientation: int, tmp_path: Path) -> None:
    """The crop of a JPEG that is decoded at a fraction is the crop of the whole."""
    path = turned(tmp_path, orientation, picture("bee", 1, (800, 600)))
    spec = replace(SPEC, policy="none", erasing=0.0)
    for number in range(8):
        made = Crops(spec).read(path, generator(0, "augment", number))
        same = Crops(spec).read(path, generator(0, "augment", number))
        assert torch.equal(made, same)
        assert made.shape == (32, 32, 3)
        whole = images.open_image(path)
        chance = generator(0, "augment", number)
        box = crops.aspect_box(*whole.size, spec.area, chance)
        assert box is not None
        expected = whole.resize((32, 32), Image.Resampling.BILINEAR, box=box)
        if float(torch.rand((), generator=chance)) < 0.5:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert (made.double() - images.pixels(expected).double()).abs().mean() < 2.5


def test_crops_are_a_function_of_chance_alone(photos: Path) -> None:
    path, spec = photos / "ant" / "0.jpg", replace(SPEC, erasing=1.0, policy="none")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = Crops(spec).read(path, generator(0, "augment", 1))
    assert torch.equal(torch.get_rng_state(), before)  # dropout's numbers are not touched
    torch.manual_seed(6)
    assert torch.equal(Crops(spec).read(path, generator(0, "augment", 1)), first)
    assert not torch.equal(Crops(spec).read(path, generator(0, "augment", 2)), first)
    erased = (first == torch.tensor([124, 116, 104], dtype=torch.uint8)).all(2).float().mean()
    assert 0.01 < erased < 0.5


def test_a_tiny_or_thin_image_gives_a_crop(tmp_path: Path) -> None:
    for size in ((1, 1), (300, 2), (3, 200)):
        path = tmp_path / "x.png"
        Image.new("RGB", size, (9, 9, 9)).save(path)
        assert Crops(SPEC).read(path, generator(0, "augment", 0)).shape == (32, 32, 3)


# Labels.


def test_labels_are_smoothed_mixed_and_weighted() -> None:
    x, y = torch.randn(6, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.tensor([0, 1, 2, 0, 1, 2])
    nothing = replace(SPEC, smoothing=0.0, mixed=0.0)
    assert Mixing(nothing, 3, 0)(0, x, y)[1] is y
    smoothed = Mixing(replace(nothing, smoothing=0.3), 3, 0)(0, x, y)[1]
    assert smoothed[0].tolist() == pytest.approx([0.8, 0.1, 0.1])
    weights = torch.tensor([1.0, 2.0, 0.5])
    weighted = Mixing(replace(nothing, smoothing=0.3), 3, 0, weights)(0, x, y)[1]
    assert weighted.sum(1).tolist() == pytest.approx([1, 2, 0.5, 1, 2, 0.5])
    kinds = set()
    for step in range(20):
        mixing = Mixing(replace(nothing, mixed=1.0), 3, 7)
        mixed, shares = mixing(step, x, y)
        assert torch.equal(mixing(step, x, y)[0], mixed)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert shares.sum(1).tolist() == pytest.approx([1.0] * 6)
        both = x.roll(1, 0)
        pasted = bool(((mixed == x) | (mixed == both)).all())
        share = shares[1, 1]
        if not pasted:
            torch.testing.assert_close(mixed, share * x + (1 - share) * both, atol=1e-5, rtol=1e-5)
        kinds.add(pasted)
    assert kinds == {True, False}
    assert torch.equal(Mixing(replace(nothing, mixed=0.5), 3, 7)(0, x[:1], y[:1])[0], x[:1])


def test_the_loss_of_shares_is_the_mean_of_the_losses() -> None:
    from preresnet.model.network import build
    from preresnet.paper.networks import network
    from preresnet.train.optim import build_optimizer, set_lr, update

    optim = recipe("images/resnet8-preact").optim
    x, y = torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last), torch.arange(8) % 10
    losses = []
    for target in (y, torch.nn.functional.one_hot(y, 10).float()):
        model = build(network("resnet8-preact"), 0).train()
        optimizer = build_optimizer(model, optim)
        set_lr(optimizer, 0.1)
        loss, wrong = update(model, optimizer, x, target, None, "float32")
        losses.append((loss.item(), wrong.item(), model.head.linear.weight.detach().sum().item()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Rare classes.


def test_auto_says_what_it_does_for_rare_classes() -> None:
    even, uneven = torch.tensor([0] * 10 + [1] * 8), torch.tensor([0] * 16 + [1] * 4)
    assert balance.choose(SPEC, even, CLASSES).repeats is None
    found = balance.choose(SPEC, uneven, CLASSES)
    assert found.words == (
        "classes have 4 (bee) to 16 images: balance sampling, chosen by auto; images of bee are seen 2.0 times an epoch"
    )
    assert found.repeats is not None
    assert found.repeats.tolist() == [1.0] * 16 + [2.0] * 4
    weights = balance.choose(replace(SPEC, balance="weights"), uneven, CLASSES).weights
    assert weights is not None
    assert float(weights[uneven].mean()) == pytest.approx(1)
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    none = balance.choose(replace(SPEC, balance="none"), uneven, CLASSES)
    assert none.repeats is none.weights is None


def test_repeated_images_are_seen_so_often_in_every_epoch() -> None:
    repeats = torch.tensor([1.0, 1.0, 2.5, 1.5, 1.25, 1.75])
    order = ImageOrder(6, 3, 0, repeats)
    assert order.epoch == 9
    drawn = torch.cat([order.indices(step) for step in range(3 * 400)]).view(400, 9)
    counts = torch.stack([torch.bincount(epoch, minlength=6) for epoch in drawn])
    assert (counts >= repeats.floor()).all()
    assert (counts <= repeats.ceil()).all()
    torch.testing.assert_close(counts.float().mean(0), repeats, atol=0.12, rtol=0)
    assert torch.equal(ImageOrder(6, 3, 0, repeats).indices(7), order.indices(7))


# Runs.


def test_a_folder_is_trained_on_and_evaluated_with_what_was_kept(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(*SMALL, "--data-root", photos, "--epochs", "12", "--out", out) == 0
    said = capsys.readouterr()
    assert "12 epochs of 30 images are 90 steps of 4 images" in said.err
    assert "30 images to train on: global_batch=4, schedule.lr=" in said.err
    assert "classes have 10 images: balance none, chosen by auto" in said.err
    kept = leaving_out.read(out / "validation.txt")
    assert len(kept) == 6
    found = result(out)
    assert found["split"] == "holdout"
    assert found["num_images"] == 6
    stored = json.loads((out / "evaluation.json").read_text())
    assert run("evaluate", out, "--data-root", photos, "--precision", str(found["precision"]), "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["confusion"] == stored["confusion"]
    assert again["split"] == "holdout"
    assert stored["num_copies_across"] == 0
    # The folder grows: what is evaluated stays.
    fill(photos, {"ant": 5}, first=50)
    assert run("evaluate", out, "--data-root", photos, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 6
    # The weights alone do not say what was kept.
    assert run("evaluate", out / "weights.safetensors", "--data-root", photos, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["num_images"] == 41
    assert "all images" in said.err
    # A missing one is told.
    gone = photos / next(iter(kept))
    gone.unlink()
    assert run("evaluate", out, "--data-root", photos, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["num_images"] == 5
    assert "1 of the images that the run kept for validation are not there" in said.err


def test_val_alone_is_enough_to_evaluate(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    assert run(*SMALL, "--data-root", photos, "--epochs", "2", "--out", out) == 0
    fill(other / "val", {"cow": 3, "ant": 2})  # in another order, and not all classes
    capsys.readouterr()
    assert run("evaluate", out, "--data-root", other, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["num_images"] for entry in found["classes"]] == [2, 0, 3]
    assert found["split"] == "test"
    fill(other / "val", {"ant": 1})
    (other / "val" / "dog").mkdir()
    picture("ant", 9).save(other / "val" / "dog" / "0.jpg")
    assert run("evaluate", out, "--data-root", other) == 2
    assert "class 'dog'" in capsys.readouterr().err


def test_given_val_is_what_is_tested_and_copies_across_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    fill(root / "train", dict.fromkeys(CLASSES, 8))
    fill(root / "val", dict.fromkeys(CLASSES, 2), first=20)
    shutil.copy(root / "train" / "ant" / "0.jpg", root / "val" / "ant" / "again.jpg")
    out = tmp_path / "run"
    assert run(*SMALL, "--data-root", root, "--epochs", "1", "--out", out) == 0
    assert result(out)["split"] == "test"
    assert not (out / "validation.txt").exists()
    stored = json.loads((out / "evaluation.json").read_text())
    assert stored["copies_across"] == [{"image": "val/ant/again.jpg", "of": "train/ant/0.jpg"}]
    assert run("report", out) == 0
    assert "val/ant/again.jpg of train/ant/0.jpg" in (out / "report.html").read_text()
    # With held-out images val/ is left alone, and copies stay on one side.
    held = tmp_path / "held"
    assert run(*SMALL, "--data-root", root, "--epochs", "1", "--holdout", "6", "--out", held) == 0
    assert {one.split("/")[0] for one in leaving_out.read(held / "validation.txt")} == {"train"}


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(photos: Path, tmp_path: Path) -> None:
    """Order, crops, mixing, average and division are functions of seed and step."""
    fill(photos, {"ant": 20}, first=100)  # rare classes: some images are repeated
    options = [
        "--data-root",
        photos,
        "--data.mixed",
        "0.5",
        "--average",
        "0.3",
        "--global-batch",
        "8",
        "--save-every",
        "5",
    ]
    options += ["--schedule.steps", "10", "--eval-every", "5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*SMALL, *options, "--out", whole) == 0
    with stopped_at(5):
        run(*SMALL, *options, "--out", parts)
    assert run(*SMALL, *options, "--out", parts, "--resume") == 0
    tensors = [load_file(out / "weights.safetensors") for out in (whole, parts)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert result(parts)["evaluations"] == result(whole)["evaluations"]
    assert (parts / "validation.txt").read_text() == (whole / "validation.txt").read_text()


def test_recipes_for_photographs_share_nothing_with_the_papers() -> None:
    ours = recipe("images/resnet50-preact")
    assert isinstance(ours.data, Photographs)
    assert isinstance(ours.schedule, Cosine)
    paper = recipe("imagenet/resnet50-preact")
    assert not {"policy", "mixed", "smoothing", "balance", "share"} & set(vars(paper.data))
    assert (paper.average, paper.freeze, paper.stage_rate) == (0.0, "", 1.0)
    with pytest.raises(ValueError, match="did you mean"):
        recipe("images/resnet18-pract")


def test_the_cosine_rises_and_falls() -> None:
    schedule = Cosine(steps=100, lr=0.4, warmup_steps=10)
    assert schedule.at(0) == pytest.approx(0.04)
    assert schedule.at(9) == pytest.approx(0.4)
    assert schedule.at(10) == pytest.approx(0.4)
    assert schedule.at(55) == pytest.approx(0.2)
    assert 0 < schedule.at(99) < 0.001
