"""What follows a changed field of a recipe, on the command line, in a recipe file and in a sweep."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

import preresnet
from preresnet import spec
from preresnet.changes import changed, field_names, in_proportion
from preresnet.cli import entry, main, studies
from preresnet.fields import field_types, from_json, members, to_json
from preresnet.paper.networks import network
from preresnet.recipe import (
    DATA_SETS,
    SGD,
    ImagesInMemory,
    Milestones,
    Muon,
    OneCycle,
    PaperPhotographs,
    Recipe,
)
from preresnet.study import plan, sweep

CIFAR, DIGITS, PHOTOS = "cifar10/resnet20-preact", "digits/resnet20-preact", "imagenet/resnet50-preact"


def read(*arguments: str) -> Recipe:
    """The recipe that `preresnet train` would train."""
    return entry.read_command(["train", *arguments, "--out", "never"]).recipe


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command answers that it refuses."""
    try:
        code = main([*arguments])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


# --- steps ------------------------------------------------------------------------------------------------------------


def test_milestones_and_warm_up_keep_their_shares(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = Milestones(steps=640, milestones=(320, 480), warmup_steps=4)
    assert read(CIFAR, "--schedule.steps", "640").schedule == wanted
    said = capsys.readouterr().err
    assert "schedule.milestones=320 480 follows schedule.steps=640" in said
    assert "schedule.warmup_steps=4 follows schedule.steps=640" in said
    reached = {wanted.at(step) for step in range(640)}
    assert len(reached) == 3


def test_what_is_given_stays_and_what_never_comes_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--schedule.steps=640", "--schedule.milestones", "100", "700", "--schedule.warmup-steps", "0")
    assert read(CIFAR, *given).schedule == Milestones(steps=640, milestones=(100, 700), warmup_steps=0)
    said = capsys.readouterr().err
    assert "700 never comes in schedule.steps=640" in said
    assert "follows" not in said
    read(CIFAR, "--schedule.warmup-steps", "64000")
    assert "all of the 64000 steps are warm-up" in capsys.readouterr().err
    read(CIFAR, "--schedule.lr", "0.2", "--eval-every", "100000")
    assert capsys.readouterr().err == ""


def test_steps_of_a_recipe_file_and_of_a_sweep_are_followed_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = Milestones(steps=640, milestones=(320, 480), warmup_steps=4)
    (tmp_path / "short.json").write_text(json.dumps({"base": CIFAR, "schedule": {"steps": 640}}))
    assert read(str(tmp_path / "short.json")).schedule == wanted
    assert "milestones=320 480 follows" in capsys.readouterr().err
    said: list[str] = []
    made = sweep.of_sweep(CIFAR, preresnet.recipe(CIFAR), ("steps=640", "lr=0.05,0.1"), said.append)
    assert [row.recipe.schedule for row in made.rows] == [replace(wanted, lr=0.05), wanted]
    assert sum("milestones=320 480 follows" in line for line in said) == 1
    assert plan.scaled(preresnet.recipe(CIFAR), plan.Scale(steps=640)).schedule == wanted


def test_a_short_run_keeps_every_milestone() -> None:
    assert in_proportion((32_000, 48_000), 1, 64_000) == (1, 2)
    assert in_proportion(400, 1, 64_000) == 1
    assert in_proportion(0, 1, 64_000) == 0


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_a_change_of_kind_carries_over_what_both_have(capsys: pytest.CaptureFixture[str]) -> None:
    found = read(CIFAR, "--data.name", "folder", "--data.no-flip", "--holdout", "5")
    assert found.data == PaperPhotographs(
        name="folder", image_size=32, shorter_side=(37, 69), test_crops=(46, 32), test_sides=(46, 37), flip=False
    )
    said = capsys.readouterr().err
    assert "data.name=folder has test_crops=46 32, test_sides=46 37, augment=scale, shorter_side=37 69" in said
    assert "it has no normalise, pad" in said
    assert read(PHOTOS, "--data.name=cifar100").data == ImagesInMemory(name="cifar100")
    assert read(DIGITS, "--optim.kind", "muon", "--optim.orthogonal-scale", "0.3").optim == Muon(
        nesterov=True, weight_decay=5e-4, orthogonal_scale=0.3
    )
    assert read("cifar10/resnet20-preact-quick", "--optim.kind", "sgd").optim == SGD(nesterov=True, weight_decay=2e-4)
    assert read(DIGITS, "--schedule.shape", "milestones").schedule == Milestones(
        steps=800, lr=0.2, milestones=(400, 600), warmup_steps=160
    )
    assert read(CIFAR, "--schedule.shape", "one_cycle", "--schedule.steps", "640").schedule == OneCycle(
        steps=640, warmup_steps=4
    )


def test_crops_follow_the_size_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    found = read(PHOTOS, "--data.image-size", "64").data
    assert found == PaperPhotographs(
        name="imagenet", image_size=64, shorter_side=(73, 137), test_crops=(91, 64), test_sides=(91, 73)
    )
    assert capsys.readouterr().err.count("follows data.image_size=64") == 3
    larger = read(PHOTOS, "--data.image-size", "448", "--data.test-crops", "448", "--data.test-sides", "512").data
    assert larger == PaperPhotographs(
        name="imagenet", image_size=448, shorter_side=(512, 960), test_crops=(448,), test_sides=(512,)
    )
    quick = read("cifar10/resnet20-preact-quick", "--data.image-size", "16").data
    assert isinstance(quick, ImagesInMemory)
    assert quick.small_size == 12


def test_a_network_that_shrinks_images_to_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    read(PHOTOS, "--data.image-size", "16")
    assert "resnet50-preact shrinks images 32 times: of data.image_size=16 a single pixel" in capsys.readouterr().err
    read(CIFAR, "--data.image-size", "16")
    assert "shrinks" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "vary",
    [
        ("data.name=folder", "schedule.steps=100"),
        ("optim.kind=muon", "schedule.shape=one_cycle", "holdout=50"),
        ("schedule.steps=100", "schedule.milestones=[32000,48000]"),
        ("schedule.steps=100", "schedule.milestones=[]", "data.flip=false"),
    ],
)
def test_the_command_of_a_row_gives_its_recipe_again(vary: tuple[str, ...]) -> None:
    for row in sweep.of_sweep(CIFAR, preresnet.recipe(CIFAR), vary).rows:
        assert read(*row.command[2:]) == row.recipe


