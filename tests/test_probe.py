import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import preresnet
from preresnet.model import memory
from preresnet.model.network import Network
from preresnet.model.preactivation import Norm
from preresnet.model.units import ResidualUnit
from preresnet.paper.networks import ORDERS, SHORTCUTS
from preresnet.propagation.probe import Probe, probe

KINDS = [f"resnet20-{order}" for order in ORDERS]
KINDS += ["resnet20-plain", "resnet29-preact-bottleneck", "resnet20-preact-projected", "resnet20-preact-conv1x1"]
KINDS += [f"resnet20-original-{name}" for name in SHORTCUTS if name[-2:] not in ("-1", "-2", "-3", "-4", "-7", "-8")]


def made(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> Network:
    return preresnet.create_model(name, seed=0, **more).to(dtype)


def images(n: int = 6, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=source, dtype=torch.float64).to(dtype), torch.arange(n) % 10


def numbers(value: Any) -> list[float]:
    """All numbers of a probe, in order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list | tuple):
        return [number for one in value for number in numbers(one)]
    return [float(value)] if isinstance(value, int | float) else []


# --- both ways agree -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", KINDS)
def test_eq_5_both_ways_give_the_same_parts(name: str, dtype: torch.dtype, limit: float) -> None:
    found = probe(made(name, dtype), images(dtype=dtype))
    assert max(found.agreement.values()) < limit
    assert set(found.agreement) == {"gradient", "straight", "rest"}
    assert all(value is not None and value > 0 for value in found.backward["gradient"])


def test_the_agreement_is_measured_and_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    from preresnet.propagation import backward

    product = backward._product
    monkeypatch.setattr(backward, "_product", lambda y, x, v: product(y, x, v) * (1 if y is x else 1.001))
    assert probe(made("resnet20-original"), images()).agreement["gradient"] > 1e-3


# --- known answers -------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """x_{l+1} = a x_l + b x_l Q_l with orthogonal Q_l, then a sum: every norm is known."""

    def __init__(self, a: Sequence[float], b: float, width: int = 5, same: bool = False) -> None:
        super().__init__()
        self.a, self.b = a, b
        torch.manual_seed(0)
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in a)
        for one in self.maps:
            assert isinstance(one, nn.Linear)
            nn.init.eye_(one.weight) if same else nn.init.orthogonal_(one.weight)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for a, one in zip(self.a, self.maps, strict=True):
            x = a * x + self.b * one(x)
        return x


def summed(output: Tensor, _: Any) -> Tensor:
    return output.sum(1).mean()


def test_a_linear_network_has_the_parts_of_eq_8_in_closed_form() -> None:
    a = [0.5, 0.9, 1.1, 0.8]
    found = probe(Scaled(a, 1.0, same=True), (torch.randn(3, 5, dtype=torch.float64), None), loss=summed)
    end = math.sqrt(5)  # the gradient of a sum over 5 elements
    for unit in range(5):
        straight = end * math.prod(a[unit:])
        whole = end * math.prod(one + 1 for one in a[unit:])  # each unit multiplies by a + 1
        assert found.backward["straight"][unit] == pytest.approx(straight, rel=1e-12)
        assert found.backward["gradient"][unit] == pytest.approx(whole, rel=1e-12)
        assert found.backward["rest"][unit] == pytest.approx(whole - straight, rel=1e-12)
    assert found.joins["factor"] == pytest.approx(a, rel=1e-12)
    assert found.joins["product"] == pytest.approx([math.prod(a[unit:]) for unit in range(4)], rel=1e-12)
    assert found.backward["cosine"][:4] == pytest.approx([1, 1, 1, 1])


def test_parts_that_cancel_are_seen() -> None:
    found = probe(
        Scaled([1.0, 1.0], -1.0 + 1e-6, same=True), (torch.randn(4, 5, dtype=torch.float64), None), loss=summed
    )
    assert found.backward["cancelled_share"][:2] == [1.0, 1.0]
    assert found.backward["cosine"][0] == pytest.approx(-1)
    assert found.backward["rest_along_straight"][1] == pytest.approx(-1, abs=1e-5)
    open_way = probe(Scaled([1.0, 1.0], 0.1), (torch.randn(4, 5, dtype=torch.float64), None), loss=summed)
    assert open_way.backward["cancelled_share"][:2] == [0.0, 0.0]


@pytest.mark.parametrize("residual", ["1", "0.5"])
def test_the_product_of_constant_factors_is_exact(residual: str) -> None:
    found = probe(made(f"resnet20-original-scale-0.5-{residual}", torch.float64), images(dtype=torch.float64))
    assert found.joins["factor"] == pytest.approx([0.5] * 9, rel=1e-12)
    assert found.joins["product"] == pytest.approx([0.5 ** (9 - unit) for unit in range(9)], rel=1e-12)


def test_a_gate_and_dropout_show_the_share_that_they_keep() -> None:
    gate = probe(made("resnet20-original-shortcut-gate-6", torch.float64), images(dtype=torch.float64))
    for factor in gate.joins["factor"]:
        assert factor is not None
        assert 0.95 < factor < 1  # sigmoid(6) = 0.9975 where W_g = 0; W_g is drawn
    dropped = probe(made("resnet20-original-dropout-0.5"), images(n=32))
    assert dropped.joins["factor"] == pytest.approx([0.5] * 9, abs=0.05)
    assert probe(made("resnet20-plain"), images()).joins["product"] == [0.0] * 9
    turned = probe(made("resnet20-original-conv1x1"), images())
    assert turned.joins["factor"] == [None] * 9
    assert all(gain is not None and gain > 0.1 for gain in turned.joins["gain"])


def test_without_residuals_all_gradient_is_straight_and_eq_4_holds() -> None:
    model = made("resnet20-preact", torch.float64)
    for unit in model.modules():
        if isinstance(unit, ResidualUnit):
            [module for module in unit.residual if isinstance(module, nn.Conv2d)][-1].weight.data.zero_()
    found = probe(model, images(dtype=torch.float64))
    assert found.backward["gradient"] == found.backward["straight"]
    assert set(found.backward["rest"]) == {0.0}
    stage = found.backward["gradient"][:3]
    assert stage[0] == stage[1] == stage[2]


def test_eq_4_holds_for_every_pair_where_nothing_follows_the_addition() -> None:
    found = probe(made("resnet20-preact", torch.float64), images(dtype=torch.float64))
    assert [len(run["units"]) for run in found.pairs] == [3, 2, 2]  # a stage's first unit changes dimensions
    for run in found.pairs:
        for start, row in enumerate(run["deviation"]):
            assert all(value is None for value in row[: start + 1])
            assert all(value < 1e-14 for value in row[start + 1 :])


def test_the_deviation_of_a_pair_is_that_of_its_signals() -> None:
    model, (x, y) = made("resnet20-original", torch.float64), images(dtype=torch.float64)
    with torch.no_grad():
        taps = copy.deepcopy(model).taps(x)
    name = "stages.0.units."
    residuals = taps[f"{name}0.residual"] + taps[f"{name}1.residual"]
    start, end = taps[f"{name}0.input"], taps[f"{name}2.input"]
    expected = float((end - start - residuals).norm() / end.norm())
    found = probe(model, (x, y))
    assert found.pairs[0]["deviation"][0][2] == pytest.approx(expected, rel=1e-9)
    assert expected > 0.1
    total = taps[f"{name}1.sum"]
    assert found.forward["changed"][1] == pytest.approx(float(total.clamp(max=0).norm() / total.norm()), rel=1e-9)


def test_eq_7_holds_with_scaled_residuals() -> None:
    found = probe(Scaled([0.5, 0.9, 1.1], 0.7), (torch.randn(3, 5, dtype=torch.float64), None), loss=summed)
    assert found.shortcuts == ("0.5 x", "0.9 x", "1.1 x")
    assert found.joins["factor"] == [0.5, 0.9, 1.1]
    (run,) = found.pairs
    assert all(value < 1e-14 for row in run["deviation"] for value in row if value is not None)
    scaled = made("resnet20-relu-before-scale-0.5-0.5", torch.float64)
    for run in probe(scaled, images(dtype=torch.float64)).pairs:
        assert all(value < 1e-14 for row in run["deviation"] for value in row if value is not None)


def test_statistics_are_those_of_the_signals() -> None:
    model, (x, y) = made("resnet20-original", torch.float64), images(dtype=torch.float64)
    with torch.no_grad():
        taps = copy.deepcopy(model).taps(x)
    found = probe(model, (x, y))
    total = taps["stages.1.units.1.sum"]
    unit = found.units.index("stages.1.units.1")
    assert found.forward["sum_mean"][unit] == pytest.approx(float(total.mean()))
    assert found.forward["sum_variance"][unit] == pytest.approx(float(total.var(correction=0)))
    assert found.forward["sum_rms"][unit] == pytest.approx(float(total.square().mean().sqrt()))
    assert found.forward["sum_negative_share"][unit] == pytest.approx(float((total < 0).double().mean()))


def test_weight_gradients_dead_channels_and_unmoved_norms() -> None:
    model, (x, y) = made("resnet20-preact", torch.float64), images(dtype=torch.float64)
    norm = model.stages[0].units[1].pre  # type: ignore[index, union-attr]
    assert isinstance(norm, Norm)
    norm.bias.data[:3] = -1000
    norm.weight.data[0] = 0.9
    found = probe(model, (x, y))
    assert found.dead["stages.0.units.1.pre"] == {"dead": 3, "channels": 16}
    assert found.norms["stages.0.units.1.pre"] == {"unmoved": 15, "scales": 16}
    nn.functional.cross_entropy(model(x), y).backward()
    gradient = model.stem.conv.weight.grad
    assert gradient is not None
    assert found.weights["stem.conv.weight"]["gradient"] == pytest.approx(float(gradient.norm()), rel=1e-9)


# --- what a probe does not depend on, and what it leaves alone -------------------------------------------------------


def test_results_do_not_depend_on_how_images_are_split_into_batches() -> None:
    model = made("resnet20-original", torch.float64)
    x, y = images(8, dtype=torch.float64)
    model(x)  # running statistics that are not those of the start
    whole = probe(model, (x, y), training=False)
    parts = probe(model, (x[:2], y[:2]), (x[2:3], y[2:3]), (x[3:], y[3:]), training=False)
    leave = {"agreement"}
    one, other = ({k: v for k, v in found.as_dict().items() if k not in leave} for found in (whole, parts))
    assert numbers(one) == pytest.approx(numbers(other), rel=1e-9, abs=1e-12)
    assert whole.images == parts.images == 8


def test_mean_and_variance_survive_a_large_offset_in_float32() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(50, 50)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x)

    x = 1000 + torch.randn(400, 50, generator=torch.Generator().manual_seed(0))
    found = probe(Shifted(), (x, None), loss=summed)
    assert found.forward["x_variance"][0] == pytest.approx(float(x.double().var(correction=0)), rel=1e-6)


@pytest.mark.parametrize("name", ["resnet20-original-dropout-0.5", "resnet20-preact"])
def test_probing_never_changes_the_model(name: str) -> None:
    model = made(name)
    model.stem.conv.weight.requires_grad_(False)
    model.eval()
    model.stages[0].train()
    torch.manual_seed(5)
    before, state, random = (
        dict(model.state_dict(keep_vars=True)),
        copy.deepcopy(model.state_dict()),
        torch.get_rng_state(),
    )
    modes = [module.training for module in model.modules()]
    joins = list(model.modules())
    probe(model, images(), images(4))
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict(keep_vars=True)
    assert all(after[key] is before[key] and torch.equal(after[key], state[key]) for key in state)
    assert [module.training for module in model.modules()] == modes
    assert all(one is other for one, other in zip(model.modules(), joins, strict=True))
    assert all(not (module._forward_hooks or module._forward_pre_hooks) for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


def test_fused_operations_and_memory_plans_do_not_matter() -> None:
    model, batch = made("resnet20-preact"), images()
    batch = (batch[0].contiguous(memory_format=torch.channels_last), batch[1])
    plain = probe(model, batch)
    memory.set_plan(model, "sqrt")
    again = probe(model.to(memory_format=torch.channels_last), batch)  # type: ignore[call-overload]
    assert plain.backward["gradient"] == pytest.approx(again.backward["gradient"], rel=1e-3)
    assert [stage.segment for stage in model.stages] == [2, 2, 2]


def test_the_same_probe_twice_is_the_same() -> None:
    model = made("resnet20-original-dropout-0.5")
    one, other = probe(model, images()), probe(model, images())
    assert one == other
    assert isinstance(one, Probe)
    assert probe(model, images(), seed=1) != one


# --- what cannot be probed --------------------------------------------------------------------------------------------


def test_bad_input_gets_a_sentence() -> None:
    model = made("resnet20-original")
    with pytest.raises(ValueError, match="no batch given"):
        probe(model)
    with pytest.raises(ValueError, match="a batch of type str; give images"):
        probe(model, "cat")
    with pytest.raises(ValueError, match="input of shape"):
        probe(model, torch.randn(2, 1, 8, 8))
    model.stages[1].units[1].residual.conv1.weight.data[0] = math.nan  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"the residual of unit 'stages.1.units.1' \(number 5 of 9\) is not finite"):
        probe(model, images())
    x, y = images()
    with pytest.raises(ValueError, match=r"x of unit 'stages.0.units.0' \(number 1 of 9\) is not finite"):
        probe(made("resnet20-original"), (x * math.nan, y))
