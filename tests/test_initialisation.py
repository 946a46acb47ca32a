import math

import pytest
import torch
from torch import nn

import preresnet
from preresnet.model.network import initialise
from preresnet.model.preactivation import Norm
from preresnet.model.shortcuts import Gate


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_seed_decides_all_weights_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    one = preresnet.create_model("resnet20-preact", seed=7)
    torch.manual_seed(2)
    assert same(one, preresnet.create_model("resnet20-preact", seed=7))
    assert not same(one, preresnet.create_model("resnet20-preact", seed=8))


def test_without_a_seed_the_default_generator_decides() -> None:
    torch.manual_seed(1)
    one = preresnet.create_model("resnet20-preact")
    two = preresnet.create_model("resnet20-preact")
    torch.manual_seed(1)
    assert same(one, preresnet.create_model("resnet20-preact"))
    assert not same(one, two)


def test_wrapping_does_not_change_what_is_drawn() -> None:
    bare = preresnet.create_model("resnet8-preact", seed=0)
    wrapped = nn.Sequential(preresnet.create_model("resnet8-preact", seed=1))
    initialise(wrapped, torch.Generator().manual_seed(0))
    assert same(bare, wrapped[0])


@pytest.mark.parametrize("name", ["resnet56-preact", "resnet29-original", "resnet18-original"])
def test_he_initialisation(name: str) -> None:
    model = preresnet.create_model(name, seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            scaled = module.weight.detach() * math.sqrt(fan_out / 2)
            tolerance = 5 / math.sqrt(scaled.numel())  # five standard errors of a mean; a deviation's is smaller
            assert scaled.mean().abs() < tolerance
            assert (scaled.std() - 1).abs() < tolerance
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert module.bias.abs().max() == 0
        elif isinstance(module, Norm):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


def test_gates_start_at_their_bias() -> None:
    model = preresnet.create_model("resnet8-original-exclusive-gate-6", seed=0)
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    assert len(gates) == 3
    assert all(gate.bias.eq(-6).all() for gate in gates)


@pytest.mark.parametrize(
    "name", ["resnet8-preact", "resnet11-original", "resnet18-relu-only", "resnet8-original-conv1x1"]
)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (33, 20), (64, 64)])
def test_any_size_of_input(name: str, height: int, width: int) -> None:
    model = preresnet.create_model(name, num_classes=4, in_channels=2, seed=0).eval()
    assert model(torch.randn(3, 2, height, width)).shape == (3, 4)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 32)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = preresnet.create_model("resnet8-preact", seed=0)
    with pytest.raises(ValueError, match=r"input of shape \(.*\); this network takes \(n, 3, h, w\)"):
        model(torch.randn(shape))


def test_features_and_classifier_are_the_network() -> None:
    model = preresnet.create_model("resnet8-preact", seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 8, 8)
    assert features.min() >= 0
    assert torch.equal(model.head.classify(features), model(x))


def test_taps_name_every_intermediate_and_leave_no_hook() -> None:
    model = preresnet.create_model("resnet8-preact", seed=0)
    names = list(model.taps(torch.randn(2, 3, 16, 16)))
    units = [f"stages.{stage}.units.0" for stage in range(3)]
    inner = [f"{unit}{part}" for unit in units for part in (".input", ".residual", ".sum", "")]
    assert names == ["stem", *inner, "head.norm", "logits"]
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="input of shape"):
        model.taps(torch.randn(2, 4, 16, 16))
    assert not any(module._forward_hooks for module in model.modules())


def test_tensor_names_are_public() -> None:
    names = preresnet.create_model("resnet20-preact", seed=0).state_dict().keys()
    for name in ("stem.conv.weight", "stages.1.units.0.residual.conv1.weight", "head.norm.bias", "head.linear.weight"):
        assert name in names
