"""Our networks as timm's models: made by name, as features, with the weights that come with the package."""

from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor

import preresnet
import preresnet.exchange.timm as ours
from preresnet.model.network import Stage
from preresnet.recipe import DATA_SETS
from preresnet.spec import UserError


def create(name: str, **arguments: Any) -> Any:
    return timm.create_model(name, **arguments)


def pixels(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("resnet164-preact", "cifar10", "preresnet164_cifar10"),
        ("resnet110-original", "cifar100", "resnet110_original_cifar100"),
        ("resnet110-original-scale-0.5-1", "cifar10", "resnet110_original_scale_0p5_1_cifar10"),
        ("resnet200-preact", "imagenet", "preresnet200_imagenet"),
    ],
)
def test_names(name: str, data: str, expected: str) -> None:
    assert ours.timm_name(name, data) == expected
    assert timm.is_model(expected)
    found = timm.models.get_pretrained_cfg(expected)
    assert found is not None
    assert found.num_classes == DATA_SETS[data].classes


def test_no_name_stands_for_two_networks() -> None:
    names = [ours.timm_name(*one) for one in ours._names()]
    assert len(names) == len(set(names))
    assert set(names) == {name for name in timm.list_models() if name.endswith(("_cifar10", "_cifar100", "_imagenet"))}


def test_it_is_the_same_network() -> None:
    found = create("preresnet20_cifar100").eval()
    same = preresnet.create_model("resnet20-preact", num_classes=100)
    same.load_state_dict(found.state_dict())
    torch.testing.assert_close(found(pixels()), same.eval()(pixels()), rtol=0, atol=0)
    assert found.training is False
    scale = next(
        tensor for name, tensor in found.state_dict().items() if name == "stages.0.units.0.residual.conv1.weight"
    )
    assert float(scale.std()) == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)  # our initial weights


def test_the_weights_that_come_with_the_package() -> None:
    assert "preresnet20_cifar10" in timm.list_pretrained()
    found = create("preresnet20_cifar10", pretrained=True).eval()
    torch.testing.assert_close(found(pixels()), preresnet.load("cifar10/resnet20-preact")(pixels()), rtol=0, atol=0)
    settings = resolve_model_data_config(found)
    assert settings["input_size"] == (3, 32, 32)
    assert settings["std"] == (1.0, 1.0, 1.0)
    assert found.pretrained_cfg["label_names"][3] == "cat"


def test_other_classes_and_channels_keep_the_rest() -> None:
    full = create("preresnet20_cifar10", pretrained=True)
    for found in (
        create("preresnet20_cifar10", pretrained=True, num_classes=7),
        create("preresnet20_cifar10", pretrained=True, num_classes=0),
        create("preresnet20_cifar10", pretrained=True, in_chans=1),
    ):
        name = "stages.2.units.2.residual.conv1.weight"
        assert torch.equal(found.state_dict()[name], full.state_dict()[name])
        assert found(pixels(found.spec.in_channels)).shape == (2, found.num_classes or 64)
    found.reset_classifier(3)
    assert found.get_classifier().out_features == found.num_classes == 3
    assert found.forward_head(found.forward_features(pixels(1))).shape == (2, 3)
    assert found.forward_head(found.forward_features(pixels(1)), pre_logits=True).shape == (2, found.num_features)


def test_features_are_the_pyramid() -> None:
    found = create("preresnet20_cifar10", pretrained=True, features_only=True).eval()
    expected = preresnet.load("cifar10/resnet20-preact").pyramid(pixels())
    for one, other, width, reduction in zip(
        found(pixels()), expected, found.feature_info.channels(), found.feature_info.reduction(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert one.shape == (2, width, 32 // reduction, 32 // reduction)
    some = create("resnet18_original_imagenet", features_only=True, out_indices=(1, -1)).eval()
    assert [tuple(one.shape) for one in some(torch.zeros(1, 3, 64, 64))] == [(1, 128, 8, 8), (1, 512, 2, 2)]


def test_intermediates() -> None:
    model = create("preresnet20_cifar10").eval()
    last, found = model.forward_intermediates(pixels(), indices=2)
    assert len(found) == 2
    torch.testing.assert_close(last, model.forward_features(pixels()), rtol=0, atol=0)
    assert not torch.equal(last, found[-1])
    (first,) = model.forward_intermediates(pixels(), indices=[0], stop_early=True, intermediates_only=True)
    assert first.shape == (2, 16, 32, 32)
    for wrong in ({"output_fmt": "NLC"}, {"stop_early": True}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            model.forward_intermediates(pixels(), **wrong)


def test_recomputed_units_give_the_same_gradient() -> None:
    model = create("preresnet20_cifar10")
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enabled)
        assert all(stage.segment == enabled for stage in model.stages if isinstance(stage, Stage))
        model(pixels()).sum().backward()
        gradients.append(model.stem.conv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_rates_fall_with_depth() -> None:
    model = create("preresnet20_cifar10")
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(one): group["lr_scale"] for group in groups for one in group["params"]}
    along = [scale[id(model.get_parameter(f"stages.{stage}.units.0.residual.conv1.weight"))] for stage in range(3)]
    assert all(earlier < later for earlier, later in pairwise([scale[id(model.stem.conv.weight)], *along]))


def test_another_pooling_is_refused() -> None:
    with pytest.raises(UserError, match="global_pool='max'"):
        create("preresnet20_cifar10", global_pool="max")
