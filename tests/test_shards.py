"""Images in shards: what they hold is what the folder held, wherever they lie and however they are packed."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from own_photos import CLASSES, SMALL, fill, result, stopped_at
from PIL import Image

from preresnet.cli import main
from preresnet.data import leaving_out, loaders, sets, shard_index, sharding, shards, streaming
from preresnet.data.files import ImageFiles
from preresnet.recipe import Photographs
from preresnet.spec import UserError

SPEC = Photographs(name="images", image_size=32, test_crops=(40,), test_sides=(40,))


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    fill(root / "train", dict.fromkeys(CLASSES, 9))
    fill(root / "val", dict.fromkeys(CLASSES, 3), first=50)
    return root


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Path:
    """The same in shards of one megabyte at most: here, one each."""
    sharding.write(photos, tmp_path / "shards", 1, 0)
    return tmp_path / "shards"


def contents(found: Any) -> dict[str, tuple[int, bytes]]:
    """By class and name of a file, its label and its bytes."""
    assert isinstance(found, ImageFiles)
    all_of = {}
    for index, name in enumerate(found.names.tolist()):
        file = found.file(index)
        data = file.read_bytes() if isinstance(file, Path) else file.data
        all_of[name.decode()] = int(found.labels[index]), data
    return all_of


def test_shards_hold_what_the_folder_holds(photos: Path, packed: Path) -> None:
    plain, same = sets.load(SPEC, photos), sets.load(SPEC, packed)
    assert plain.classes == same.classes == CLASSES
    assert contents(plain.train) == contents(same.train)
    assert contents(plain.evaluation) == contents(same.evaluation)
    assert same.split == "test"
    assert len(contents(same.train)) == 27


def test_every_image_is_in_one_shard_of_the_size_asked_for(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", dict.fromkeys(CLASSES, 4))
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    for number in range(4):
        Image.fromarray(noise).save(root / "ant" / f"large{number}.png")  # 750 kB each
    shutil.copy(root / "ant" / "large0.png", root / "ant" / "a.b.PNG")
    shutil.copy(root / "ant" / "large1.png", root / "ant" / "a_b.png")
    made = sharding.write(root, tmp_path / "out", 1, 0)
    assert made["num_images"] == 18
    assert len(made["shards"]) >= 6
    names = []
    for shard in made["shards"]:
        with tarfile.open(tmp_path / "out" / shard) as tar:
            names += tar.getnames()
    pictures = [name for name in names if not name.endswith(".cls")]
    assert len(pictures) == len(set(pictures)) == 18
    assert {Path(name).with_suffix("") for name in pictures} == {
        Path(name[:-4]) for name in names if name.endswith(".cls")
    }
    assert (tmp_path / "out" / "classes.txt").read_text().split() == list(CLASSES)
    with pytest.raises(UserError, match="is there already"):
        sharding.write(root, tmp_path / "out", 1, 0)


def test_a_run_of_shards_goes_on_exactly(packed: Path, tmp_path: Path) -> None:
    options = ["--data-root", packed, "--schedule.steps", "8", "--save-every", "4", "--eval-every", "8"]
    options = [*map(str, options), "--global-batch", "8"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*SMALL, *options, "--out", str(whole)]) == 0
    with stopped_at(4):
        main([*SMALL, *options, "--out", str(parts)])
    assert main([*SMALL, *options, "--out", str(parts), "--resume"]) == 0
    assert result(parts)["evaluations"] == result(whole)["evaluations"]
    assert result(parts)["loss"] == result(whole)["loss"]


def test_workers_read_the_same(packed: Path) -> None:
    data = sets.load(SPEC, packed)
    seen = [
        loaders.training_batches(
            data.train, SPEC, streaming.normalisation(), 6, 0, workers=workers, classes=data.classes
        ).at(2)
        for workers in (0, 2)
    ]
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def test_a_url_is_opened_by_fsspec(
    packed: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = fsspec.filesystem("memory")
    for file in packed.iterdir():
        memory.pipe_file(f"/bucket/set/{file.name}", file.read_bytes())
    try:
        root = Path("memory://bucket/set")
        assert shards.address(root) == "memory://bucket/set"
        assert contents(sets.load(SPEC, root).train) == contents(sets.load(SPEC, photos).train)
        out = tmp_path / "run"
        assert main([*SMALL, "--data-root", "memory://bucket/set", "--epochs", "1", "--out", str(out)]) == 0
        capsys.readouterr()
        assert main(["evaluate", str(out), "--data-root", "memory://bucket/set", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["num_images"] == 9
    finally:
        memory.rm("/bucket", recursive=True)
    for address in ("memory://bucket/nothing", "nosuch://bucket/set"):
        assert main([*SMALL, "--data-root", address, "--epochs", "1", "--out", str(tmp_path / "never")]) == 2
        assert "memory://bucket/nothing" in (said := capsys.readouterr().err) or "nosuch" in said


def test_shards_without_val_are_divided_and_written_down(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", dict.fromkeys(CLASSES, 10))
    sharding.write(root, tmp_path / "shards", 1, 0)
    out = tmp_path / "run"
    assert main([*SMALL, "--data-root", str(tmp_path / "shards"), "--epochs", "1", "--out", str(out)]) == 0
    kept = leaving_out.read(out / "validation.txt")
    assert len(kept) == 6
    assert result(out)["split"] == "holdout"
    held = sets.load_tested(SPEC, tmp_path / "shards", None, out / "validation.txt")
    assert set(contents(held.evaluation)) == kept


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def jpeg(number: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 50, 3), 10 * number, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def test_labels_are_names_in_any_of_webdatasets_ways(tmp_path: Path) -> None:
    """Text, JSON, a folder; a number where no list of names is there. Names are the labels."""
    members = {
        "0.jpg": jpeg(),
        "0.cls": b"zebra\n",
        "1.jpg": jpeg(1),
        "1.json": b'{"label": "ant", "width": 50}',
        "./bee/2.jpg": jpeg(2),
        "3.seg.png": b"no image of ours",
        "4.jpg": jpeg(4),
        "4.txt": b"a long caption",
        "4.cls": b"7",
        "notes.md": b"x",
        ".hidden.jpg": b"x",
    }
    members["3.cls"] = b"ant"
    tar_of(tmp_path / "a.tar", members)
    found, images = shards.read(tmp_path, "train")
    assert found == ("7", "ant", "bee", "zebra")
    labels = {name.decode(): found[label] for name, label in zip(images.names, images.labels, strict=True)}
    assert labels == {"0.jpg": "zebra", "1.jpg": "ant", "bee/2.jpg": "bee", "3.seg.png": "ant", "4.jpg": "7"}
    assert images.left_out == {".md": 1, "hidden": 1}
    (tmp_path / "classes.txt").write_text("\n".join("abcdefgh"))
    assert "h" in shards.read(tmp_path, "train")[0]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"label 7, but classes\.txt names 2 classes"):
        shards.read(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.tar", b"no tar file at all" * 100, "is no whole tar file"),
        ("a.tar.gz", b"x", "is compressed"),
        ("a.parquet", b"PAR1 nothing", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_shard_is_refused_in_words(
    name: str, data: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    assert main([*SMALL, "--data-root", str(tmp_path / "in"), "--epochs", "1", "--out", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err


def test_a_tar_file_beside_folders_of_classes_is_none_of_it(photos: Path) -> None:
    tar_of(photos / "train.tar", {"elk/x.jpg": jpeg()})
    assert shards.find(photos) is None
    assert sets.load(SPEC, photos).classes == CLASSES


def test_validation_comes_before_test(tmp_path: Path) -> None:
    for name in ("train-0", "validation-0", "test-0"):
        tar_of(tmp_path / f"{name}.tar", {f"ant/{name}.jpg": jpeg()})
    found = shards.find(tmp_path)
    assert found is not None
    assert [Path(one).name for one in found.by_split["val"]] == ["validation-0.tar"]
    (tmp_path / "validation-0.tar").unlink()
    found = shards.find(tmp_path)
    assert found is not None
    assert [Path(one).name for one in found.by_split["val"]] == ["test-0.tar"]


def test_an_image_without_a_label_is_named(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"x.jpg": jpeg()})
    with pytest.raises(UserError, match=r"x\.jpg has no label: no x\.cls"):
        shards.read(tmp_path, "train")


def test_links_out_of_a_shard_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"ant/{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert len(shards.read(tmp_path, "train")[1]) == 0


def test_an_index_is_kept_and_made_again_where_the_shard_changed(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"ant/x.jpg": jpeg()})
    assert len(shards.read(tmp_path, "train")[1]) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_index, "_of_tar", lambda *_: pytest.fail("read again"))
        assert len(shards.read(tmp_path, "train")[1]) == 1
    tar_of(tmp_path / "a.tar", {"ant/x.jpg": jpeg(), "bee/y.jpg": jpeg(1)})
    assert shards.read(tmp_path, "train")[0] == ("ant", "bee")
    for file in (tmp_path / "cache").glob("shard-*"):
        file.write_bytes(b"damaged")
    assert shards.read(tmp_path, "train")[0] == ("ant", "bee")


def broken_shards(tmp_path: Path, split: str) -> Path:
    """Shards of 20 images, of which the fifth is cut short."""
    root = tmp_path / "in"
    root.mkdir(exist_ok=True)
    members = {f"{CLASSES[number % 3]}/{number:02d}.jpg": jpeg(number) for number in range(20)}
    members["bee/04.jpg"] = members["bee/04.jpg"][:200]
    tar_of(root / f"{split}-0.tar", members)
    return root


def test_a_broken_record_is_an_error_or_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = broken_shards(tmp_path, "train")
    fill(tmp_path / "v" / "x", {"ant": 2, "bee": 2})
    sharding.write(tmp_path / "v" / "x", tmp_path / "v" / "shards", 1, 0)
    shutil.copy(tmp_path / "v" / "shards" / "train-000000.tar", root / "val-0.tar")
    (root / "classes.txt").write_text("ant\nbee\n")
    options = [*SMALL, "--data-root", str(root), "--epochs", "2", "--out"]
    assert main([*options, str(tmp_path / "never")]) == 2
    assert "bee/04.jpg" in capsys.readouterr().err
    assert main([*options, str(tmp_path / "run"), "--data.broken", "skip"]) == 0
    assert "1 broken images were skipped: bee/04.jpg" in capsys.readouterr().err
    assert "bee/04.jpg" in result(tmp_path / "run")["skipped"][0]


def test_broken_images_to_evaluate_on_are_not_counted(tmp_path: Path) -> None:
    root = broken_shards(tmp_path, "train")
    broken_shards(tmp_path, "val")
    data = sets.load(replace(SPEC, broken="skip"), root)
    assert len(data.evaluation) == 19
    assert "1 images to evaluate on are broken and skipped: bee/04.jpg" in data.note
    assert len(sets.load_tested(replace(SPEC, broken="skip"), root).evaluation) == 19
    passes = loaders.evaluations(sets.load(SPEC, root).evaluation, SPEC, streaming.normalisation(), 0)
    with pytest.raises(UserError, match=r"bee/04\.jpg in .*cannot be read as an image"):
        list(passes[40])


@pytest.mark.parametrize("label", ["number", "name"])
def test_parquet_of_hugging_face_is_read(label: str, photos: Path, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = tmp_path / "parquet"
    (root / "data").mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    for split, file in (("train", "train-00000-of-00001"), ("val", "validation-00000-of-00001")):
        paths = sorted((photos / split).glob("*/*.jpg"))
        table = pyarrow.table(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
                "label": [CLASSES.index(path.parent.name) if label == "number" else path.parent.name for path in paths],
            }
        )
        if label == "number":
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, root / "data" / f"{file}.parquet", row_group_size=5)
    found = sets.load(SPEC, root)
    assert found.classes == CLASSES
    plain = sets.load(SPEC, photos)
    for one, other in ((found.train, plain.train), (found.evaluation, plain.evaluation)):
        assert sorted(contents(one).values()) == sorted(contents(other).values())
    bad = pyarrow.table({"text": ["a"], "label": [0]})
    (tmp_path / "bad").mkdir()
    parquet.write_table(bad, tmp_path / "bad" / "train.parquet")
    with pytest.raises(UserError, match="has no column of images"):
        sets.load(SPEC, tmp_path / "bad")


def test_our_shards_are_webdatasets(packed: Path) -> None:
    """Keys without dots, members of a key beside each other, a number in .cls: what its readers take."""
    with tarfile.open(packed / "train-000000.tar") as tar:
        names = tar.getnames()
        assert names[0::2] == [name.removesuffix(".cls") + ".jpg" for name in names[1::2]]
        assert all("." not in name.rpartition("/")[2].removesuffix(".jpg") for name in names[0::2])
        file = tar.extractfile(names[1])
        assert file is not None
        assert CLASSES[int(file.read())] == names[1].split("/")[0]


def test_the_command_writes_shards(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "shard", str(photos), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "shards": ["train-000000.tar", "val-000000.tar"],
        "num_images": 36,
        "classes": list(CLASSES),
    }
    assert main(["data", "shard", str(photos), str(out)]) == 2
    assert main(["data", "shard", str(photos), str(tmp_path / "x"), "--megabytes", "0"]) == 2
    assert main(["data", "suspects", str(out), "--out", str(tmp_path / "s")]) == 2
    assert "holds shards" in capsys.readouterr().err
