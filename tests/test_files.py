"""Image files: which there are, how they are cropped, and how they are trained and tested on."""

import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

import preresnet
from preresnet import display, trained
from preresnet.cli import main
from preresnet.data import crops, files, images, loaders, sets, streaming
from preresnet.paper.networks import network
from preresnet.paper.studies import study
from preresnet.recipe import DATA_SETS, ImagesInMemory, Milestones, PaperPhotographs, Recipe
from preresnet.spec import Dialect, UserError
from preresnet.study import entries, manifest, plan
from preresnet.study.plan import run_folder
from preresnet.study.reproduce import Execution, reproduce
from preresnet.train import trainer
from preresnet.train.folder import Request

NAMES = ("ant", "bee", "cow")
SPEC = PaperPhotographs(
    name="folder",
    image_size=32,
    augment="scale",
    shorter_side=(36, 68),
    test_crops=(46, 32),
    test_sides=(46, 36),
)
ASPECT = replace(SPEC, augment="aspect")


def photo(label: int, number: int, width: int = 80, height: int = 60) -> Image.Image:
    """A colour for each class, with noise that tells images apart."""
    random = np.random.RandomState(100 * label + number)
    pixels = random.randint(0, 60, (height, width, 3)) + 120 * np.eye(3, dtype=int)[label % 3]
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                photo(label, number + 50 * (split == "val")).save(root / split / name / f"{number}.png")
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    return root


def test_the_files_of_a_folder(photos: Path) -> None:
    data = sets.load(SPEC, photos)
    assert data.classes == NAMES
    assert (len(data.train), len(data.evaluation), data.split) == (24, 12, "test")
    assert isinstance(data.train, files.ImageFiles)
    assert data.train.path(8) == photos / "train" / "bee" / "0.png"
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert sets.shape(SPEC, photos) == (3, 3)
    held = sets.load(replace(SPEC, holdout=5), photos)
    assert (len(held.train), len(held.evaluation), held.split) == (19, 5, "holdout")


