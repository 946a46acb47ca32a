"""The paper's identities, and the order of what is executed, measured on the networks themselves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from preresnet.model.network import Network, build, set_fused
from preresnet.model.preactivation import Norm
from preresnet.model.shortcuts import Gate, GatedJoin, Mask, PlainJoin, Projection, ZeroPad
from preresnet.model.units import ResidualUnit
from preresnet.paper.networks import ORDERS, network
from preresnet.spec import (
    ConstantScale,
    Conv1x1,
    Dialect,
    Dropout,
    ExclusiveGate,
    Identity,
    NetSpec,
    Shortcut,
    ShortcutOnlyGate,
    StageSpec,
    StemSpec,
    UnitKind,
    UnitSpec,
)

IDENTITY = Identity()
KINDS: tuple[UnitKind, ...] = ("basic", "bottleneck", "single")


def tiny(
    order: str = "preact", kind: UnitKind = "basic", shortcut: Shortcut = IDENTITY, units: int = 4, **dialect: Any
) -> NetSpec:
    return NetSpec(
        stem=StemSpec(width=8),
        stages=(StageSpec(num_units=units, width=8), StageSpec(num_units=2, width=16, stride=2)),
        unit=UnitSpec(kind=kind, order=ORDERS[order], shortcut=shortcut),
        dialect=Dialect(**dialect),
    )


def made(spec: NetSpec, seed: int = 0) -> Network:
    """In float64, with norms that are not the identity."""
    model = build(spec, seed).double()
    source = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Norm):
            for tensor in (module.weight, module.bias):
                tensor.data.add_(0.3 * torch.randn(tensor.shape, generator=source, dtype=torch.float64))
    return model


def images(n: int = 4, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def first_stage(model: Network) -> list[ResidualUnit]:
    return list(model.stages[0].units)  # type: ignore[arg-type]


def last_convolution(unit: ResidualUnit) -> nn.Conv2d:
    return [module for module in unit.residual if isinstance(module, nn.Conv2d)][-1]


# --- the equations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["preact", "relu-only", "relu-before"])
def test_eq_4_any_feature_is_an_earlier_one_plus_residuals(order: str, kind: UnitKind) -> None:
    taps = made(tiny(order, kind)).taps(images())
    for first in range(4):
        total = taps[f"stages.0.units.{first}.input"]
        for unit in range(first, 4):
            total = total + taps[f"stages.0.units.{unit}.residual"]
            assert torch.allclose(taps[f"stages.0.units.{unit}"], total, rtol=1e-12, atol=1e-12)


def test_the_original_unit_departs_from_eq_4_by_what_its_relu_cuts() -> None:
    taps = made(tiny("original")).taps(images())
    units = [f"stages.0.units.{number}" for number in range(4)]
    cut = sum(taps[f"{unit}.sum"].clamp(max=0).neg() for unit in units)
    expected = taps[f"{units[0]}.input"] + sum(taps[f"{unit}.residual"] for unit in units) + cut
    assert torch.allclose(taps[units[-1]], expected, rtol=1e-12, atol=1e-12)
    assert cut.max() > 0  # type: ignore[union-attr]


def test_relu_before_addition_never_decreases_the_signal() -> None:
    taps = made(tiny("relu-before")).taps(images())
    for number in range(4):
        unit = f"stages.0.units.{number}"
        assert (taps[unit] >= taps[f"{unit}.input"]).all()


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1])
def test_eq_7_constant_scaling_over_k_units_multiplies_by_its_power(factor: float) -> None:
    model = made(tiny("preact", shortcut=ConstantScale(shortcut=factor)))
    for unit in first_stage(model):
        last_convolution(unit).weight.data.zero_()
    taps = model.taps(images())
    for k in range(1, 5):
        expected = factor**k * taps["stages.0.units.0.input"]
        assert torch.allclose(taps[f"stages.0.units.{k - 1}"], expected, rtol=1e-13)


def test_eq_6_scales_both_branches() -> None:
    taps = made(tiny("original", shortcut=ConstantScale(shortcut=0.5, residual=0.25))).taps(images())
    unit = "stages.0.units.1"
    expected = 0.5 * taps[f"{unit}.input"] + 0.25 * taps[f"{unit}.residual"]
    assert torch.allclose(taps[f"{unit}.sum"], expected, rtol=1e-13)


def test_eq_5_the_gradient_is_the_direct_part_plus_the_residuals_jacobian_products() -> None:
    model = made(tiny("preact"))
    taps = model.taps(images())
    units = first_stage(model)
    signals = [taps[f"stages.0.units.{number}.input"] for number in range(4)] + [taps["stages.0.units.3"]]
    gradients = torch.autograd.grad(taps["logits"].square().sum(), signals, retain_graph=True)
    through_residuals = torch.zeros_like(gradients[-1])
    for number in reversed(range(1, 4)):  # unit 0 shares its pre-activation: its x is already activated
        x = signals[number].detach().requires_grad_()
        residual = units[number].residual(units[number].pre(x))
        (product,) = torch.autograd.grad(residual, x, gradients[number + 1])
        through_residuals = through_residuals + product
        assert torch.allclose(gradients[number], gradients[-1] + through_residuals, rtol=1e-9, atol=1e-12)


def test_without_residuals_signal_and_gradient_pass_exactly() -> None:
    model = made(tiny("preact"))
    for unit in first_stage(model):
        last_convolution(unit).weight.data.zero_()
    taps = model.taps(images())
    first, last = taps["stages.0.units.0.input"], taps["stages.0.units.3"]
    assert torch.equal(first, last)
    gradients = torch.autograd.grad(taps["logits"].square().sum(), [first, last])
    assert torch.equal(*gradients)


# --- the joins ----------------------------------------------------------------------------------------------------


def silence_gates(model: nn.Module, bias: float) -> None:
    for gate in model.modules():
        if isinstance(gate, Gate):
            gate.conv.weight.data.zero_()
            gate.bias.data.fill_(bias)


def test_an_exclusive_gate_of_zero_passes_x_unchanged() -> None:
    model = made(tiny("preact", shortcut=ExclusiveGate(bias=-6.0)))
    silence_gates(model, -1000.0)
    taps = model.taps(images())
    torch.testing.assert_close(taps["stages.0.units.3"], taps["stages.0.units.0.input"], rtol=0, atol=1e-300)


def test_an_exclusive_gate_of_one_passes_the_residual_alone() -> None:
    model = made(tiny("preact", shortcut=ExclusiveGate(bias=0.0)))
    silence_gates(model, 1000.0)
    taps = model.taps(images())
    assert torch.equal(taps["stages.0.units.1"], taps["stages.0.units.1.residual"])


def test_gates_mix_as_fig_2_says() -> None:
    for shortcut in (ExclusiveGate(bias=-1.0), ShortcutOnlyGate(bias=-1.0)):
        model = made(tiny("original", shortcut=shortcut))
        taps = model.taps(images())
        gated = first_stage(model)[2].join
        assert isinstance(gated, GatedJoin)
        x, residual = taps["stages.0.units.2.input"], taps["stages.0.units.2.residual"]
        gate = torch.sigmoid(gated.gate.conv(x) - 1)
        expected = (1 - gate) * x + (gate * residual if isinstance(shortcut, ExclusiveGate) else residual)
        assert torch.allclose(taps["stages.0.units.2.sum"], expected, rtol=1e-13)


def baseline_and(shortcut: Shortcut) -> tuple[Network, Network]:
    """The same weights with an identity shortcut and with another one."""
    plain, other = made(tiny("original")), made(tiny("original", shortcut=shortcut))
    missing, unexpected = other.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".join." in name for name in missing)
    return plain, other


def test_a_closed_shortcut_only_gate_is_the_baseline() -> None:
    plain, gated = baseline_and(ShortcutOnlyGate(bias=0.0))
    silence_gates(gated, -1000.0)
    assert torch.equal(plain(images()), gated(images()))


def test_an_identity_1x1_convolution_is_the_baseline() -> None:
    plain, projected = baseline_and(Conv1x1(norm=False))
    for unit in (module for module in projected.modules() if isinstance(module, ResidualUnit)):
        projection = unit.join.shortcut
        assert isinstance(projection, Projection)
        nn.init.dirac_(projection.conv.weight)
    assert torch.allclose(plain(images()), projected(images()), rtol=1e-12)


@pytest.mark.parametrize("rescale", [False, True])
def test_dropout_masks_the_shortcut(rescale: bool) -> None:
    torch.manual_seed(0)
    model = made(tiny("preact", shortcut=Dropout(p=0.25, rescale=rescale)))
    unit = "stages.0.units.1"
    taps = model.taps(images(n=16))
    kept = (taps[f"{unit}.sum"] - taps[f"{unit}.residual"]) / taps[f"{unit}.input"]
    factor = 4 / 3 if rescale else 1.0
    near_zero, near_factor = kept.abs() < 1e-6, (kept - factor).abs() < 1e-6
    assert (near_zero | near_factor).all()
    assert near_zero.double().mean().item() == pytest.approx(0.25, abs=0.02)
    taps = model.eval().taps(images())
    shortcut = taps[f"{unit}.sum"] - taps[f"{unit}.residual"]
    expected = taps[f"{unit}.input"] * (1.0 if rescale else 0.75)
    assert torch.allclose(shortcut, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", [0.5, 0.25, 0.3])
def test_a_mask_keeps_its_share_of_independent_elements(p: float) -> None:
    """0.3 is no number of bytes, and takes PyTorch's way."""
    torch.manual_seed(0)
    x = torch.full((16, 16, 30, 30), 3.0).contiguous(memory_format=torch.channels_last).requires_grad_()
    masked = Mask(p)(x)
    masked.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, masked.detach() / 3)
    assert masked.is_contiguous(memory_format=torch.channels_last)
    kept = (masked.detach() / 3).permute(0, 2, 3, 1).flatten()
    assert ((kept == 0) | ((kept - 1).abs() < 1e-6)).all()
    assert float(kept.mean()) == pytest.approx(1 - p, abs=0.005)
    for apart in (1, 7, 8, 16):
        assert float((kept[:-apart] * kept[apart:]).mean()) == pytest.approx((1 - p) ** 2, abs=0.005)


