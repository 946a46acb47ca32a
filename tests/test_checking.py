"""What is wrong with a folder of images, on pictures made here, and on photographs that PRERESNET_PLANTED names."""

import json
import os
import shutil
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from preresnet.cli import main
from preresnet.data import checking, copies, leaving_out, reading, scan
from preresnet.spec import UserError

BRIGHTER = [min(255, int(value * 1.12) + 4) for value in range(256)]


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "cache"))


def picture(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Soft coloured patches, as a photograph has them: different ones for every seed."""
    chance = np.random.default_rng(seed)
    small = chance.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of eight."""
    root = tmp_path / "photos"
    for number in range(16):
        folder = root / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number}.jpg", quality=92)
    return root


def problems(root: Path) -> dict[str, dict[str, str]]:
    return {one.file: one.as_dict() for one in checking.check(root).problems}


def test_a_clean_folder_has_no_problem(photos: Path) -> None:
    found = checking.check(photos)
    assert found.as_dict() == {
        "num_files": 16,
        "num_images": 16,
        "classes": {"ant": 8, "bee": 8},
        "rare": [],
        "missing": [],
        "alike": [],
        "problems": [],
    }
    assert not found.needs_a_person
    assert main(["data", "check", str(photos)]) == 0


def test_copies_of_every_kind_are_found_and_the_largest_stands_for_all(photos: Path) -> None:
    image = picture(0, (240, 180))
    ant = photos / "ant"
    image.save(ant / "0.jpg", quality=92)
    made = {
        "ant/exact.jpg": lambda path: path.write_bytes((ant / "0.jpg").read_bytes()),
        "ant/smaller.jpg": lambda path: image.resize((160, 120)).save(path, quality=90),
        "bee/saved-again.jpg": lambda path: image.save(path, quality=30),
        "ant/brighter.jpg": lambda path: image.resize((239, 179)).point(BRIGHTER * 3).save(path),
        "ant/other-format.png": lambda path: image.resize((120, 90)).save(path),
        "ant/cut.jpg": lambda path: image.crop((3, 2, 237, 178)).save(path),
    }
    for name, make in made.items():
        make(photos / name)
    found = checking.check(photos)
    copies = {one.file: one for one in found.problems if one.kind == "copy"}
    assert set(copies) - {"ant/0.jpg"} == set(made) - {"ant/exact.jpg"} | (set(copies) & {"ant/exact.jpg"})
    assert len(copies) == 6
    assert {one.of for one in copies.values()} <= {"ant/0.jpg", "ant/exact.jpg"}
    assert "in another class: one of the two labels is wrong" in copies["bee/saved-again.jpg"].why
    assert set(found.leave_out) == set(copies) | {copies["bee/saved-again.jpg"].of}


def test_pictures_that_show_nothing_are_like_no_other(photos: Path) -> None:
    for number in range(5):
        Image.new("RGB", (64, 64), (number * 40, 10, 10)).save(photos / "ant" / f"blank{number}.png")
    assert [one for one in checking.check(photos).problems if one.kind == "copy"] == []


def test_gradients_of_the_sky_are_not_each_others_copies(photos: Path) -> None:
    """Smooth pictures have nearly the same low frequencies."""
    rows = np.linspace(0, 1, 90)[:, None, None]
    for number in range(4):
        top, bottom = (np.array([60 + 20 * number, 120, 200 - 30 * number]), np.array([220, 200 - 10 * number, 180]))
        sky = (top + (bottom - top) * rows + np.zeros((90, 120, 1))).astype(np.uint8)
        scene = Image.fromarray(sky)
        scene.paste(picture(50 + number, (40, 30)), (20 * number, 40))
        scene.save(photos / "bee" / f"sky{number}.jpg")
    assert [one.as_dict() for one in checking.check(photos).problems if one.kind == "copy"] == []


