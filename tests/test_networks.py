"""Counts of every network, derived here from the paper's rules alone, against the table and against what is built."""

import functools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import preresnet
from preresnet.model.describe import describe
from preresnet.model.network import meta
from preresnet.paper import tables
from preresnet.paper.networks import network, network_names
from preresnet.recipe import Recipe
from preresnet.spec import NetSpec, UserError, from_json, to_json

PINNED = Path(__file__).parent / "golden" / "counts.json"

# --- a derivation of its own: layer arithmetic over (kernel, in, out, output size), nothing from the package ---------

IMAGENET = {
    18: ((3, 3), (2, 2, 2, 2)),
    34: ((3, 3), (3, 4, 6, 3)),
    50: ((1, 3, 1), (3, 4, 6, 3)),
    101: ((1, 3, 1), (3, 4, 23, 3)),
    152: ((1, 3, 1), (3, 8, 36, 3)),
    200: ((1, 3, 1), (3, 24, 36, 3)),
}
PREACTIVATED = ("relu-only", "preact")


def derive(name: str, num_classes: int | None = None, stride_in_3x3: bool = False) -> tuple[int, int]:
    """Parameters and multiply-adds of convolutions and classifier, by hand."""
    stride_in_3x3 = stride_in_3x3 or name.endswith("-spatial")
    match = re.match(r"resnet(\d+)-(original|bn-after|relu-before|relu-only|preact|plain)(.*)", name)
    assert match
    depth, order, rest = int(match[1]), match[2], match[3]
    plain, order = order == "plain" or "-scale-0-1" in rest, "original" if order == "plain" else order
    if imagenet := depth in IMAGENET and "-basic" not in rest and "-bottleneck" not in rest:
        kernels, counts = IMAGENET[depth]
        inner, size, channels, classes = (64, 128, 256, 512), 56, 64, 1000
        parameters, macs = 7 * 7 * 3 * 64 + 2 * 64, 7 * 7 * 3 * 64 * 112 * 112
    else:
        if "-1layer" in rest:
            kernels: tuple[int, ...] = (3,)
        elif "-bottleneck" in rest or depth in (164, 1001):
            kernels = (1, 3, 1)
        else:
            kernels = (3, 3)
        counts = ((depth - 2) // (3 * len(kernels)),) * 3
        inner, size, channels, classes = (16, 32, 64), 32, 16, 10
        parameters, macs = 9 * 3 * 16, 9 * 3 * 16 * 32 * 32
        # every order but full pre-activation has a norm right after the first convolution
        parameters += 0 if order == "preact" else 2 * 16
    classes = classes if num_classes is None else num_classes
    bottleneck = len(kernels) == 3
    projected = imagenet or bottleneck or "-projected" in rest
    norm_ends_branch = order in ("original", "relu-before", "relu-only")
    for stage, (count, narrow) in enumerate(zip(counts, inner, strict=True)):
        width = narrow * (4 if bottleneck else 1)
        for unit in range(count):
            stride = 2 if stage > 0 and unit == 0 else 1
            first_of_imagenet = imagenet and stage == 0 and unit == 0
            in_size, size = size, size // stride
            layers = [width if position == len(kernels) - 1 else narrow for position in range(len(kernels))]
            before = channels
            for position, (kernel, out) in enumerate(zip(kernels, layers, strict=True)):
                strided = stride_in_3x3 and bottleneck and position == 0
                layer_size = in_size if strided else size
                parameters += kernel * kernel * before * out
                macs += kernel * kernel * before * out * layer_size * layer_size
                before = out
            # norms: one an inner convolution's output, and one at an end of the branch or after the addition
            parameters += 2 * sum(layers[:-1])
            if order == "preact":
                parameters += 0 if first_of_imagenet else 2 * channels
            else:
                parameters += 2 * width
            changes = channels != width
            if "-conv1x1" in rest:
                parameters += channels * width + 2 * width
                macs += channels * width * size * size
            elif changes and projected and not plain:
                parameters += channels * width + (2 * width if norm_ends_branch else 0)
                macs += channels * width * size * size
            if "-gate-" in rest:
                parameters += channels * width + width
                macs += channels * width * size * size
            channels = width
    parameters += 2 * channels if order == "preact" else 0
    return parameters + channels * classes + classes, macs + channels * classes


# Published by the paper, by the authors' code or by other implementations: parameters, and multiply-adds in
# millions where given.
PUBLISHED = [
    ("resnet110-original", 10, 1_727_962, 252.89),
    ("resnet110-preact", 10, 1_727_962, 252.89),
    ("resnet110-original", 100, 1_733_812, None),
    ("resnet110-original-projected", 10, 1_730_714, 253.15),
    ("resnet110-original-projected", 100, 1_736_564, None),
    ("resnet110-preact-projected", 10, 1_730_522, 253.15),
    ("resnet110-preact-projected", 100, 1_736_372, None),
    ("resnet110-original-1layer", 10, 1_727_962, 252.89),
    ("resnet110-preact-1layer", 100, 1_733_812, None),
    ("resnet164-original", 10, 1_704_154, 244.50),
    ("resnet164-original", 100, 1_727_284, None),
    ("resnet164-preact", 10, 1_703_258, 244.50),
    ("resnet164-preact", 100, 1_726_388, None),
    ("resnet1001-original", 10, 10_328_602, 1487.85),
    ("resnet1001-original", 100, 10_351_732, None),
    ("resnet1001-preact", 10, 10_327_706, 1487.85),
    ("resnet1001-preact", 100, 10_350_836, None),
    ("resnet1202-original", 10, 19_421_274, 2829.2),
    ("resnet50-original", 1000, 25_557_032, 3800),
    ("resnet50-preact", 1000, 25_549_352, 3800),
    ("resnet101-original", 1000, 44_549_160, 7600),
    ("resnet101-preact", 1000, 44_541_480, 7600),
    ("resnet152-original", 1000, 60_192_808, 11300),
    ("resnet152-preact", 1000, 60_185_128, 11300),
    ("resnet200-original", 1000, 64_673_832, 14780),
    ("resnet200-preact", 1000, 64_666_152, 14780),
    ("resnet200-preact-spatial", 1000, 64_666_152, 15010),
    ("resnet110-original-exclusive-gate-6", 10, 1_824_186, None),
    ("resnet110-original-shortcut-gate-0", 10, 1_824_186, None),
    ("resnet110-original-conv1x1", 10, 1_826_202, None),
]


@pytest.mark.parametrize(("name", "classes", "parameters", "mega_macs"), PUBLISHED)
def test_the_derivation_gives_the_published_numbers(
    name: str, classes: int, parameters: int, mega_macs: float | None
) -> None:
    found = derive(name, classes)
    assert found[0] == parameters
    if mega_macs is not None:
        assert found[1] / 1e6 == pytest.approx(mega_macs, rel=0.03 if classes == 1000 else 5e-5)


def test_striding_in_the_3x3_costs_what_is_published() -> None:
    assert derive("resnet164-preact", stride_in_3x3=True)[1] / 1e6 == pytest.approx(247.65, rel=5e-5)
    assert derive("resnet1001-preact", stride_in_3x3=True)[1] / 1e6 == pytest.approx(1491.00, rel=5e-5)
    assert derive("resnet200-preact", stride_in_3x3=True)[1] == 15_007_481_856
    assert derive("resnet200-preact")[1] / 1e9 == pytest.approx(14.78, rel=1e-3)


def test_the_table_is_the_derivation() -> None:
    assert json.loads(PINNED.read_text()) == {name: list(derive(name)) for name in preresnet.list_models()}


@functools.cache
def pinned() -> dict[str, list[int]]:
    return json.loads(PINNED.read_text())


@pytest.mark.parametrize("name", network_names())
def test_what_is_built_has_the_pinned_counts(name: str) -> None:
    spec = network(name)
    found = describe(spec)
    assert [found["parameters"], found["multiply_adds"]] == pinned()[name]
    if spec.depth <= 200:  # what is counted part by part is what is built
        assert sum(parameter.numel() for parameter in meta(spec).parameters()) == found["parameters"]


def test_saved_activations_are_what_autograd_keeps() -> None:
    """Counted by hand for a plain chain: each convolution's input, each norm's input and its ReLU's output."""
    found = describe(network("resnet8-preact"), size=8)
    stem = found["parts"][0]
    assert stem["activation_bytes"] == {"float32": 3 * 64 * 4, "bfloat16": 3 * 64 * 2}  # the image, for conv1's weights
    stage = found["parts"][1]
    # x (16 channels) enters the shared norm, whose ReLU output feeds conv1 and the shortcut; conv1's output enters
    # norm1, whose ReLU output feeds conv2: four tensors of 16x8x8, and the norms' means and deviations in between.
    assert stage["activation_bytes"]["float32"] // (16 * 64 * 4) == 4


def test_activation_memory_of_1001_layers_is_what_peers_computed() -> None:
    found = describe(network("resnet1001-preact"))
    assert found["activation_bytes"]["float32"] * 128 / 1e9 == pytest.approx(19.6, rel=0.01)
    assert found["activation_bytes"]["bfloat16"] * 128 / 1e9 == pytest.approx(9.8, rel=0.01)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet164-preakt", "did you mean 'resnet164-preact'"),
        ("resnet110-original-exclusive-gate-11", "did you mean 'resnet110-original-exclusive-gate-1"),
        ("vgg16", "the form is resnet<depth>-<order>"),
        ("resnet21-preact", "the depth must be 6n[+]2; the nearest are 20 and 26"),
        ("resnet2-preact", "the nearest are 8 and 14"),
        ("resnet20-preact-bottleneck-conv1x1-projected-more", "no network"),
        ("resnet110-plain-conv1x1", "a plain network has no shortcut"),
        ("resnet110-preact-spatial", "only a bottleneck can stride in another convolution"),
    ],
)
def test_a_name_that_does_not_exist_is_answered(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        network(name)


@given(n=st.integers(1, 400), kind=st.sampled_from(["basic", "bottleneck", "1layer"]))
def test_any_depth_of_the_rules_has_a_name(n: int, kind: str) -> None:
    step = {"basic": 6, "bottleneck": 9, "1layer": 3}[kind]
    spec = network(f"resnet{step * n + 2}-preact-{kind}")
    assert spec.depth == step * n + 2
    assert [stage.num_units for stage in spec.stages] == [n] * 3


def test_depths_that_two_rules_share() -> None:
    assert network("resnet164-preact").unit.kind == "bottleneck"
    assert network("resnet164-preact-basic").unit.kind == "basic"
    assert network("resnet110-preact").unit.kind == "basic"
    assert network("resnet110-preact-bottleneck").stages[0].num_units == 12
    assert network("resnet29-preact").unit.kind == "bottleneck"
    assert len(network("resnet50-preact").stages) == 4
    assert len(network("resnet50-preact-basic").stages) == 3


def test_every_network_has_the_depth_of_its_name() -> None:
    for name in network_names():
        match = re.match(r"resnet(\d+)", name)
        assert match
        assert network(name).depth == int(match[1])


def test_classes_and_channels() -> None:
    assert network("resnet50-preact").num_classes == 1000
    assert network("resnet20-preact").num_classes == 10
    model = preresnet.create_model("resnet18-original", num_classes=7, in_channels=5, seed=0)
    assert model.head.linear.out_features == 7
    assert model.stem.conv.in_channels == 5
    with pytest.raises(ValueError, match="num_classes=0"):
        preresnet.create_model("resnet20-preact", num_classes=0)


def test_everything_the_paper_trains_has_a_name() -> None:
    names = set(preresnet.list_models())
    for depth in (20, 32, 44, 56, 110, 164, 1001, 1202, 18, 34, 50, 101, 152, 200):
        for order in ("original", "bn-after", "relu-before", "relu-only", "preact"):
            assert f"resnet{depth}-{order}" in names
    for bias in range(11):
        assert {f"resnet110-original-exclusive-gate-{bias}", f"resnet110-original-shortcut-gate-{bias}"} <= names
    for rest in ("scale-0-1", "scale-0.5-1", "scale-0.5-0.5", "conv1x1", "dropout-0.5"):
        assert f"resnet110-original-{rest}" in names


# --- recipes and printed numbers --------------------------------------------------------------------------------------


def test_every_recipe_resolves_and_round_trips() -> None:
    for name in preresnet.list_recipes():
        recipe = preresnet.recipe(name)
        assert from_json(Recipe, to_json(recipe)) == recipe
        network(recipe.network)


def test_unlisted_networks_train_by_the_papers_recipe_too() -> None:
    assert preresnet.recipe("cifar100/resnet26-relu-only").network == "resnet26-relu-only"
    for name in ("cifar10/resnet110-preac", "cifar11/resnet110-preact", "digits/resnet20-preac", "nonsense"):
        with pytest.raises(ValueError, match=f"no recipe '{name}'"):
            preresnet.recipe(name)


# Written out again from the paper's tables, in their order; None is "fail".
PRINTED = {
    (1, "cifar10"): [6.61, None, None, 12.35, *[None] * 6, 8.70, 9.81, 12.86, 6.91, 12.22, None],
    (2, "cifar10"): [6.61, 8.17, 7.84, 6.71, 6.37, 5.93, 6.50, 6.14, 5.91, 5.46],
    (3, "cifar10"): [9.90, 8.91, 6.61, 6.37, 5.93, 5.46, 7.61, 4.92],
    (3, "cifar100"): [25.16, 24.33, 27.82, 22.71],
    (4, "cifar10"): [6.61, 7.93, 5.46, 4.92, 4.62],
    (4, "cifar100"): [25.16, 27.82, 24.33, 22.71],
    (5, "imagenet"): [23.0, 21.3, 21.1, 21.8, 20.7, 20.1],
}


def test_printed_numbers() -> None:
    assert sum(map(len, PRINTED.values())) == len(tables.ROWS)
    for (table, data), errors in PRINTED.items():
        rows = [row for row in tables.ROWS if (row.table, row.data) == (table, data)]
        assert [row.error_pct for row in rows] == errors


def test_a_network_is_printed_with_one_error_in_all_tables() -> None:
    seen: dict[tuple[str, int | None], float | None] = {}
    for row in tables.ROWS:
        assert seen.setdefault((row.recipe, row.test_crop), row.error_pct) == row.error_pct
        assert row.recipe in preresnet.list_recipes()
        assert preresnet.recipe(row.recipe).data.name == row.data


# --- the specification as data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", network_names())
def test_specifications_round_trip_exactly(name: str) -> None:
    spec = network(name)
    assert from_json(NetSpec, to_json(spec)) == spec
    assert hash(from_json(NetSpec, to_json(spec))) == hash(spec)


@settings(max_examples=60)
@given(st.data())
def test_any_specification_round_trips_exactly(data: st.DataObject) -> None:
    from preresnet import spec as s

    order = data.draw(st.sampled_from([network(f"resnet20-{name}").unit.order for name in ("preact", "original")]))
    floats = st.floats(0.1, 9.0)
    shortcut = data.draw(
        st.one_of(
            st.builds(s.Identity),
            st.builds(s.ConstantScale, shortcut=floats, residual=floats),
            st.builds(s.ExclusiveGate, bias=floats, norm=st.booleans()),
            st.builds(s.ShortcutOnlyGate, bias=floats, norm=st.booleans()),
            st.builds(s.Conv1x1, norm=st.booleans()),
            st.builds(s.Dropout, p=st.floats(0, 0.9), rescale=st.booleans()),
        )
    )
    kind: s.UnitKind = data.draw(st.sampled_from(["basic", "bottleneck", "single"]))  # type: ignore[assignment]
    dialect = data.draw(st.builds(s.Dialect, dimension_change=st.just("projection"), norm_eps=st.floats(1e-9, 1e-2)))
    stages = data.draw(
        st.lists(st.builds(s.StageSpec, num_units=st.integers(1, 5), width=st.integers(1, 9).map(lambda w: 4 * w)))
    )
    if not stages:
        return
    spec = NetSpec(
        stem=s.StemSpec(width=data.draw(st.integers(1, 40))),
        stages=tuple(stages),
        unit=s.UnitSpec(kind=kind, order=order, shortcut=shortcut),
        dialect=dialect,
    )
    assert from_json(NetSpec, to_json(spec)) == spec
    assert spec.depth == 2 + len(spec.unit.kernels) * sum(stage.num_units for stage in stages)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(colour="red"), "colour: there is no such field"),
        (lambda d: d.pop("stem"), "stem: "),
        (lambda d: d.update(num_classes="ten"), "num_classes: .ten. given; it must be a whole number"),
        (lambda d: d.update(num_classes=0), "num_classes=0; it must be 1 or more"),
        (lambda d: d["stages"][0].update(num_units=0), "stage num_units=0"),
        (lambda d: d["stages"][2].update(width=8), "widths .* shrink"),
        (lambda d: d["stem"].update(kernel=4), "kernel=4; it must be odd"),
        (lambda d: d["unit"].update(kind="wide"), "'basic', 'bottleneck' or 'single'"),
        (lambda d: d["unit"].update(shortcut={"kind": "magic"}), "unit.shortcut: kind=magic: .*'conv1x1'"),
        (lambda d: d["unit"].update(shortcut={"kind": "dropout", "q": 1.0}), "unit.shortcut.q: .*there are p, rescale"),
        (lambda d: d["dialect"].update(norm_epz=0.1), "dialect.norm_epz: .*did you mean norm_eps"),
        (lambda d: d["dialect"].update(norm_eps=float("inf")), "dialect.norm_eps: inf given; .*finite"),
        (lambda d: d["unit"].update(shortcut={"kind": "dropout", "p": 1.0}), "dropout p=1.0"),
        (lambda d: d["dialect"].update(norm_eps=0.0), "norm_eps=0.0"),
        (lambda d: d.update(stages=[]), "at least one stage"),
    ],
)
def test_a_wrong_field_is_named(change: object, words: str) -> None:
    content = json.loads(to_json(network("resnet20-preact")))
    change(content)  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        from_json(NetSpec, json.dumps(content))
    line = str(caught.value)
    assert re.search(words, line), line
    assert "\n" not in line


def test_the_page_of_printed_numbers_is_the_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "guide" / "paper.md").read_text()
    found = re.findall(r"^\| `(.+?)` \| (\S+) \|", page, flags=re.MULTILINE)
    expected = [(row.recipe, _as_printed(row)) for row in tables.ROWS]
    assert found == expected


def _as_printed(row: tables.Row) -> str:
    digits = 1 if row.table == 5 else 2
    return "fail" if row.error_pct is None else f"{row.error_pct:.{digits}f}"