# --- where the recipe stands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        ("--schedule.milestones", "1000", "1500"),
        ("--schedule.milestones=1000", "1500", "--seed", "-1"),
        ("--resume", "--schedule.milestones", "1000", "1500", "--optim.no-nesterov"),
        ("--network", "resnet8-preact", "--schedule.milestones", "1000", "1500"),
    ],
)
def test_the_recipe_is_found_behind_options_with_several_values(before: tuple[str, ...]) -> None:
    found = read(*before, CIFAR)
    assert found.data == preresnet.recipe(CIFAR).data
    assert found.schedule == Milestones(milestones=(1000, 1500))


def test_a_misspelt_recipe_gets_the_nearest_names_in_any_position(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["cifar10/resnet20-preac"], ["--schedule.milestones", "10", "20", "cifar10/resnet20-preac"]):
        assert "did you mean 'cifar10/resnet20-preact'" in refused(capsys, "train", *arguments, "--out", "never")


@pytest.mark.parametrize(
    "arguments", [("--help", PHOTOS), (PHOTOS, "--help"), ("--schedule.milestones", "5", PHOTOS, "-h")]
)
def test_help_shows_the_options_of_its_own_recipe(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["train", *arguments])
    assert exit.value.code == 0
    said = capsys.readouterr().out
    assert "--data.shorter-side" in said
    assert "--data.pad" not in said
    assert "(default: resnet50-preact)" in said


