"""Which runs make up a study: shortened tables, and grids."""

import json
import shlex
from typing import Any

import pytest

import preresnet
from preresnet.changes import field_names
from preresnet.cli import entry
from preresnet.paper.studies import STUDIES, study
from preresnet.recipe import Milestones, Recipe
from preresnet.spec import to_json
from preresnet.study.plan import EVALUATION_IMAGES, Scale, of_paper, parse_scale, scaled
from preresnet.study.sweep import of_sweep, resolve_field

DIGITS = "digits/resnet20-preact"


@pytest.mark.parametrize("name", STUDIES)
def test_the_full_length_is_the_papers_recipe(name: str) -> None:
    made = of_paper(study(name))
    for row, planned in zip(study(name).rows, made.rows, strict=True):
        assert planned.recipe == preresnet.recipe(row.recipe)
        assert planned.folder == row.recipe.replace("/", "-")
        assert planned.name == planned.folder + ("-crop224" if row.test_crop == 224 else "")
        assert planned.command == ("preresnet", "train", row.recipe)
    assert made.scale is None


def test_a_schedule_is_shortened_in_proportion() -> None:
    full = preresnet.recipe("cifar10/resnet110-original")
    short = scaled(full, Scale(steps=2_000, batch=64, depth=20))
    assert (short.network, short.global_batch) == ("resnet20-original", 64)
    # 12 of 2,000 are 400 of 64,000
    assert short.schedule == Milestones(steps=2_000, lr=0.1, milestones=(1_000, 1_500), warmup_steps=12, warmup_lr=0.01)
    assert (short.log_every, short.save_every) == (2, 31)
    assert short.eval_every * 64 >= EVALUATION_IMAGES
    assert short.eval_every == 313
    rates = [short.schedule.at(int(share * 2_000)) for share in (0.003, 0.3, 0.6, 0.9)]
    assert rates == [full.schedule.at(int(share * 64_000)) for share in (0.003, 0.3, 0.6, 0.9)]


def test_what_is_not_scaled_stays() -> None:
    full = preresnet.recipe("cifar10/resnet1001-preact-batch64")
    assert scaled(full, None) == full
    assert scaled(full, Scale(batch=32)).schedule == full.schedule
    short = scaled(full, Scale(steps=1_564)).schedule
    assert short == Milestones(steps=1_564, milestones=(626, 946), warmup_steps=0)  # as there was none


def test_the_shortest_run_keeps_both_milestones() -> None:
    schedule = scaled(preresnet.recipe("cifar10/resnet110-original"), Scale(steps=8)).schedule
    assert schedule == Milestones(steps=8, milestones=(4, 6), warmup_steps=1)


@pytest.mark.parametrize(
    "text", ["steps", "steps=", "steps=2e3", "steps=7", "batch=1", "epochs=3", "steps=9,steps=9", "depth=-20", ","]
)
def test_a_scale_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="give each of steps"):
        parse_scale(text)


def test_a_scale_is_read() -> None:
    assert parse_scale("") is None
    assert parse_scale(" batch=64, steps=2000") == Scale(steps=2000, batch=64)


def test_a_shortened_study_says_so() -> None:
    assert parse_scale("data=folder,steps=20") == Scale(steps=20, data="folder")
    assert of_paper(study("table5"), ("*152-preact",), Scale(data="folder")).rows[0].recipe.data.name == "folder"
    made = of_paper(study("table1"), ("resnet110-original",), Scale(steps=100, depth=20))
    assert made.title == "Table 1: shortcuts, 20 layers (shortened: steps=100, depth=20)"
    assert made.rows[0].name == "cifar10-resnet20-original"
    assert "resnet20-original" in made.rows[0].label


def test_rows_that_become_the_same_network_are_refused() -> None:
    with pytest.raises(ValueError, match="resnet164-original and cifar10/resnet1001-original are the same network"):
        of_paper(study("table3"), (), Scale(depth=20))
    assert len(of_paper(study("table2"), (), Scale(depth=20)).rows) == 10  # basic and bottleneck units stay apart


def read_back(command: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    return entry.read_command(shlex.split(command)[1:])


@pytest.mark.parametrize("scale", [None, Scale(steps=2_000, batch=64, depth=20), Scale(batch=32)])
@pytest.mark.parametrize("row", ["cifar10/resnet110-original-conv1x1", "cifar10/resnet164-preact"])
def test_the_command_of_a_run_makes_its_recipe(row: str, scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "table1" if "conv1x1" in row else "table2"
    (planned,) = of_paper(study(name), (row,), scale).rows
    parsed = read_back(planned.train_command(3), monkeypatch)
    assert parsed.recipe == planned.recipe
    assert parsed.seed == 3


def test_the_command_of_a_swept_run_makes_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    vary = ("optim.nesterov=false", "norm_batch=null,16", "milestones=[10,20],[5]", "schedule.shape=milestones")
    for planned in of_sweep(DIGITS, preresnet.recipe(DIGITS), vary).rows:
        assert read_back(planned.train_command(0), monkeypatch).recipe == planned.recipe


def test_a_grid_has_every_combination_named_by_what_varies() -> None:
    base = preresnet.recipe(DIGITS)
    made = of_sweep(
        DIGITS, base, ("schedule.lr=0.05,0.1", "network=resnet8-preact,resnet8-original", "global-batch=16")
    )
    assert [row.name for row in made.rows] == [
        "schedule.lr=0.05_network=resnet8-preact",
        "schedule.lr=0.05_network=resnet8-original",
        "schedule.lr=0.1_network=resnet8-preact",
        "schedule.lr=0.1_network=resnet8-original",
    ]
    recipes = [row.recipe for row in made.rows]
    assert all(isinstance(one, Recipe) and one.global_batch == 16 for one in recipes)
    assert len({to_json(one) for one in recipes if one}) == 4
    assert "global_batch = 16" in made.title


def test_every_field_of_a_recipe_can_be_varied() -> None:
    content = json.loads(to_json(preresnet.recipe(DIGITS)))
    flat = [f"{key}.{inner}" for key, value in content.items() if isinstance(value, dict) for inner in value]
    flat += [key for key, value in content.items() if not isinstance(value, dict)]
    assert set(flat) <= set(field_names())
    assert resolve_field("lr") == resolve_field("optim.lr") == "schedule.lr"


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ((), "nothing to vary"),
        (("schedule.lr",), "give a field and its values"),
        (("schedule.speed=1",), "no such field"),
        (("schedule.lr=fast",), "schedule.lr"),
        (("schedule.lr=0.1,0.1",), "the same value is given twice"),
        (("schedule.lr=1,1.0",), "the same value is given twice"),
        (("lr=0.1", "schedule.lr=0.2"), "names schedule.lr twice"),
        (("schedule.lr=-1",), "lr=-1"),
        (("name=x",), "no such field|data.name"),
    ],
)
def test_what_cannot_be_swept_is_one_message(vary: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        of_sweep(DIGITS, preresnet.recipe(DIGITS), vary)
