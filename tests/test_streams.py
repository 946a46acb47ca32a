import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from preresnet.propagation.additions import Pass
from preresnet.propagation.probe import probe
from preresnet.propagation.streams import find


def passed(model: nn.Module, x: Tensor, **more: Any) -> tuple[Any, Pass]:
    taken = Pass()
    return find(model, (x,), {}, training=True, **more).run((x,), {}, taken), taken


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_additions_of_torchvision_are_its_blocks() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    state = copy.deepcopy(model.state_dict())
    output, taken = passed(model, images())
    assert [one.name for one in taken.additions] == [f"layer{s}.{b}" for s in range(1, 5) for b in range(2)]
    assert [one.factor for one in taken.additions] == [1, 1, None, 1, None, 1, None, 1]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(output, model(images()))  # in-place operations were replaced, not the network
    taps: dict[str, Tensor] = {}
    model.get_submodule("layer2.0.downsample").register_forward_hook(
        lambda _, __, y: taps.update(shortcut=y.detach().clone())
    )
    model.get_submodule("layer2.0.bn2").register_forward_hook(lambda _, __, y: taps.update(residual=y.detach().clone()))
    model(images())
    assert torch.equal(taken.additions[2].shortcut, taps["shortcut"])
    assert torch.equal(taken.additions[2].residual, taps["residual"])
    assert len(taken.active) == 17


def test_a_bottleneck_of_torchvision_is_probed() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=10).double()
    found = probe(model, (images().double(), torch.tensor([1, 2])))
    assert len(found.units) == 16
    assert max(found.agreement.values()) < 1e-11
    assert found.network == "ResNet"
    assert found.joins["factor"][1] == 1
    assert found.weights["layer4.2.conv3.weight"]["gradient"] > 0


def test_timm_preactivation_network() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'preresnet[peers]'")
    torch.manual_seed(0)
    model = timm.create_model("resnetv2_50", num_classes=10).double()
    found = probe(model, (images(64).double(), torch.tensor([1, 2])))
    assert found.units[0] == "stages.0.blocks.0"
    assert len(found.units) == 16
    assert max(found.agreement.values()) < 1e-11
    assert all(value < 1e-14 for run in found.pairs for row in run["deviation"] for value in row if value is not None)


def vision_transformer() -> nn.Module:
    size: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    model = torchvision.models.VisionTransformer(image_size=16, patch_size=8, num_classes=10, **size)
    nn.init.normal_(model.get_parameter("heads.head.weight"))  # which torchvision starts at 0
    return model


def swin() -> nn.Module:
    shape: dict[str, Any] = {
        "patch_size": [2, 2],
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": [2, 2],
    }
    return torchvision.models.SwinTransformer(**shape, num_classes=10)


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(48, 2, 16, batch_first=True, norm_first=norm_first)
    return nn.Sequential(nn.Flatten(2), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten())


@pytest.mark.parametrize(
    ("build", "size", "identity"),
    [
        (vision_transformer, (3, 16, 16), True),
        (swin, (3, 16, 16), True),
        (partial(encoder, True), (5, 6, 8), True),
        (partial(encoder, False), (5, 6, 8), False),  # a norm after every addition
    ],
    ids=["vit", "swin", "norm before", "norm after"],
)
def test_transformers_of_others_have_two_additions_a_layer(
    build: Callable[[], nn.Module], size: tuple[int, ...], identity: bool
) -> None:
    torch.manual_seed(0)
    found = probe(build(), torch.randn(2, *size))
    assert len(found.units) == 4
    assert found.joins["factor"] == [1.0] * 4
    assert max(found.agreement.values()) < 1e-5
    assert found.backward["gradient"][0] > 0  # type: ignore[operator]
    between = [value for value in found.forward["changed"] if value is not None]  # not between stages of Swin
    assert (max(between) == 0) == identity


class Layer(nn.Module):
    """A pre-norm layer of a transformer: two residual additions, and one inside the branch that is none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down, self.side = nn.Linear(width, 16), nn.Linear(16, width), nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        h = self.norm2(x)
        return x + self.down(torch.relu(self.up(h)) + self.side(h))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Parameter(torch.zeros(5, 8))
        self.layers = nn.ModuleList(Layer(8) for _ in range(3))
        self.head = nn.Linear(8, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.tokens(input_ids) + self.places
        if attention_mask is not None:
            x = x * attention_mask.unsqueeze(-1)
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x)}


def test_a_transformer_has_two_additions_a_layer() -> None:
    torch.manual_seed(0)
    ids = torch.randint(11, (3, 5))
    batch = {"input_ids": ids, "attention_mask": torch.ones(3, 5, dtype=torch.float64), "labels": ids}
    found = probe(Transformer().double(), batch)
    assert found.units == ("layers.0", "layers.0.2", "layers.1", "layers.1.2", "layers.2", "layers.2.2")
    assert found.joins["factor"] == [1.0] * 6
    assert max(found.agreement.values()) < 1e-12
    assert all(value < 1e-14 for row in found.pairs[0]["deviation"] for value in row if value is not None)


def test_named_units_are_x_plus_f() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).double()
    batch = images().double(), torch.tensor([1, 2])
    named = probe(model, batch, units=["layer1.1", "layer2.1"])
    assert named.units == ("layer1.1", "layer2.1")
    assert max(named.agreement.values()) < 1e-11
    # The block ends in a ReLU, which the name includes: its residual is ReLU(x + F) - x.
    assert named.forward["x_rms"][0] == pytest.approx(probe(model, batch).forward["x_rms"][1])


class Branching(nn.Module):
    """Python decides by a value, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x) if x.sum().item() > 0 else -self.unit(x)


class SomeCache:
    """What language models answer beside their logits, and no exported graph can return."""


class Caching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Linear(4, 4)

    def forward(self, x: Tensor, use_cache: bool = True) -> Any:
        y = x + self.unit(x)
        return (y, SomeCache()) if use_cache else y


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def test_what_was_found_and_what_to_name() -> None:
    x = images(8)
    model = plain()
    model(x)
    with pytest.raises(ValueError, match=r"no residual addition found in Sequential: of its 0 additions .* units="):
        probe(model, x)
    with pytest.raises(ValueError, match=r"torch.export cannot read Branching .* units="):
        probe(Branching(), torch.ones(2, 4))
    assert probe(Branching(), torch.ones(2, 4), units=["unit"]).units == ("unit",)
    with pytest.raises(ValueError, match=r"torch.export cannot read Caching .*add use_cache=False to the batch"):
        probe(Caching(), {"x": torch.ones(2, 4)})
    assert len(probe(Caching(), {"x": torch.ones(2, 4), "use_cache": False}).units) == 1
    with pytest.raises(ValueError, match=r"no module 'conv'; this network has 0, 1, 2, 3"):
        probe(model, x, units=["conv"])
    with pytest.raises(ValueError, match=r"unit '0' changes the shape from \(2, 3, 8, 8\) to \(2, 4, 6, 6\)"):
        probe(model, x, units=["0"])
    frozen = Transformer()
    frozen.requires_grad_(False)
    frozen.head.requires_grad_(True)
    with pytest.raises(ValueError, match=r"x of unit 'layers.0' has no gradient"):
        probe(frozen, {"input_ids": torch.randint(11, (3, 5))})


def test_a_loss_that_is_not_finite_is_named() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    model.fc.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="the loss is nan, though all units are finite"):
        probe(model, images())