# --- what is refused, in our words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.name", "foldr"], "did you mean folder?"),
        (["--data.name", "folder", "--data.pad", "4"], "data.pad: there is no such field with name=folder"),
        (["--data.shorter-side", "40", "80"], "data.shorter_side: there is no such field with name=cifar10"),
        (["--optim.orthogonal-scale", "0.2"], "optim.orthogonal_scale: there is no such field with kind=sgd"),
        (["--optim.kind", "adam"], "optim.kind=adam: there is no such kind; there are sgd, muon"),
        (["--schedule.shape", "linear"], "schedule.shape=linear"),
        (["--schedule.steps", "0"], "steps=0; it must be 1 or more"),
        (["--schedule.lr", "inf"], "schedule.lr: inf given; it must be a finite number"),
        (["--schedule.lr", "nan"], "schedule.lr: nan given"),
        (["--schedule.lr", "-1"], "schedule: lr=-1.0; it must be above 0"),
        (["--schedule.milestones", "0", "5"], "milestones=(0, 5); they must rise, from 1"),
        (["--optim.weight-decay", "inf"], "optim.weight_decay: inf given"),
        (["--optim.momentum", "nan"], "optim.momentum: nan given"),
        (["--data.image-size", "-3"], "image_size=-3"),
        (["--norm-batch", "48"], "norm_batch=48; it must divide global_batch=128"),
    ],
)
def test_a_wrong_option_is_one_line_in_our_words(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "train", CIFAR, "--out", "never", *arguments)
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"data": {"name": "folder"}}, "network: it is missing"),
        (
            {"base": CIFAR, "data": {"image_sise": 3}},
            "data.image_sise: there is no such field with name=cifar10; did you",
        ),
        ({"base": CIFAR, "data": {"name": "folder", "pad": 4}}, "data.pad: there is no such field with name=folder"),
        ({"base": CIFAR, "schedule": {"steps": "many"}}, 'schedule.steps: "many" given; it must be a whole number'),
        ({"base": CIFAR, "schedule": {"lr": math.inf}}, "schedule.lr: inf given; it must be a finite number"),
        ({"base": CIFAR, "schedule": {"milestones": 5}}, "schedule.milestones: 5 given; it must be a list"),
        ({"base": CIFAR, "optim": {"nesterov": 1}}, "optim.nesterov: 1 given; it must be true or false"),
        ({"base": CIFAR, "data": 7}, "data: 7 given; it must be an object with fields"),
        ({"base": CIFAR, "optim": {"kind": "adam"}}, "optim.kind=adam: there is no such kind"),
        ({"base": CIFAR, "precision": "half"}, "precision: 'half' given; it must be 'auto', 'float32' or 'bfloat16'"),
        ({"base": CIFAR, "shoe_size": 44}, "shoe_size: there is no such field"),
        ({"base": 3}, "base=3; it must be the name of a recipe"),
        ({"base": CIFAR, "where.what": 1}, "where.what: there is no such field"),
        ([], "[] given; it must be an object with fields"),
    ],
)
def test_a_wrong_recipe_file_is_one_line_that_names_it(
    content: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(content))
    said = refused(capsys, "train", str(tmp_path / "mine.json"), "--out", "never")
    assert words in said
    assert "mine.json" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "given", [["--schedule.milestones", "4"], ["--schedule.milestones=4", "--schedule.warmup-lr", "0.1"]]
)
def test_what_another_shape_of_the_schedule_has_is_said_and_left_out(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = read("digits/resnet20-preact", "--schedule.steps", "6")
    capsys.readouterr()
    assert read("digits/resnet20-preact", *given, "--schedule.steps", "6") == plain
    said = capsys.readouterr().err
    assert "note: schedule.milestones has no effect: it is for schedule.shape=milestones, and this is one_cycle" in said


def test_recipe_and_network_files_may_have_a_byte_order_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, net = tmp_path / "recipe.json", tmp_path / "net.json"
    net.write_text(to_json(network("resnet8-preact")), encoding="utf-8-sig")
    recipe.write_text(json.dumps({"base": DIGITS, "network": str(net)}), encoding="utf-8-sig")
    assert read(str(recipe)).network == str(net)
    assert main(["describe", str(net), "--json"]) == 0
    capsys.readouterr()
    for path, command in ((recipe, ("train", str(recipe), "--out", "never")), (net, ("describe", str(net)))):
        for encoding in ("utf-16", "latin-1"):
            path.write_text(json.dumps({"base": "é"}, ensure_ascii=False), encoding=encoding)
            said = refused(capsys, *command)
            assert str(path) in said
            assert "save it again as UTF-8" in said


def floats() -> list[tuple[type, str]]:
    owners = {one for kind in field_types(Recipe).values() for one in members(kind)}
    owners |= {one for one in vars(spec).values() if isinstance(one, type) and one.__module__ == spec.__name__}
    found = [(one, field.name) for one in owners if hasattr(one, "__dataclass_fields__") for field in fields(one)]
    return sorted(((one, name) for one, name in found if field_types(one)[name] is float), key=repr)


@pytest.mark.parametrize(("owner", "field"), floats())
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_of_a_recipe_or_network_may_be_infinite(owner: type, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        owner(**{field: value})


# --- what an earlier version stored -----------------------------------------------------------------------------------

EARLIER_DATA = {
    "image_size": 32,
    "normalise": "per_pixel_mean",
    "augment": "pad",
    "shorter_side": [256, 480],
    "test_crops": [],
    "test_sides": [],
    "pad": 4,
    "flip": True,
    "small_size": 0,
    "small_share": 0.0,
    "holdout": 0,
}
EARLIER_OPTIM = {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "decay_all": True, "orthogonal_scale": 0.0}
EARLIER_SCHEDULE = {
    "steps": 64_000,
    "lr": 0.1,
    "shape": "milestones",
    "milestones": [32_000, 48_000],
    "warmup_steps": 400,
    "warmup_lr": 0.01,
}
PHOTOGRAPHS = {
    "name": "imagenet",
    "image_size": 224,
    "normalise": "channel_mean_std",
    "augment": "scale",
    "test_crops": [320, 224],
    "test_sides": [320, 256],
    "pad": 0,
}


@pytest.mark.parametrize(
    ("name", "data", "optim", "schedule"),
    [
        (CIFAR, {"name": "cifar10"}, {}, {}),
        (PHOTOS, PHOTOGRAPHS, {}, {"steps": 450_450, "milestones": [150_150, 300_300], "warmup_steps": 0}),
        (
            "cifar10/resnet20-preact-quick",
            {"name": "cifar10", "pad": 2, "small_size": 24, "small_share": 0.6},
            {"nesterov": True, "weight_decay": 2e-4, "orthogonal_scale": 0.15},
            {"steps": 3_000, "lr": 0.2, "shape": "one_cycle", "warmup_steps": 600},
        ),
    ],
)
def test_a_recipe_that_an_earlier_version_stored_is_read(
    name: str, data: dict[str, object], optim: dict[str, object], schedule: dict[str, object]
) -> None:
    named = preresnet.recipe(name)
    content = json.loads(to_json(named)) | {
        "data": EARLIER_DATA | data,
        "optim": EARLIER_OPTIM | optim,
        "schedule": EARLIER_SCHEDULE | schedule,
    }
    assert from_json(Recipe, json.dumps(content)) == named


# --- data sets and held-out images ------------------------------------------------------------------------------------


def test_the_table_of_data_sets_is_what_is_read() -> None:
    from preresnet.data import sets

    whole = sets.load(ImagesInMemory(name="digits", image_size=8), None)
    known = DATA_SETS["digits"]
    assert (len(whole.classes), len(whole.train), len(whole.evaluation)) == (
        known.classes,
        known.num_train,
        known.num_test,
    )


def test_held_out_images_have_one_meaning_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from preresnet.paper.studies import study

    made = plan.of_paper(study("table2"), (), plan.parse_scale("steps=64", 5_000))
    assert {row.recipe.data.holdout for row in made.rows} == {5_000}
    assert "holdout=5000" in made.title
    assert all(read(*row.command[2:]) == row.recipe for row in made.rows)
    assert plan.of_paper(study("table2"), (), plan.parse_scale("", 7)).rows[0].recipe.data.holdout == 7
    asked: list[plan.Plan] = []
    monkeypatch.setattr(studies, "_do", lambda made, given: (asked.append(made) or 0, None))
    assert main(["sweep", DIGITS, "--vary", "lr=0.1,0.2", "--holdout", "100"]) == 0
    assert main(["reproduce", "table2", "--holdout", "100"]) == 0
    assert [{row.recipe.data.holdout for row in made.rows} for made in asked] == [{100}, {100}]


def test_the_test_images_of_a_folder_are_not_needed_where_some_are_held_out(tmp_path: Path) -> None:
    from PIL import Image

    from preresnet.data import sets

    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), (40 * number, 0, 0)).save(tmp_path / "train" / name / f"{number}.png")
    spec = PaperPhotographs(name="folder", holdout=2)
    found = sets.load(spec, tmp_path)
    assert (len(found.train), len(found.evaluation), found.split) == (4, 2, "holdout")
    with pytest.raises(ValueError, match="val is not there"):
        sets.load(replace(spec, holdout=0), tmp_path)


def test_every_field_of_every_kind_has_a_name() -> None:
    names = set(field_names())
    assert {"network", "data.shorter_side", "data.pad", "optim.orthogonal_scale", "schedule.milestones"} <= names
    for name in preresnet.list_recipes():
        made, said = changed(preresnet.recipe(name), {})
        assert made == preresnet.recipe(name)
        assert said == []