def test_a_plain_network_has_no_shortcut() -> None:
    model = made(network("resnet20-plain"))
    assert sum(isinstance(module, PlainJoin) for module in model.modules()) == 9
    assert not any(isinstance(module, ZeroPad | Projection) for module in model.modules())
    taps = model.taps(images())
    assert torch.equal(taps["stages.1.units.0.sum"], taps["stages.1.units.0.residual"])


def test_zero_padding_subsamples_and_appends_zeros() -> None:
    x = torch.arange(2 * 5 * 5, dtype=torch.float64).view(1, 2, 5, 5)
    y = ZeroPad(new_channels=3, stride=2)(x)
    assert y.shape == (1, 5, 3, 3)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert y[:, 2:].abs().sum() == 0


def test_projections_end_as_the_residual_does() -> None:
    for order, expected in {"original": True, "bn-after": False, "relu-before": True, "preact": False}.items():
        model = build(tiny(order, dimension_change="projection"), 0)
        projections = [module for module in model.modules() if isinstance(module, Projection)]
        assert [isinstance(module.norm, Norm) for module in projections] == [expected]
    for choice, expected in {"always": True, "never": False}.items():
        model = build(tiny("preact", dimension_change="projection", projection_norm=choice), 0)
        (projection,) = (module for module in model.modules() if isinstance(module, Projection))
        assert isinstance(projection.norm, Norm) is expected