def put(path: Path, label: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(label, 0, 40, 40).save(path, "PNG")


def listed(found: files.ImageFiles) -> list[str]:
    return [os.path.relpath(found.path(index), found.root) for index in range(len(found))]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Photographs in folders of folders, and what lies among them in real life."""
    root = tmp_path / "mixed"
    for split in ("train", "val"):
        for name in ("a", "b [x]\n$y$", os.fsdecode(b"c\xff")):
            for number in (2, 10):
                put(root / split / name / f"{number}.png")
    a = root / "train" / "a"
    for name in ("day2/1.PNG", "day2-b/1.png", "day2/x/1.png", "day10/1.jpg", "shots.jpg/1.png"):
        put(a / name)
    put(root / "elsewhere.png")
    put(root / "train" / "loose.png")
    (a / "linked.png").symlink_to(root / "elsewhere.png")
    put(root / "more" / "far.png")
    (a / "linked-folder").symlink_to(root / "more")
    return root


def test_folders_of_folders_are_read_as_torchvision_reads_them(mixed: Path) -> None:
    from torchvision.datasets import ImageFolder

    found, train, val = files.read("folder", mixed)
    peer = ImageFolder(str(mixed / "train"))
    assert list(found) == peer.classes
    assert [str(train.path(index)) for index in range(len(train))] == [path for path, _ in peer.samples]
    assert train.labels.tolist() == peer.targets
    assert len(train) == 13
    assert len(val) == 6
    assert np.asarray(images.open_image(train.path(12))).shape == (40, 40, 3)
    assert train.left_out == {"images in no class": 1}


def test_what_is_no_photograph_is_left_out_and_counted(mixed: Path) -> None:
    before = listed(files.read("folder", mixed)[1])
    a = mixed / "train" / "a"
    put(a / "._0.png")
    put(a / ".cache" / "0.png")
    put(a / "__MACOSX" / "0.png")
    for name in ("readme.pdf", "x.mpg", "x.h5", "x.eps", "Thumbs.db", "notes"):
        (a / name).write_bytes(b"%PDF-1.4")
    (a / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(a / "pipe.png")
    (a / "loop.png").symlink_to("loop.png")
    (a / "day2" / "up").symlink_to(a)
    (a / "day2" / "all").symlink_to(mixed / "train" / "a" / "day10")
    _, train, val = files.read("folder", mixed)
    assert listed(train) == before
    ends = dict.fromkeys((".pdf", ".mpg", ".h5", ".eps", ".db", "without an extension", "images in no class"), 1)
    assert train.left_out == ends | {"hidden": 3, "not a regular file": 3}
    assert val.left_out == {}
    assert train.take(torch.tensor([0, 1])).left_out == train.left_out


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    """Twelve folders of which each links to all: as many ways through them as there are orders of twelve."""
    for first in range(12):
        put(tmp_path / "train" / "a" / str(first) / "0.png")
        for second in range(12):
            (tmp_path / "train" / "a" / str(first) / f"to{second}").symlink_to(f"../{second}")
    assert len(files.read("folder", tmp_path, test=False)[1]) == 12


def test_val_is_not_wanted_where_nothing_of_it_is_read(mixed: Path) -> None:
    shutil.rmtree(mixed / "val")
    found, train, val = files.read("folder", mixed, test=False)
    assert (len(found), len(train), len(val)) == (3, 13, 0)
    held = sets.load(replace(SPEC, holdout=3), mixed)
    assert (len(held.train), len(held.evaluation)) == (10, 3)
    with pytest.raises(UserError, match="val is not there"):
        sets.load(SPEC, mixed)


def test_a_set_says_what_it_holds_and_what_it_left_out(photos: Path) -> None:
    train, val = photos / "train", photos / "val"
    words = f"read 24 images of 3 classes from {train} to train on, 12 from {val} to test on; left out: 1 .txt"
    assert sets.load(SPEC, photos).words() == words
    words = f"read 19 images of 3 classes from {train} to train on, 5 from {train} held out; left out: 1 .txt"
    assert sets.load(replace(SPEC, holdout=5), photos).words() == words
    words = "read 1,437 images of 10 classes to train on, 360 to test on"
    assert sets.load(ImagesInMemory(name="digits", image_size=8), None).words() == words


def composed(form: Literal["NFC", "NFD"]) -> str:
    return unicodedata.normalize(form, "caf\xe9")


def test_names_are_compared_whatever_way_their_accents_are_written(tmp_path: Path) -> None:
    """A disk of macOS keeps e and its accent apart; an archive of Linux has them as one."""
    for split, name in (("train", composed("NFC")), ("val", composed("NFD"))):
        put(tmp_path / split / name / "0.png")
        put(tmp_path / split / "cafz" / "0.png")
    found, _, val = files.read("folder", tmp_path)
    assert found == ("cafz", composed("NFC"))
    assert val.labels.tolist() == [0, 1]  # though NFD sorts the other way round
    assert listed(val) == ["cafz/0.png", composed("NFD") + "/0.png"]
    put(tmp_path / "train" / composed("NFD") / "0.png")
    with pytest.raises(UserError, match="two folders named"):
        files.read("folder", tmp_path)


def test_labels_go_by_names() -> None:
    known = ("ant", composed("NFD"), "Dog")
    assert files.labels_by_name(("Dog", composed("NFC")), known, "x").tolist() == [2, 1]
    with pytest.raises(UserError, match=r"class 'dog' of here is none of the 3 classes .*'Dog' is there"):
        files.labels_by_name(("ant", "dog"), known, "here")


def test_another_layout_is_described(tmp_path: Path) -> None:
    put(tmp_path / "ant" / "0.png")
    put(tmp_path / "bee" / "0.png")
    words = r"train is not there: .* holds ant/, bee/; .*train/CLASS/.*divide the images of each class between them"
    with pytest.raises(UserError, match=words):
        files.read("folder", tmp_path)
    shutil.move(tmp_path / "ant", tmp_path / "train" / "ant")
    shutil.move(tmp_path / "bee", tmp_path / "test" / "bee")
    with pytest.raises(UserError, match=r"val is not there: .* holds test/, train/; --data-root takes .* files$"):
        files.read("folder", tmp_path)
    put(tmp_path / "val" / "0.png")
    with pytest.raises(UserError, match=r"val has no folder in it, and 1 images \('0.png', ...\).*train/CLASS/"):
        files.read("folder", tmp_path)
    put(tmp_path / "val" / "Ant" / "0.png")
    with pytest.raises(UserError, match=r"class 'Ant' has no folder in .*train \('ant' is there\)"):
        files.read("folder", tmp_path)
    (tmp_path / "val" / "Ant").rename(tmp_path / "val" / "ant")
    (tmp_path / "train" / "ant" / "0.png").rename(tmp_path / "train" / "ant" / "0.raw")
    with pytest.raises(UserError, match=r"ant holds no image; left out: 1 \.raw; add some"):
        files.read("folder", tmp_path)
    with pytest.raises(UserError, match=r"0\.png is a file; --data-root takes a folder"):
        files.read("folder", tmp_path / "val" / "ant" / "0.png")


def test_what_is_wrong_with_a_folder_is_said(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data-root"):
        sets.load(SPEC, None)
    with pytest.raises(ValueError, match=r"train is not there.*train/CLASS/"):
        sets.load(SPEC, tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="has no folder in it"):
        sets.load(SPEC, tmp_path)
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "val" / "bee").mkdir(parents=True)
    with pytest.raises(ValueError, match="ant' has no folder in"):
        sets.load(SPEC, tmp_path)
    photo(0, 0).save(tmp_path / "train" / "ant" / "0.png")
    (tmp_path / "val" / "ant").mkdir()
    with pytest.raises(ValueError, match=r"class 'bee' has no folder in .*train"):
        sets.load(SPEC, tmp_path)
    (tmp_path / "val" / "bee").rmdir()
    with pytest.raises(ValueError, match="ant holds no image"):
        sets.load(SPEC, tmp_path)
    with pytest.raises(ValueError, match=r"3 folders of classes, imagenet has 1000; --data.name folder"):
        sets.load(replace(SPEC, name="imagenet"), photos)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pad": 4}, "pad"),
        ({"augment": "pad"}, "augment"),
        ({"normalise": "per_pixel_mean"}, "normalise"),
        ({"test_crops": ()}, r"test_crops=\(\)"),
        ({"test_crops": (32,)}, "a side for each"),
        ({"test_crops": (50, 32)}, "do not fit"),
        ({"shorter_side": (20, 40)}, "shorter_side"),
        ({"name": "cifar10"}, "'imagenet' or 'folder'"),
    ],
)
def test_fields_that_do_not_go_with_image_files(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SPEC, **change)  # type: ignore[arg-type]


def chances(count: int) -> Iterator[torch.Generator]:
    return (torch.Generator().manual_seed(seed) for seed in range(count))


def test_scale_augmentation_crops_resized_images() -> None:
    """A gradient tells where a crop was taken and how large the image was then."""
    ramp = np.tile(np.linspace(0, 255, 120).astype(np.uint8)[None, :, None], (100, 1, 3))
    image = Image.fromarray(ramp)
    sides, firsts = [], []
    for chance in chances(60):
        spec = replace(SPEC, flip=False)
        made = np.asarray(crops.augmented(image, spec, chance)).astype(int)
        assert made.shape == (32, 32, 3)
        grey = made[16, :, 0]
        slope = (grey[26] - grey[5]) / 21  # of 255 over the width of the resized image, 1.2 times its shorter side
        sides.append(255 / slope / 1.2)
        firsts.append(grey[0])
    assert 33 < min(sides) < 42  # rounding of grey values widens 36..68 a little
    assert 60 < max(sides) < 75
    assert min(firsts) < 20
    assert max(firsts) > 90


def test_aspect_augmentation_takes_parts_of_all_shapes() -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 120), np.linspace(0, 255, 120))
    image = Image.fromarray(np.stack([x, y, np.zeros_like(x)], 2).astype(np.uint8))
    shares, ratios = [], []
    for chance in chances(80):
        made = np.asarray(crops._aspect_crop(image, 32, chance)).astype(float)
        wide, high = (made[16, 27, 0] - made[16, 4, 0]) * 32 / 23, (made[27, 16, 1] - made[4, 16, 1]) * 32 / 23
        shares.append(wide * high / 255**2)
        ratios.append(wide / high)
    assert min(shares) < 0.2
    assert max(shares) > 0.8
    assert min(shares) > 0.06
    assert 0.70 < min(ratios) < 0.85
    assert 1.15 < max(ratios) < 1.42


def test_colours_move_along_the_components_of_imagenet() -> None:
    """Without jitter, every pixel of an image is moved by one colour: a sum of the three components."""
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    shifts = []
    for chance in chances(400):
        made = np.asarray(crops.augmented(grey, SPEC, chance)).astype(int) - 128
        assert (made == made[0, 0]).all()
        shifts.append(made[0, 0])
    expected = (crops.COLOUR_VECTORS * (255 * 0.1 * crops.COLOUR_VALUES) ** 2) @ crops.COLOUR_VECTORS.T
    found = np.cov(np.array(shifts).T)
    assert found == pytest.approx(expected.numpy(), rel=0.2)


def test_jitter_changes_brightness_contrast_and_saturation() -> None:
    image = photo(0, 0, 64, 64)
    means = [np.asarray(crops.augmented(image, ASPECT, chance)).mean() for chance in chances(60)]
    before = np.asarray(image).mean()
    assert min(means) < 0.75 * before
    assert max(means) > 1.25 * before


def test_the_test_crop_is_the_centre() -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[15:25, 25:35] = 255
    made = np.asarray(crops.centre(Image.fromarray(pixels), 40, 10))
    assert made.shape == (10, 10, 3)
    assert made.min() == 255
    assert crops.centre(Image.fromarray(pixels), 80, 80).size == (80, 80)


def test_batches_are_a_function_of_the_step_and_of_nothing_else(photos: Path) -> None:
    data = sets.load(SPEC, photos)
    assert isinstance(data.train, files.ImageFiles)

    def batches(seed: int, workers: int) -> loaders.Batches:
        return loaders.training_batches(data.train, SPEC, streaming.normalisation(), 10, seed, workers=workers)

    walked = batches(3, 0)
    seen = [walked.at(step) for step in range(4)]
    assert seen[0][0].shape == (10, 3, 32, 32)
    assert seen[0][0].is_contiguous(memory_format=torch.channels_last)
    jumped = batches(3, 0)
    for step in (3, 1, 2):
        x, y = jumped.at(step)
        assert torch.equal(x, seen[step][0])
        assert torch.equal(y, seen[step][1])
    with_workers = batches(3, 2)
    for step in range(3):
        assert torch.equal(with_workers.at(step)[0], seen[step][0])
    other = batches(4, 0).at(0)
    assert not torch.equal(other[0], seen[0][0])
    labels = torch.cat([y for _, y in seen])  # 40 of 24: the first 24 are each once
    assert labels[:24].sort().values.tolist() == data.train.labels.tolist()
    assert not torch.equal(seen[0][0][0], seen[1][0][0])


def test_a_broken_file_is_named(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "ant").mkdir(parents=True)
        photo(0, 0).save(tmp_path / split / "ant" / "0.png")
    (tmp_path / "train" / "ant" / "half.png").write_bytes((photos / "train" / "ant" / "0.png").read_bytes()[:500])
    data = sets.load(SPEC, tmp_path)
    assert isinstance(data.train, files.ImageFiles)
    with pytest.raises(ValueError, match=r"half\.png: cannot be read as an image .*Replace the file"):
        loaders.training_batches(data.train, SPEC, streaming.normalisation(), 4, seed=0, workers=0).at(0)


RECIPE = Recipe(
    network="resnet8-preact",
    data=SPEC,
    schedule=Milestones(steps=36, lr=0.02, milestones=(24,), warmup_steps=0),
    global_batch=12,
    log_every=4,
    eval_every=12,
    save_every=12,
)


def test_a_run_on_a_folder_learns_and_is_tested_on_both_crops(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = trainer.train(Request(RECIPE, tmp_path / "run", data_root=photos, workers=0))
    assert result["error_pct"] < 20  # three colours
    assert result["other_crops"]["32"]["error_pct"] < 20
    assert result["top5_error_pct"] == 0  # of three classes
    assert result["network"]["num_classes"] == 3
    for given, error in (([], result["error_pct"]), (["--crop", "32"], result["other_crops"]["32"]["error_pct"])):
        assert main(["evaluate", str(tmp_path / "run"), "--data-root", str(photos), "--json", *given]) == 0
        assert json.loads(capsys.readouterr().out)["error_pct"] == pytest.approx(error)
    assert main(["evaluate", str(tmp_path / "run"), "--data-root", str(photos), "--crop", "7"]) == 2
    assert "test crops are 46, 32" in capsys.readouterr().err
    new = tmp_path / "new.png"
    photo(1, 99, 300, 200).save(new)
    assert main(["predict", str(tmp_path / "run"), str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["top"][0]["class"] == "bee"


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on ant, bee and cow, which it tells apart."""
    out = tmp_path_factory.mktemp("runs") / "run"
    trainer.train(Request(RECIPE, out, data_root=photos, workers=0))
    return out


def test_a_listed_file_is_left_out_in_training_and_in_evaluation(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = with_folders(photos, tmp_path / "photos", {name: name for name in NAMES})
    (root / "train" / "ant" / "0.png").write_bytes(b"broken")
    (root / "val" / "bee" / "1.png").write_bytes(b"")
    listed = tmp_path / "list.txt"
    assert main(["data", "check", str(root), "--list-out", str(listed)]) == 1
    short = replace(RECIPE, schedule=replace(RECIPE.schedule, steps=2))
    out = tmp_path / "run"
    trainer.train(Request(short, out, data_root=root, workers=0, leave_out=listed))
    assert "23 images of 3 classes" in capsys.readouterr().err
    assert (out / "leave-out.txt").read_text() == listed.read_text()
    assert main(["evaluate", str(out), "--data-root", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 11
    with pytest.raises(UserError, match="the files that --leave-out names"):
        trainer.train(Request(short, out, data_root=root, workers=0, resume=True))
    trainer.train(Request(short, out, data_root=root, workers=0, resume=True, leave_out=listed))
    listed.write_text("ant/0.png\n")
    with pytest.raises(UserError, match=r"no file that .*list\.txt names is among the images of this run"):
        trainer.train(Request(short, tmp_path / "other", data_root=root, workers=0, leave_out=listed))


def with_folders(photos: Path, root: Path, names: dict[str, str]) -> Path:
    """The photographs of some classes, under names of their own."""
    for split in ("train", "val"):
        for name, new in names.items():
            shutil.copytree(photos / split / name, root / split / new)
    return root


def test_classes_are_found_by_name_in_evaluation(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = with_folders(photos, tmp_path / "some", {"bee": "bee", "cow": "cow"})
    assert main(["evaluate", str(run), "--data-root", str(some), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_images"] == 8
    assert found["error_pct"] < 20
    assert [(entry["name"], entry["num_images"]) for entry in found["classes"]] == [("ant", 0), ("bee", 4), ("cow", 4)]
    assert main(["evaluate", str(run), "--data-root", str(some)]) == 0
    assert main(["probe", str(run), "--data-root", str(some), "--batch", "4", "--json"]) == 0
    more = with_folders(photos, tmp_path / "more", {"ant": "ant", "bee": "bee", "cow": "cow"})
    with_folders(photos, more, {"ant": "auk", "bee": "Bee"})
    capsys.readouterr()
    for command in (["evaluate"], ["probe", "--batch", "4"]):
        assert main([*command, str(run), "--data-root", str(more)]) == 2
        said = capsys.readouterr().err
        assert "class 'Bee'" in said
        assert "none of the 3 classes that the network was trained on ('ant', 'bee', 'cow') ('bee' is there)" in said


def test_a_run_is_not_resumed_on_other_classes(photos: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    renamed = with_folders(photos, tmp_path / "renamed", {"ant": "ant", "bee": "dog", "cow": "cow"})
    fewer = with_folders(photos, tmp_path / "fewer", {"ant": "ant", "cow": "cow"})
    more = with_folders(photos, tmp_path / "more", {"ant": "ant", "bee": "bee", "cow": "cow"} | {"bee": "elk"})
    shutil.copytree(photos / "train" / "bee", more / "train" / "bee")
    shutil.copytree(photos / "val" / "bee", more / "val" / "bee")
    for root, words in ((renamed, "class 'dog' of"), (fewer, "no images of class 'bee'"), (more, "class 'elk' of")):
        with pytest.raises(UserError, match=words):
            trainer.train(Request(RECIPE, tmp_path / "run", data_root=root, workers=0, resume=True))
    same = trainer.train(Request(RECIPE, tmp_path / "run", data_root=photos, workers=0, resume=True))
    assert same["error_pct"] == json.loads((run / "result.json").read_text())["error_pct"]


def test_training_says_what_it_read(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = replace(RECIPE, schedule=Milestones(steps=1, lr=0.02, milestones=(), warmup_steps=0), global_batch=2)
    trainer.train(Request(short, tmp_path / "run", data_root=photos, workers=0))
    assert f"read 24 images of 3 classes from {photos / 'train'} to train on" in capsys.readouterr().err


def test_folders_are_predicted_and_what_is_broken_in_them_is_named(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = with_folders(photos, tmp_path / "new", {"bee": "[b]$x$"}) / "val"
    put(place / os.fsdecode(b"caf\xe9.png"), 1)
    (place / "half.png").write_bytes((photos / "val" / "bee" / "0.png").read_bytes()[:500])
    (place / "list.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    given = ["predict", str(run), str(place), str(tmp_path / "empty"), "--precision", "float32"]
    assert main([*given, "--json"]) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    names = ["[b]$x$/0.png", "[b]$x$/1.png", "[b]$x$/2.png", "[b]$x$/3.png"]
    assert [answer["image"] for answer in found["images"]] == [
        str(place / name) for name in (os.fsdecode(b"caf\xe9.png"), *names)
    ]
    assert all(answer["top"][0]["class"] == "bee" for answer in found["images"])
    assert list(found["errors"]) == [str(tmp_path / "empty"), str(place / "half.png")]
    assert f"{place}: 6 images; left out: 1 .txt" in said.err
    assert "half.png: cannot be read as an image" in said.err
    assert "empty holds no image" in said.err
    assert main(given) == 2
    assert "[b]$x$/0.png" in capsys.readouterr().out
    assert main(["predict", str(run), str(place / "[b]$x$")]) == 0


def test_predict_is_a_function_of_python_too(photos: Path, run: Path) -> None:
    paths = [photos / "val" / name / f"{number}.png" for number in range(4) for name in NAMES]
    answers, broken = trained.predict(trained.open_weights(run), [*paths[:2], photos / "absent.png", *paths[2:]])
    assert [answer["image"] for answer in answers] == [str(path) for path in paths]
    right = [answer["top"][0]["class"] == path.parent.name for answer, path in zip(answers, paths, strict=True)]
    assert sum(right) >= 10
    assert list(broken) == [str(photos / "absent.png")]


def test_the_recipe_of_table_5() -> None:
    recipe = preresnet.recipe("imagenet/resnet152-original")
    assert (recipe.global_batch, recipe.norm_batch, recipe.schedule.lr) == (256, 32, 0.1)
    epoch = recipe.schedule.steps // 90
    assert epoch == 5_005  # 1,281,167 images in batches of 256
    assert [recipe.schedule.at(step) for step in (0, 30 * epoch - 1)] == [0.1, 0.1]  # no warm-up
    assert recipe.schedule.at(30 * epoch) == pytest.approx(0.01)
    assert recipe.schedule.at(60 * epoch) == pytest.approx(0.001)
    assert recipe.data == PaperPhotographs(
        name="imagenet", image_size=224, augment="scale", shorter_side=(256, 480), test_crops=(320, 224)
    )
    dagger = preresnet.recipe("imagenet/resnet200-preact-aspect")
    assert (dagger.data, dagger.optim.nesterov) == (replace(recipe.data, augment="aspect"), True)
    assert network(dagger.network) == replace(
        network("resnet200-preact"), dialect=Dialect(dimension_change="projection", stride_position="spatial")
    )  # preresnet.lua strides in the 3x3
    with pytest.raises(ValueError, match="resnet110-preact is a network for CIFAR"):
        preresnet.recipe("imagenet/resnet110-preact")


def test_table_5_is_run_and_its_first_two_rows_test_one_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DATA_SETS, "imagenet", replace(DATA_SETS["imagenet"], classes=len(NAMES)))
    made = plan.of_paper(study("table5"), ("*152-original*",), plan.parse_scale("steps=8,batch=3,depth=18"))
    small = replace(SPEC, name="imagenet", test_crops=(320, 224), test_sides=(320, 256))
    rows = tuple(replace(row, recipe=replace(row.recipe, data=small, network="resnet18-original")) for row in made.rows)
    assert [row.crop for row in rows] == [224, None]
    assert rows[0].recipe.norm_batch == 3
    out = tmp_path / "study"
    execution = Execution(out, data_root=photos)
    waiting = entries.open_study(out, replace(made, rows=rows), [0], "")
    out.mkdir()
    manifest.write(out, waiting)
    trainer.train(Request(rows[0].recipe, run_folder(out, rows[0], 0), data_root=photos, workers=0))
    found = reproduce(replace(made, rows=rows), 1, execution)  # nothing is left to be trained
    result = json.loads((out / "imagenet-resnet18-original" / "seed0" / "result.json").read_text())
    at_224, at_320 = found.rows
    assert at_320.runs[0].error_pct == result["error_pct"]
    assert at_224.runs[0].error_pct == result["other_crops"]["224"]["error_pct"]
    assert [row.paper and row.paper.top5_error_pct for row in found.rows] == [6.7, 5.5]
    display.study(found)
    said = capsys.readouterr().out
    assert "21.30 (top-5 5.50)" in said
    assert "(top-5 0.00)" in said