def test_files_that_are_no_whole_image_are_named_with_the_reason(photos: Path) -> None:
    whole = (photos / "ant" / "0.jpg").read_bytes()
    (photos / "ant" / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    (photos / "ant" / "empty.jpg").write_bytes(b"")
    (photos / "bee" / "page.jpg").write_bytes(b"<!doctype html><title>404</title>")
    (photos / "ant" / "notes.txt").write_text("hello")
    (photos / "ant" / "._0.jpg").write_bytes(b"\0\5\26\7")
    found = problems(photos)
    assert {name: one["kind"] for name, one in found.items()} == {
        "ant/cut.jpg": "broken",
        "ant/empty.jpg": "broken",
        "bee/page.jpg": "broken",
        "ant/notes.txt": "not_image",
        "ant/._0.jpg": "not_image",
    }
    assert "truncated" in found["ant/cut.jpg"]["why"]
    assert found["ant/empty.jpg"]["why"] == "it is empty"
    assert found["bee/page.jpg"]["why"] == "it is of no known picture format"
    assert "of" not in found["ant/cut.jpg"]


def test_what_is_stored_unusually_is_named(photos: Path) -> None:
    ant, image = photos / "ant", picture(40)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(20):
        picture(100 + number).save(ant / f"more{number}.jpg")
    image.transpose(Image.Transpose.ROTATE_90).save(ant / "side.jpg", exif=exif)
    picture(41).convert("CMYK").save(ant / "print.jpg")
    ImageOps.grayscale(picture(42)).save(ant / "grey.jpg")
    picture(43).quantize().save(ant / "palette.gif")
    picture(44).save(ant / "LOUD.JPG")
    picture(45).save(ant / "liar.jpg", format="PNG")
    picture(46, (20, 300)).save(ant / "strip.jpg")
    picture(47).save(ant / "film.gif", save_all=True, append_images=[picture(48)])
    clear = picture(49)
    clear.putalpha(100)
    clear.save(ant / "clear.png")
    deep = np.asarray(ImageOps.grayscale(picture(51))).astype(np.uint16) * 257
    Image.fromarray(deep).save(ant / "deep.png")
    found = problems(photos)
    assert {name.removeprefix("ant/"): one["kind"] for name, one in found.items()} == {
        "side.jpg": "turned",
        **dict.fromkeys(
            [
                *("print.jpg", "grey.jpg", "palette.gif", "LOUD.JPG", "liar.jpg", "strip.jpg", "film.gif", "clear.png"),
                "deep.png",
            ],
            "unusual",
        ),
    }
    assert "EXIF orientation 6" in found["ant/side.jpg"]["why"]
    assert "its content is PNG, its name ends in .jpg" in found["ant/liar.jpg"]["why"]
    assert "16 bits" in found["ant/deep.png"]["why"]


def test_a_photograph_on_its_side_is_a_copy_of_itself_upright(photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(1).transpose(Image.Transpose.ROTATE_270).save(photos / "bee" / "turned.jpg", exif=exif, quality=92)
    kinds = sorted((one.file, one.kind) for one in checking.check(photos).problems)
    assert ("bee/turned.jpg", "turned") in kinds
    assert len([one for one in kinds if one[1] == "copy"]) == 1


def test_classes_that_are_rare_missing_or_alike(tmp_path: Path) -> None:
    root = tmp_path / "set"
    number = 0
    for split, sizes in (
        ("train", {"cat": 30, "dog": 30, "Dogs": 28, "owl": 3}),
        ("val", {"cat": 6, "dog": 6, "Dogs": 6}),
    ):
        for name, count in sizes.items():
            (root / split / name).mkdir(parents=True)
            for _ in range(count):
                picture(number := number + 1, (48, 40)).save(root / split / name / f"{number}.jpg")
    (root / "val" / "fox").mkdir()
    found = checking.check(root)
    assert found.classes == {"Dogs": 34, "cat": 36, "dog": 36, "fox": 0, "owl": 3}
    assert found.rare == ["fox", "owl"]
    assert found.missing == ["train/fox", "val/fox", "val/owl"]
    assert found.alike == [("Dogs", "dog")]


def test_copies_across_the_split_say_so(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "train").parent.mkdir()
    photos.rename(root / "train")
    (root / "val" / "ant").mkdir(parents=True)
    (root / "val" / "bee").mkdir()
    picture(200).save(root / "val" / "bee" / "b.jpg")
    picture(0).save(root / "val" / "ant" / "seen.jpg", quality=20)
    found = checking.check(root)
    (copy,) = found.problems
    assert (copy.kind, copy.file, copy.of) == ("copy", "val/ant/seen.jpg", "train/ant/0.jpg")
    assert "what is tested has been seen" in copy.why
    assert set(found.leave_out) == {"train/ant/0.jpg"}  # what is tested stays as it is


def test_pairs_of_like_pictures_are_kept_while_no_file_changes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copies_of(found: checking.Findings) -> set[str]:
        return {problem.file for problem in found.problems if problem.kind == "copy"}

    shutil.copy(photos / "ant" / "2.jpg", photos / "ant" / "again.jpg")
    with Image.open(photos / "ant" / "0.jpg") as image:
        image.resize((image.width // 2, image.height // 2)).save(photos / "ant" / "smaller.jpg")
    first = copies_of(checking.check(photos))
    assert {"ant/again.jpg", "ant/smaller.jpg"} <= first
    with monkeypatch.context() as patch:
        patch.setattr(copies, "_candidates", lambda hashes: pytest.fail("looked for again"))
        assert copies_of(checking.check(photos)) == first
    (photos / "ant" / "smaller.jpg").unlink()
    assert copies_of(checking.check(photos)) == first - {"ant/smaller.jpg"}


def test_only_what_has_changed_is_read_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checking.check(photos).num_read == 16
    assert checking.check(photos).num_read == 0
    (photos / "ant" / "0.jpg").unlink()
    picture(300).save(photos / "ant" / "new.jpg")
    picture(301).save(photos / "bee" / "1.jpg")
    found = checking.check(photos)
    assert (found.num_read, found.num_files, found.num_images) == (2, 16, 16)
    monkeypatch.setattr(reading, "VERSION", "another")
    assert checking.check(photos).num_read == 16


def test_a_damaged_index_is_made_anew(photos: Path, tmp_path: Path) -> None:
    checking.check(photos)
    (index,) = (tmp_path / "cache").glob("scan-*.sqlite")
    index.write_bytes(b"this is no database, and longer than its head is" * 100)
    assert checking.check(photos).num_read == 16


def test_an_index_that_cannot_be_kept_is_done_without(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "file"))
    assert checking.check(photos).num_images == 16


def test_a_scan_that_is_broken_off_keeps_what_it_had(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(done: int, total: int) -> None:
        assert total == 16
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checking.check(photos, report, workers=1)
    assert checking.check(photos).num_read == 11


def test_a_file_that_ends_its_reader_is_named_and_the_others_are_read(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a decoder does that crashes; the reader is another process, so that it is told by the environment."""
    import hostile_reader

    monkeypatch.setattr(reading, "_serve", hostile_reader.serve)
    monkeypatch.setattr(reading, "LIMIT_S", 2.0)
    (photos / "ant" / "crash.jpg").write_bytes((photos / "ant" / "0.jpg").read_bytes() + b"1")
    (photos / "ant" / "hang.jpg").write_bytes((photos / "ant" / "2.jpg").read_bytes() + b"1")
    found = checking.check(photos, workers=1)
    broken = {one.file: one.why for one in found.problems if one.kind == "broken"}
    assert set(broken) == {"ant/crash.jpg", "ant/hang.jpg"}
    assert "the decoder ended with it" in broken["ant/crash.jpg"]
    assert "was not decoded within" in broken["ant/hang.jpg"]
    assert found.num_images == 16


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_bombs_pipes_and_loops_are_broken_files(photos: Path) -> None:
    ant = photos / "ant"
    Image.new("1", (30_000, 30_000)).save(ant / "bomb.png")  # a few kilobytes that unfold to 900 million pixels
    os.mkfifo(ant / "pipe.jpg")
    (ant / "loop").symlink_to(ant)
    (ant / "nowhere.jpg").symlink_to(ant / "not-there.jpg")
    found = problems(photos)
    assert found["ant/bomb.png"]["kind"] == "broken"
    assert "pixels" in found["ant/bomb.png"]["why"]
    assert found["ant/pipe.jpg"]["kind"] == "not_image"
    assert found["ant/nowhere.jpg"]["kind"] == "not_image"
    assert len(found) == 3


def test_the_command_prints_one_object_and_writes_the_list(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "ant" / "empty [x]\n.jpg").write_bytes(b"")
    (photos / "bee" / "copy.jpg").write_bytes((photos / "bee" / "1.jpg").read_bytes())
    listed = tmp_path / "list.txt"
    assert main(["data", "check", str(photos), "--json", "--list-out", str(listed)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert Counter(one["kind"] for one in found["problems"]) == {"broken": 1, "copy": 1}
    assert leaving_out.read(listed) == {"ant/empty [x]\n.jpg", "bee/copy.jpg"}
    assert main(["data", "check", str(photos), "--list-out", str(listed)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["data", "check", str(photos)]) == 1
    said = capsys.readouterr().out
    assert "preresnet data check" in said
    assert "[x]" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "check", "nowhere"], "nowhere is not there"),
        (["data", "chek", "x"], "no command data 'chek'; there is data check"),
        (["data", "check", __file__], "is a file; give a folder of images"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_an_empty_folder_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    assert main(["data", "check", str(tmp_path / "empty")]) == 2
    assert "holds no file" in capsys.readouterr().err


def test_a_list_is_read_as_people_write_it(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\ufeff# mine\n\n  ant/1.jpg\t too dark\nbee/2 3.jpg\n", encoding="utf-8")
    assert leaving_out.read(file) == {"ant/1.jpg", "bee/2 3.jpg"}
    file.write_text('"ant/1.jpg\n')
    with pytest.raises(UserError, match="line 1"):
        leaving_out.read(file)


def test_two_checks_at_a_time_share_the_index(photos: Path) -> None:
    with scan.scan(photos) as one:
        assert checking.check(photos).num_read == 0
        assert one.num_read == 16
    assert isinstance(one.index, sqlite3.Connection)


@pytest.mark.skipif(
    "PRERESNET_PLANTED" not in os.environ, reason="PRERESNET_PLANTED names no folder with planted faults"
)
def test_planted_faults_in_real_photographs_are_found() -> None:
    root = Path(os.environ["PRERESNET_PLANTED"])
    truth = json.loads(root.with_name(root.name + ".truth.json").read_text())
    found = checking.check(root).as_dict()
    kinds = {kind: {one["file"] for one in found["problems"] if one["kind"] == kind} for kind in checking.KINDS}
    pairs = {frozenset((one["file"], one["of"])) for one in found["problems"] if one["kind"] == "copy"}
    planted = {frozenset((one["file"], one["of"])) for one in truth["copies"]}
    assert {one["file"] for one in truth["broken"]} == kinds["broken"]
    assert planted <= pairs
    assert len(pairs - planted) <= 2
    assert set(truth["turned"]) == kinds["turned"]
    assert {one["file"] for one in truth["unusual"]} <= kinds["unusual"]
    assert set(truth["not_images"]) == kinds["not_image"]
    assert found["rare"] == [truth["rare"]]