# --- what is executed, in which order -----------------------------------------------------------------------------

NAMES = {"convolution": "conv", "native_batch_norm": "B", "relu": "R", "relu_": "R"}


def traced(module: nn.Module, x: Tensor, method: str = "forward") -> tuple[list[Node], Node]:
    """The ATen operations that a module executes without passes of our own, in order, and the returned node."""
    set_fused(module, False)
    compute: Callable[[Tensor], Tensor] = getattr(module, method)
    graph = make_fx(lambda x: compute(x))(x).graph
    nodes = list(graph.nodes)
    (returned,) = [node for node in nodes if node.op == "output"]
    result = returned.args[0]
    return nodes, result[0] if isinstance(result, list | tuple) else result  # type: ignore[return-value]


def operation(node: Node) -> str:
    name = str(node.target).split(".")[1] if node.op == "call_function" and "aten" in str(node.target) else ""
    name = {"_native_batch_norm_legit_functional": "native_batch_norm", "cudnn_batch_norm": "native_batch_norm"}.get(
        name, name
    )
    return NAMES.get(name.removesuffix("_legit").removeprefix("_"), name)


def back(node: Node) -> tuple[list[str], Node]:
    """Norms, ReLUs and convolutions from a node back to where branches meet or the input is reached; oldest first."""
    found: list[str] = []
    while node.op == "call_function" and operation(node) not in ("add", "max_pool2d_with_indices"):
        if operation(node) in ("conv", "B", "R"):
            found.append(operation(node))
        node = node.args[0]  # type: ignore[assignment]
    return found[::-1], node


