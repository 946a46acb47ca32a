"""Fields for what other libraries do otherwise: what each does, what is refused, and that every reader follows."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_peers import apart, images, narrow, randomise
from torch import Tensor, nn

import preresnet
from preresnet import inference
from preresnet.cli import main
from preresnet.kernels import native
from preresnet.model import folding, memory, program
from preresnet.model.counts import Saved
from preresnet.model.describe import describe
from preresnet.model.network import Network, Stem, build, meta
from preresnet.model.shortcuts import same_border
from preresnet.model.units import ResidualUnit
from preresnet.paper import peers
from preresnet.paper.networks import network, network_names
from preresnet.spec import MEMORY_PLANS, Dialect, MemoryPlan, NetSpec, StemSpec, UserError, from_json, to_json

RAW = StemSpec(width=8, kernel=7, stride=2, pool=True)


def bottlenecks(**dialect: Any) -> NetSpec:
    spec = narrow(peers.keras_cifar(20, version=2), 2)
    return replace(spec, dialect=replace(spec.dialect, **dialect))


def shallow(spec: NetSpec) -> NetSpec:
    return narrow(replace(spec, stages=tuple(replace(stage, num_units=2) for stage in spec.stages)), 8)


SPECS = {
    "timm": shallow(peers.timm_resnetv2(50)),
    "timm basic": shallow(peers.timm_resnetv2(18)),
    "keras": shallow(peers.keras_resnet_v2(50)),
    "keras cifar 1": narrow(peers.keras_cifar(14, version=1), 2),
    "keras cifar 2": bottlenecks(),
    "same 3x3": bottlenecks(stride_position="spatial"),
    "same 3x3 late": bottlenecks(stride_position="spatial", strided_unit="last"),
    "same everywhere": replace(
        shallow(network("resnet50-original")),
        stem=replace(RAW, activated=True, pool_padding="same"),
        dialect=Dialect(dimension_change="projection", stride_position="spatial", conv_padding="same"),
    ),
    "raw pool of another order": replace(shallow(network("resnet18-relu-only")), stem=RAW),
    "activated without a pool": replace(network("resnet8-preact"), stem=StemSpec(width=16, activated=True, pool=False)),
}
every_spec = pytest.mark.parametrize("name", SPECS)


def used(name: str) -> Network:
    model = build(SPECS[name], 0).double()
    randomise(model)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def symmetric(spec: NetSpec) -> NetSpec:
    return replace(spec, dialect=replace(spec.dialect, conv_padding="symmetric"))


# --- the specification --------------------------------------------------------------------------------------------


def test_a_specification_without_the_fields_is_the_papers() -> None:
    for name in ("resnet20-preact", "resnet50-original"):
        content = json.loads(to_json(network(name)))
        del content["stem"]["pool"], content["stem"]["pool_padding"], content["dialect"]["conv_padding"]
        for stage in content["stages"]:
            del stage["bottleneck_ratio"]
        assert from_json(NetSpec, json.dumps(content)) == network(name)


@every_spec
def test_specifications_round_trip(name: str) -> None:
    assert from_json(NetSpec, to_json(SPECS[name])) == SPECS[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["stages"][1].update(bottleneck_ratio=5), "width 128 is not a multiple of bottleneck_ratio 5"),
        (lambda d: d["stages"][1].update(bottleneck_ratio=0), "stage bottleneck_ratio=0; it must be 1 or more"),
        (
            lambda d: d["stages"][1].update(bottleneck_ratio=[4, 2]),
            "stages.1.bottleneck_ratio: .4, 2. given; it must be a whole",
        ),
        (
            lambda d: d["unit"].update(kind="basic"),
            "stages.0 has bottleneck_ratio=4, but unit.kind='basic' has no bott",
        ),
        (lambda d: d["stem"].update(pool_padding="zero"), "pool_padding='zero', but this stem does not pool"),
        (lambda d: d["stem"].update(activated=True, pool=False, pool_padding="same"), "this stem does not pool"),
        (lambda d: d["stem"].update(pool_padding="reflect"), "stem.pool_padding: .*'ignored', 'zero' or 'same'"),
        (lambda d: d["stem"].update(pool="max"), "stem.pool: .max. given; it must be true or false"),
        (lambda d: d["dialect"].update(conv_padding="SAME"), "dialect.conv_padding: .*'symmetric' or 'same'"),
        (lambda d: d["dialect"].update(shared_preactivation="first"), "shared_preactivation: .*'network_first'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: Callable[[Any], None], words: str) -> None:
    content = json.loads(to_json(peers.keras_cifar(20, version=2)))
    change(content)
    with pytest.raises(UserError) as caught:
        from_json(NetSpec, json.dumps(content))
    line = str(caught.value)
    assert re.search(words, line), line
    assert line.count("; ") <= 1  # one fault, one message


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: peers.timm_resnetv2(20), "no ImageNet network of 20 layers here; there are 18, 34, 50, 101, 152"),
        (lambda: peers.keras_resnet_v2(34), "no ResNet34V2 in Keras; there are 50, 101 and 152"),
        (lambda: peers.keras_cifar(20, version=3), "version=3"),
        (lambda: peers.keras_cifar(22, version=2), "the depth must be 9n[+]2; the nearest are 20 and 29"),
    ],
)
def test_peers_that_do_not_exist(ask: Callable[[], NetSpec], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ask()


def test_ratios_by_stage_and_sharing_in_the_first_unit_alone() -> None:
    spec = peers.keras_cifar(29, version=2)
    shapes = [shape for _, _, shape in spec.units()]
    assert [shape.inner_width for shape in shapes] == [16] * 3 + [64] * 3 + [128] * 3
    assert [shape.shared for shape in shapes] == [True] + [False] * 8
    assert spec.depth == 29
    own = replace(spec, stages=(replace(spec.stages[0], bottleneck_ratio=None), *spec.stages[1:]))
    assert list(own.units()) == list(spec.units())  # without a ratio of its own, a stage has that of the units


# --- borders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "border"),
    [
        *((8, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (1, 3, 2, (1, 1)), (2, 3, 2, (0, 1))),
        *((224, 7, 2, (2, 3)), (225, 7, 2, (3, 3)), (8, 5, 2, (1, 2))),
        *((9, 3, 3, (0, 0)), (8, 3, 3, (0, 1)), (10, 3, 3, (1, 1)), (8, 3, 4, (0, 0)), (9, 3, 4, (1, 1))),
    ],
)
def test_the_border_of_same(size: int, kernel: int, stride: int, border: tuple[int, int]) -> None:
    assert same_border((size, 8), kernel, stride)[2:] == list(border)
    assert same_border((8, size), kernel, stride)[:2] == list(border)
    assert (size + sum(border) - kernel) // stride + 1 == math.ceil(size / stride)


@pytest.mark.parametrize("name", ["keras cifar 1", "same 3x3"])
def test_same_differs_from_symmetric_for_even_sizes_alone(name: str) -> None:
    same = used(name).eval()
    other = Network(symmetric(same.spec)).double().eval()
    other.load_state_dict(same.state_dict())
    for size, differs in ((17, False), (16, True)):  # 17, 9 and 5 are odd
        x = images(2, size, size)
        assert (apart(same(x), other(x)) > 1e-3) is differs
        assert same.forward_features(x).shape == other.forward_features(x).shape


def test_names_of_tensors_do_not_depend_on_the_border() -> None:
    for spec in SPECS.values():
        other = replace(symmetric(spec), stem=replace(spec.stem, pool_padding="ignored"))
        assert list(Network(spec).state_dict()) == list(Network(other).state_dict())


def pooled(x: Tensor, padding: str) -> Tensor:
    """A 3x3/2 max-pool, pixel by pixel."""
    n, c, height, width = x.shape
    y = torch.empty(n, c, -(-height // 2), -(-width // 2), dtype=x.dtype)
    first = [0 if padding == "same" and size % 2 == 0 else -1 for size in (height, width)]
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            window = []
            for i in range(2 * row + first[0], 2 * row + first[0] + 3):
                for j in range(2 * column + first[1], 2 * column + first[1] + 3):
                    if 0 <= i < height and 0 <= j < width:
                        window.append(x[:, :, i, j])
                    elif padding == "zero":
                        window.append(torch.zeros(n, c, dtype=x.dtype))
            y[:, :, row, column] = torch.stack(window).amax(0)
    return y


@pytest.mark.parametrize("padding", ["ignored", "zero", "same"])
@pytest.mark.parametrize("size", [(6, 6), (7, 4), (1, 2)])
def test_a_stem_pools_what_its_convolution_gives(padding: Any, size: tuple[int, int]) -> None:
    stem = replace(RAW, kernel=1, stride=1, pool_padding=padding)
    model = build(replace(network("resnet8-preact"), stem=stem), 0).double()
    model.stem.conv.weight.data.neg_()
    x = images(2, *size).abs()
    x = x.neg() if bool(model.stem.conv.weight.sum() > 0) else x  # mostly below zero, where zeros would show
    assert torch.equal(model.stem(x), pooled(model.stem.conv(x), padding))
    first = model.stages[0].units[0]  # type: ignore[index, union-attr]
    assert isinstance(first, ResidualUnit)
    assert not isinstance(first.pre, nn.Identity)


def test_an_order_that_ends_in_a_norm_has_it_before_the_pool() -> None:
    stem = Stem(replace(network("resnet20-original"), stem=RAW)).double().eval()
    x = images(2, 12, 12)
    expected = F.max_pool2d(F.relu(stem.norm(stem.conv(x))), 3, 2, 1)
    assert torch.equal(stem(x), expected)


# --- every reader of a network follows ----------------------------------------------------------------------------


@every_spec
@pytest.mark.parametrize("size", [(32, 32), (27, 22)])
def test_a_folded_network_answers_the_same(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = used(name).eval(), images(2, *size)
    with torch.no_grad():
        expected = model(x)
    assert apart(inference.answering(model, "float32")(x), expected) < 1e-10
    single = model.float()
    for few in (x.numel(), 0):  # as one program where there is one, and by PyTorch's operations
        monkeypatch.setattr(inference, "FEW_PIXELS", {torch.float32: few})
        assert apart(inference.answering(single, "float32")(x.float()), expected) < 1e-4
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        unfolded = apart(single(x.float()).float(), expected)
    assert apart(inference.answering(single, "bfloat16")(x.float()), expected) < 2 * unfolded + 1e-2


@pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["keras cifar 1", "keras cifar 2", "same 3x3", "same 3x3 late"])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (2, 1)])
def test_few_images_are_one_call(name: str, size: tuple[int, int]) -> None:
    folded = folding.folded(used(name).float(), torch.float32)
    x = images(3, *size).float().contiguous(memory_format=torch.channels_last)
    for dtype, rounding in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        answer = program.answering(folded, dtype)
        assert (answer is not None) is native.program_takes(dtype)
        if answer is None:
            continue
        with torch.inference_mode():
            assert apart(answer(x), folded(x)) < rounding


@every_spec
def test_every_memory_plan_gives_the_same(name: str) -> None:
    def step(plan: MemoryPlan) -> dict[str, Tensor]:
        model = used(name).float()
        memory.set_plan(model, plan)
        x = images(4, 24, 23).float().contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(x), torch.arange(4))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}

    expected = step("plain")
    for plan in MEMORY_PLANS[1:]:
        found = step(plan)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), plan


@every_spec
def test_what_is_saved_is_what_was_predicted(name: str) -> None:
    model, x = used(name).float(), images(8, 32, 32).float().contiguous(memory_format=torch.channels_last)
    for plan in ("plain", "recompute"):
        memory.set_plan(model, plan)
        saved = Saved(model)
        with saved.counting():
            model(x)
        assert saved.bytes == pytest.approx(memory.predict(model.spec, 32, 8, "float32", plan)["saved_bytes"], rel=0.05)


def test_a_convolution_that_pads_by_size_is_counted_as_not_recomputed() -> None:
    spec = SPECS["same 3x3"]
    found, other = describe(spec)["fused"], describe(symmetric(spec))["fused"]
    assert found["recomputing"] == other["recomputing"] - 2  # one strided 3x3 in each of the last two stages
    assert found["convolutions"] == other["convolutions"]


@pytest.mark.parametrize("name", [*SPECS, *network_names()[:8], "resnet50-preact", "resnet18-original"])
def test_parts_of_a_batch_are_cut_by_the_largest_map(name: str) -> None:
    spec = SPECS[name] if name in SPECS else network(name)
    largest = 0

    def note(_: nn.Module, __: object, y: Tensor) -> None:
        nonlocal largest
        largest = max(largest, y.numel())

    model = meta(spec).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    x = torch.empty(1, 3, 32, 32, device="meta")
    model(x)
    assert inference._widest(spec, x) == largest


# Keras' page of applications and summaries: weights without moving averages. timm's own count.
COUNTS = {50: (25_568_360, 25_549_352), 101: (44_577_896, 44_541_480), 152: (60_236_904, 60_185_128)}


@pytest.mark.parametrize("depth", COUNTS)
def test_counts_are_those_of_the_libraries(depth: int) -> None:
    keras, timm = COUNTS[depth]
    for spec, parameters in ((peers.keras_resnet_v2(depth), keras), (peers.timm_resnetv2(depth), timm)):
        found = describe(spec)
        assert (found["parameters"], found["depth"], found["input"]) == (parameters, depth, [3, 224, 224])
        assert found["parts"][-2]["output"] == [2048, 7, 7]


@every_spec
def test_the_probe_measures_it(name: str) -> None:
    model = used(name)
    found = preresnet.probe(model, (images(4, 24, 24), torch.arange(4)))
    assert len(found.units) == sum(stage.num_units for stage in model.spec.stages)


def test_a_file_is_described_trained_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = replace(bottlenecks(stride_position="spatial"), in_channels=1)
    file, run = tmp_path / "keras.json", tmp_path / "run"
    file.write_text(to_json(spec))
    assert main(["describe", str(file), "--json"]) == 0
    assert from_json(NetSpec, json.dumps(json.loads(capsys.readouterr().out)["spec"])) == spec
    train = ["train", "digits/resnet20-preact", "--network", str(file), "--out", str(run), "--global-batch", "16"]
    short = ["--schedule.steps", "6", "--schedule.warmup-steps", "1"]
    assert main([*train, *short, "--data.image-size", "8", "--precision", "float32"]) == 0
    assert main(["evaluate", str(run)]) == 0
