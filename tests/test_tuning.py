"""Networks that start from others: what is taken, what stays as it is, and how fast each part learns."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from own_photos import CLASSES, SMALL, fill, result
from torch import nn

import preresnet
from preresnet import trained
from preresnet.cli import main
from preresnet.data import streaming
from preresnet.data.augment import Normalisation
from preresnet.model import weights
from preresnet.paper.networks import network
from preresnet.recipe import SGD, ImagesInMemory, Muon, Photographs
from preresnet.spec import Dialect, UserError
from preresnet.train import parts, source
from preresnet.train.averaging import Average
from preresnet.train.optim import build_optimizer, set_lr, update

DATA = Photographs(name="images", image_size=32, test_crops=(40,), test_sides=(40,))


def stored(path: Path, classes: tuple[str, ...] = CLASSES, seed: int = 3, **dialect: float) -> Path:
    """Weights of a small network that was trained on some classes."""
    spec = network("resnet8-preact", num_classes=len(classes))
    model = preresnet.build(replace(spec, dialect=replace(Dialect(), **dialect)), seed).train()
    for _ in range(3):
        model(torch.randn(8, 3, 16, 16))
    mean = Normalisation(torch.full((1, 1, 3), 0.25), torch.full((3,), 0.125))
    weights.save(path, model.eval(), trained.metadata(DATA, classes, mean))
    return path


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", dict.fromkeys(CLASSES, 6))


def run(*arguments: str | Path) -> int:
    return main([*SMALL, *map(str, arguments)])


def of(path: Path) -> dict[str, torch.Tensor]:
    return weights.load(path)[0].state_dict()


def test_the_same_classes_in_another_order_keep_the_classifier(tmp_path: Path) -> None:
    other = tuple(reversed(CLASSES))
    found = source.open_source(stored(tmp_path / "w.safetensors", other))
    model = preresnet.build(network("resnet8-preact", num_classes=3), 0)
    said = source.take(model, CLASSES, found)
    total = len(model.state_dict())
    assert said == [f"{total} of {total} tensors taken from {tmp_path / 'w.safetensors'}"]
    x = torch.randn(2, 3, 16, 16)
    there = found.network.model(x)
    torch.testing.assert_close(model.eval()(x), there.flip(1))


def test_other_classes_get_a_new_classifier_and_that_is_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path / "w.safetensors", ("ant", "bee", "dog", "elk"))
    out = tmp_path / "run"
    options = ["--data-root", photos, "--weights", path, "--schedule.lr", "1e-12", "--epochs", "1", "--average", "0"]
    assert run(*options, "--out", out) == 0
    said = capsys.readouterr().err
    assert "not head.linear.weight and head.linear.bias, because the classes differ ('cow' is here alone)" in said
    before, after = of(path), of(out)
    for name, tensor in after.items():
        if name.endswith(("conv.weight", "conv1.weight", "conv2.weight")):
            torch.testing.assert_close(tensor, before[name])
    assert after["head.linear.weight"].shape == (3, 64)
    digest = source.open_source(path).sha256
    for file in ("run.json", "result.json"):
        assert json.loads((out / file).read_text())["weights"] == {"path": str(path), "sha256": digest}
    mean = trained.open_weights(out).normalisation
    assert mean.mean.flatten().tolist() == [0.25] * 3  # the source's
    assert mean.std.tolist() == [0.125] * 3


def test_a_resumed_run_needs_its_source_no_more_and_takes_no_other(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = stored(tmp_path / "w.safetensors"), tmp_path / "run"
    options = ["--data-root", photos, "--epochs", "1", "--out", out]
    assert run(*options, "--weights", path) == 0
    before = (out / "weights.safetensors").read_bytes()
    other = stored(tmp_path / "other.safetensors", seed=4)
    capsys.readouterr()
    assert run(*options, "--weights", other, "--resume") == 2
    assert "is not what the run was started from (SHA-256" in capsys.readouterr().err
    path.unlink()
    assert run(*options, "--resume") == 0
    assert of(out).keys() == weights.load(out)[0].state_dict().keys()
    assert len(before) == (out / "weights.safetensors").stat().st_size
    plain = tmp_path / "plain"
    assert run("--data-root", photos, "--epochs", "1", "--out", plain) == 0
    assert run("--data-root", photos, "--epochs", "1", "--out", plain, "--resume", "--weights", other) == 2
    assert "was started without --weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("images/resnet14-preact", "holds another network than the recipe asks for (stages"),
        ("images/resnet8-original", "holds another network than the recipe asks for (unit"),
    ],
)
def test_another_network_is_refused(
    recipe: str, words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path / "w.safetensors")
    options = ["--data-root", str(photos), "--epochs", "1", "--out", str(tmp_path / "run"), "--weights", str(path)]
    assert main(["train", recipe, *SMALL[2:], *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_details_of_the_network_are_the_sources(tmp_path: Path) -> None:
    found = source.open_source(stored(tmp_path / "w.safetensors", norm_eps=1e-3))
    spec, said = source.fitted(network("resnet8-preact", num_classes=7), found)
    assert spec.dialect.norm_eps == 1e-3
    assert spec.num_classes == 7
    assert said == ["the details of the network (its dialect) are those of the source"]


def test_a_mean_image_becomes_a_mean_a_channel() -> None:
    model = preresnet.build(network("resnet8-preact"), 0)
    image = Normalisation(torch.rand(32, 32, 3), torch.ones(3))
    found = trained.Trained(model, ("a",), ImagesInMemory(name="cifar10"), image)
    torch.testing.assert_close(source.normalisation(found, DATA).mean.flatten(), image.mean.mean((0, 1)))
    assert source.normalisation(found, ImagesInMemory(name="cifar10")) is image
    assert source.normalisation(replace(found, normalisation=streaming.normalisation()), DATA).mean.shape == (1, 1, 3)


def test_frozen_parts_stay_as_they_are_with_their_norms(photos: Path, tmp_path: Path) -> None:
    path, out = stored(tmp_path / "w.safetensors"), tmp_path / "run"
    options = ["--data-root", photos, "--weights", path, "--freeze", "stem,stages.0", "--epochs", "2"]
    assert run(*options, "--average", "0.2", "--out", out) == 0
    before, after = of(path), of(out)
    for name, tensor in after.items():
        same = torch.equal(tensor, before[name])
        if name.startswith(("stem.", "stages.0.")):
            assert same, name
        elif not name.endswith("num_batches_tracked"):
            assert not same, name
    assert json.loads((out / "recipe.json").read_text())["freeze"] == "stem,stages.0"


@pytest.mark.parametrize(
    ("freeze", "words"),
    [
        ("stages.9", "the network has no part 'stages.9'; there are stem, stages.0, stages.1, stages.2, head"),
        ("stem,stages,head", "leaves nothing to train"),
    ],
)
def test_a_part_that_is_not_there_is_refused(
    freeze: str, words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("--data-root", photos, "--epochs", "1", "--freeze", freeze, "--out", out) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("optim", [SGD(decay_all=False), Muon()])
@pytest.mark.parametrize("order", ["preact", "original", "bn-after", "relu-before", "relu-only"])
def test_frozen_steps_are_those_of_the_plain_path(optim: SGD | Muon, order: str) -> None:
    """With our own passes, a network whose first norms rest computes what PyTorch's operations compute."""
    found = []
    for fused in (None, False):
        model = preresnet.build(network(f"resnet8-{order}"), 0)
        for module in model.modules():
            if hasattr(module, "fused"):
                module.fused = fused  # type: ignore[assignment]
        model = model.to(memory_format=torch.channels_last)
        parts.freeze_parameters(model, "stem,stages.0")
        optimizer = build_optimizer(model, optim)
        set_lr(optimizer, 0.05)
        torch.manual_seed(0)
        x = torch.randn(16, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        losses = []
        for _ in range(3):
            model.train()
            parts.keep_frozen(model, "stem,stages.0")
            losses.append(update(model, optimizer, x, torch.arange(16) % 10, None, "float32")[0].item())
        found.append((losses[-1], model.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name in found[0][1]:
        torch.testing.assert_close(found[0][1][name], found[1][1][name], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("optim", [SGD(), Muon(orthogonal_scale=0.5)])
def test_each_stage_learns_at_its_share_of_the_rate(optim: SGD | Muon) -> None:
    model = preresnet.build(network("resnet8-preact"), 0)
    optimizer = build_optimizer(model, optim, stage_rate=0.5)
    set_lr(optimizer, 0.8)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        behind = {"stem": 4, "stages.0": 3, "stages.1": 2, "stages.2": 1, "head": 0}[
            name[:8] if name.startswith("stages") else name.split(".")[0]
        ]
        scale = 0.5 if isinstance(optim, Muon) and p.ndim == 4 else 1.0
        assert rate[id(p)] == pytest.approx(0.8 * 0.5**behind * scale), name


def test_the_average_is_exponential_and_its_statistics_are_those_of_the_images() -> None:
    model = preresnet.build(network("resnet8-preact"), 0)
    average = Average(model, decay=0.9)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for step in range(1, 30):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        average.update(model, step)
        share = 1 - min(0.9, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            expected[name] += share * (p.detach().double() - expected[name])
    for name, p in average.model.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-4, atol=1e-5)
    x = torch.randn(12, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    average.measure([(x[:6], torch.zeros(6)), (x[6:], torch.zeros(6))], "float32")
    first = next(module for module in average.model.modules() if hasattr(module, "running_mean"))
    seen: list[torch.Tensor] = []
    norm_input = average.model.stem.conv(x)
    for part in norm_input.split(6):
        seen.append(part.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in average.model.modules())
    assert isinstance(first, nn.Module)


def test_a_trained_run_is_a_source(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("--data-root", photos, "--epochs", "2", "--out", first) == 0
    fill(photos, {"ant": 6}, first=40)
    assert run("--data-root", photos, "--epochs", "1", "--weights", first, "--stage-rate", "0.5", "--out", second) == 0
    assert "tensors taken from" in capsys.readouterr().err
    assert result(second)["weights"]["path"] == str(first / "weights.safetensors")  # type: ignore[index]
    shutil.rmtree(first)
    with pytest.raises(UserError, match="no weights at"):
        source.open_source(first / "weights.safetensors")