def unit_of(order: str, kind: UnitKind, number: int) -> ResidualUnit:
    return first_stage(build(tiny(order, kind), 0))[number]


# Fig. 4, written out by hand: the residual branch of two convolutions, and what follows the addition.
FIG_4 = {
    "original": ("conv B R conv B", "R"),
    "bn-after": ("conv B R conv", "B R"),
    "relu-before": ("conv B R conv B R", ""),
    "relu-only": ("R conv B R conv B", ""),
    "preact": ("B R conv B R conv", ""),
}
FIG_4_BOTTLENECK = {
    "original": "conv B R conv B R conv B",
    "bn-after": "conv B R conv B R conv",
    "relu-before": "conv B R conv B R conv B R",
    "relu-only": "R conv B R conv B R conv B",
    "preact": "B R conv B R conv B R conv",
}
FIG_4_SINGLE = {
    "original": "conv B",
    "bn-after": "conv",
    "relu-before": "conv B R",
    "relu-only": "R conv B",
    "preact": "B R conv",
}


@pytest.mark.parametrize("order", FIG_4)
@pytest.mark.parametrize("kind", KINDS)
def test_fig_4_is_what_a_unit_executes(order: str, kind: UnitKind) -> None:
    nodes, returned = traced(unit_of(order, kind, number=1), torch.randn(2, 8, 4, 4))
    (addition,) = [node for node in nodes if operation(node) == "add"]
    after, start = back(returned)
    assert start is addition
    assert after == FIG_4[order][1].split()
    shortcut, residual = (back(operand) for operand in addition.args)  # type: ignore[arg-type]
    expected = {"basic": FIG_4[order][0], "bottleneck": FIG_4_BOTTLENECK[order], "single": FIG_4_SINGLE[order]}[kind]
    assert residual[0] == expected.split()
    assert shortcut[0] == []  # the raw signal
    assert shortcut[1] is residual[1]  # both start at the unit's input
    assert shortcut[1].op == "placeholder"


@pytest.mark.parametrize(("order", "shared"), [("preact", ["B", "R"]), ("relu-only", ["R"]), ("original", [])])
def test_the_first_units_activation_comes_before_the_split(order: str, shared: list[str]) -> None:
    nodes, _ = traced(unit_of(order, "basic", number=0), torch.randn(2, 8, 4, 4))
    (addition,) = [node for node in nodes if operation(node) == "add"]
    shortcut, residual = (back(operand)[0] for operand in addition.args)  # type: ignore[arg-type]
    assert shortcut == shared
    assert residual == FIG_4[order][0].split()


# What follows the first convolution before the first split, and what follows the last addition before the pooling:
# the appendix for the pre-activation orders; for the others the network of the 2015 paper.
ENDS = {
    "original": (["B", "R"], ["R"]),
    "bn-after": (["B", "R"], ["B", "R"]),
    "relu-before": (["B", "R"], []),
    "relu-only": (["B", "R"], ["R"]),
    "preact": (["B", "R"], ["B", "R"]),
}


@pytest.mark.parametrize("order", ENDS)
def test_both_ends_of_the_network(order: str) -> None:
    nodes, returned = traced(build(tiny(order), 0), torch.randn(2, 3, 8, 8), "forward_features")
    additions = [node for node in nodes if operation(node) == "add"]
    shortcut, start = back(additions[0].args[0])  # type: ignore[arg-type]
    assert start.op == "placeholder"
    assert shortcut == ["conv", *ENDS[order][0]]
    end, last = back(returned)
    assert last is additions[-1]
    assert end == ENDS[order][1]


def test_the_imagenet_stem_is_activated_and_pooled_before_the_first_unit() -> None:
    spec = network("resnet18-preact", num_classes=5)
    nodes, _ = traced(build(spec, 0), torch.randn(2, 3, 32, 32), "forward_features")
    addition = next(node for node in nodes if operation(node) == "add")
    residual, pool = back(addition.args[1])  # type: ignore[arg-type]
    assert residual == ["conv", "B", "R", "conv"]  # no pre-activation of its own
    getitem_source = pool if operation(pool) == "max_pool2d_with_indices" else pool.args[0]
    assert back(getitem_source.args[0])[0] == ["conv", "B", "R"]  # type: ignore[union-attr, arg-type]


# --- the dialect --------------------------------------------------------------------------------------------------


def strides(model: Network, stage: int = 1) -> list[list[int]]:
    return [
        [module.stride[0] for module in unit.residual if isinstance(module, nn.Conv2d)]
        for unit in model.stages[stage].units  # type: ignore[union-attr]
    ]


def test_stride_position_and_strided_unit() -> None:
    bottleneck: dict[str, Any] = {"kind": "bottleneck", "dimension_change": "projection"}
    assert strides(build(tiny(**bottleneck), 0)) == [[2, 1, 1], [1, 1, 1]]
    assert strides(build(tiny(**bottleneck, stride_position="spatial"), 0)) == [[1, 2, 1], [1, 1, 1]]
    late = build(tiny(**bottleneck, strided_unit="last"), 0)
    assert strides(late) == [[1, 1, 1], [2, 1, 1]]
    assert isinstance(late.stages[1].units[1].join.shortcut, ZeroPad)  # type: ignore[index, union-attr]
    assert late(torch.randn(2, 3, 9, 9)).shape == (2, 10)


def test_shared_preactivation() -> None:
    def shared(choice: str) -> list[bool]:
        model = build(tiny("preact", shared_preactivation=choice), 0)
        return [module.shared for module in model.modules() if isinstance(module, ResidualUnit)]

    assert shared("stage_first") == [True, False, False, False, True, False]
    assert shared("channel_change") == [False, False, False, False, True, False]
    assert shared("never") == [False] * 6


def test_last_activation_biases_epsilon_and_momentum() -> None:
    model = build(tiny("preact", last_activation=False, norm_eps=1.001e-5, norm_momentum=0.01), 0)
    assert isinstance(model.head.norm, nn.Identity)
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    assert {(norm.epsilon, norm.momentum) for norm in norms} == {(1.001e-5, 0.01)}
    keras = tiny("preact", "bottleneck", dimension_change="projection", conv_bias=("stem", "shortcut", "residual_last"))
    biased = {name for name, _ in build(keras, 0).named_parameters() if name.endswith("bias") and "conv" in name}
    assert "stem.conv.bias" in biased
    assert "stages.1.units.0.join.shortcut.conv.bias" in biased
    assert "stages.0.units.0.residual.conv3.bias" in biased
    assert not any("conv1.bias" in name or "conv2.bias" in name for name in biased)


def test_join_at_dimension_change() -> None:
    def gated(choice: bool) -> list[bool]:
        model = build(tiny("original", shortcut=ShortcutOnlyGate(bias=-6.0), join_at_dimension_change=choice), 0)
        return [isinstance(m.join, GatedJoin) for m in model.modules() if isinstance(m, ResidualUnit)]

    assert gated(True) == [True] * 6
    assert gated(False) == [True, True, True, True, False, True]


def test_an_order_that_normalises_twice_around_the_addition_is_refused() -> None:
    with pytest.raises(ValueError, match="would repeat a norm"):
        replace(ORDERS["original"], after_add="BR")
