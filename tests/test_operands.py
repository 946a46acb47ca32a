"""Which operand of an addition is the shortcut, and what it is a multiple of, in networks of other people."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import preresnet
from preresnet.propagation.probe import Probe, probe

WIDTH = 6


class Unit(nn.Module):
    """One addition, written in some way from a shortcut h and a residual."""

    def __init__(self, write: Callable[["Unit", Tensor], Tensor], layers: int = 1) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.body = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)), nn.Tanh())
        self.other, self.squeeze = nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.scale, self.vector = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))
        self.register_buffer("fixed", torch.tensor([0.5]))
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self, x)


def model(write: Callable[[Unit, Tensor], Tensor], units: int = 3, layers: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Unit(write, layers) for _ in range(units)), nn.Linear(WIDTH, 4)).double()


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn(n, WIDTH, generator=source, dtype=torch.float64), torch.arange(n) % 4


def first_shortcut(h: Callable[[Unit, Tensor], Tensor], network: nn.Sequential) -> float:
    with torch.no_grad():
        return h(network[0], batch()[0]).square().mean().sqrt().item()  # type: ignore[arg-type]


def gated(u: Unit, x: Tensor) -> Tensor:
    return (1 - torch.sigmoid(u.gate(x))) * x


def squeezed(u: Unit, x: Tensor) -> Tensor:
    """Two weight layers in the gate, one in the residual."""
    return torch.stack([x, x], 1)[:, 0] * torch.sigmoid(u.squeeze(x)).unsqueeze(1)[:, 0]


def measured_only(u: Unit, x: Tensor) -> Tensor:
    """A gate that the graph does not show as a product with x."""
    return torch.einsum("ni,ni->ni", x, torch.sigmoid(u.gate(x)))


CASES: dict[str, tuple[Callable[[Unit, Tensor], Tensor], Callable[[Unit, Tensor], Tensor], bool]] = {
    "a gate": (gated, lambda u, x: u.body(x), False),
    "a gate on the right": (lambda u, x: x * torch.sigmoid(u.gate(x)), lambda u, x: u.body(x), False),
    "an exclusive gate": (gated, lambda u, x: torch.sigmoid(u.gate(x)) * u.body(x), False),
    "a gate, scaled": (lambda u, x: 0.5 * gated(u, x), lambda u, x: 2 * u.body(x), False),
    "a gate of more layers": (squeezed, lambda u, x: u.body(x), True),
    "a gate that is no product": (measured_only, lambda u, x: u.body(x), True),
    "without parameters": (lambda u, x: F.leaky_relu(x, 0.5), lambda u, x: torch.sin(9 * x.roll(1, 1)), False),
    "a batch norm": (lambda u, x: u.norm(x), lambda u, x: u.body(x), False),
    "a map of fewer layers": (lambda u, x: u.other(x), lambda u, x: u.body(u.gate(x)), False),
}


@pytest.mark.parametrize("name", CASES)
def test_the_shortcut_does_not_depend_on_the_order(name: str) -> None:
    h, residual, doubt = CASES[name]
    writings: list[Callable[[Unit, Tensor], Tensor]] = [
        lambda u, x: h(u, x) + residual(u, x),
        lambda u, x: residual(u, x) + h(u, x),
        lambda u, x: torch.add(residual(u, x), h(u, x), alpha=1),
        lambda u, x: residual(u, x).clone().add_(h(u, x)),
        lambda u, x: h(u, x).clone().add_(residual(u, x)),
    ]
    found = [probe(model(write), batch()) for write in writings]
    expected = first_shortcut(h, model(writings[0]))
    for one in found:
        assert len(one.units) == 3
        assert max(one.agreement.values()) < 1e-12
        assert one.forward["shortcut_rms"][0] == pytest.approx(expected, rel=1e-12)
        assert one.backward["straight"] == pytest.approx(found[0].backward["straight"], rel=1e-9)
        assert bool(one.doubts) == doubt


def test_a_choice_in_doubt_names_both_candidates() -> None:
    def two(u: Unit, x: Tensor) -> Tensor:
        return torch.tanh(u.other(x)) + u.body(x)

    one, other = probe(model(two), batch()), probe(model(lambda u, x: u.body(x) + torch.tanh(u.other(x))), batch())
    assert one.forward["shortcut_rms"] == other.forward["shortcut_rms"]
    assert [doubt["unit"] for doubt in one.doubts] == list(one.units)
    assert set(one.doubts[0]) == {"unit", "shortcut", "residual", "why"}
    assert "weight layers" in one.doubts[0]["why"]
    assert "1 weight layers, 42 parameters, cosine 0." in one.doubts[0]["shortcut"]
    assert probe(preresnet.create_model("resnet8-original", seed=0), torch.randn(2, 3, 8, 8)).doubts == []


FACTORS: dict[str, tuple[Callable[[Unit, Tensor], Tensor], float]] = {
    "lambda x + F": (lambda u, x: 0.5 * x + u.body(x), 0.5),
    "F + x lambda": (lambda u, x: u.body(x) + x * 0.5, 0.5),
    "x / 2": (lambda u, x: x / 2 + u.body(x), 0.5),
    "alpha": (lambda u, x: torch.add(u.body(x), x, alpha=0.5), 0.5),
    "alpha on F": (lambda u, x: torch.add(x, u.body(x), alpha=0.5), 1),
    "x - F": (lambda u, x: x - u.body(x), 1),
    "F - x": (lambda u, x: u.body(x) - x, -1),
    "-x + F": (lambda u, x: -x + u.body(x), -1),
    "a parameter": (lambda u, x: u.scale * x + u.body(x), 0.7),
    "a parameter below": (lambda u, x: u.body(x) + x / u.scale, 1 / 0.7),
    "a function of a parameter": (
        lambda u, x: torch.sigmoid(u.scale) * x + u.body(x),
        torch.tensor(0.7).sigmoid().item(),
    ),
    "a buffer": (lambda u, x: u.fixed * x + u.body(x), 0.5),  # type: ignore[operator]
    "lambda on F": (lambda u, x: x + 0.3 * u.body(x), 1),
    "a parameter on F": (lambda u, x: u.scale * u.body(x) + x, 1),
    "LayerScale": (lambda u, x: x + u.vector * u.body(x), 1),
    "in place": (lambda u, x: (x * 0.5).add_(u.body(x)), 0.5),
    "three terms": (lambda u, x: x + u.body(x) + u.other(x), 1),
    "three terms, x last": (lambda u, x: u.body(x) + u.other(x) + x, 1),
    "three terms, x between": (lambda u, x: u.body(x) + (x + u.other(x)), 1),
    "Python's sum": (lambda u, x: sum([u.body(x), x, u.other(x)]), 1),  # type: ignore[arg-type, return-value]
    "x twice": (lambda u, x: x + u.body(x) + 0.25 * x, 1.25),
    "a dropout of nothing": (lambda u, x: F.dropout(x, 0.0) + u.body(x), 1),
    "a copy": (lambda u, x: u.body(x) + x.clone().view(-1, WIDTH), 1),
    "a residual that is a gate": (lambda u, x: x * torch.sigmoid(u.gate(x)) + x, 1),
    "a residual of joined parts": (lambda u, x: torch.cat([u.body(x)[:, :2], u.other(x)[:, 2:]], 1) + 0.5 * x, 0.5),
    "without parameters": (lambda u, x: torch.tanh(x) + x, 1),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_multiple_of_x_is_known_exactly_and_has_pairs(name: str) -> None:
    write, factor = FACTORS[name]
    found = probe(model(write), batch())
    assert found.joins["factor"] == pytest.approx([factor] * 3, rel=1e-7)
    assert found.joins["product"][0] == pytest.approx(factor**3, rel=1e-6)
    assert found.shortcuts == ("x" if factor == 1 else f"{factor:g} x",) * 3
    assert found.doubts == []
    assert max(found.agreement.values()) < 1e-12
    (run,) = found.pairs
    assert run["units"] == list(found.units)
    assert max(value for row in run["deviation"] for value in numbers(row)) < 1e-13


def test_a_vector_of_factors_has_pairs_too() -> None:
    found = probe(model(lambda u, x: u.body(x) + u.vector * x), batch())
    assert found.shortcuts == ("a x, a of 6 numbers",) * 3
    assert max(value for row in found.pairs[0]["deviation"] for value in row if value is not None) < 1e-13
    bent = model(lambda u, x: torch.relu(u.body(x) + u.vector * x))
    found = probe(bent, batch())
    signals, x = [batch()[0]], batch()[0]
    with torch.no_grad():
        vector = bent.get_parameter("0.vector")
        residuals = []
        for unit in list(bent)[:3]:
            residuals.append(unit.body(signals[-1]))  # type: ignore[operator]
            signals.append(unit(signals[-1]))
        expected = signals[2] - vector * vector * x - vector * residuals[0] - residuals[1]
    assert found.pairs[0]["deviation"][0][2] == pytest.approx(float(expected.norm() / signals[2].norm()), rel=1e-9)


def numbers(row: list[float | None]) -> list[float]:
    return [value for value in row if value is not None]


class Own(nn.Module):
    """What another person would write for `resnet20-relu-before-scale-0.5-0.5`."""

    def __init__(self, ours: Any, order: bool) -> None:
        super().__init__()
        self.ours, self.order = ours, order

    def forward(self, x: Tensor) -> Tensor:
        x = self.ours.stem(x)
        for stage in self.ours.stages:
            for unit in stage.units:
                x = unit.pre(x)
                h, residual = unit.join.shortcut(x), unit.residual(x)
                x = 0.5 * h + 0.5 * residual if self.order else torch.add(residual * 0.5, h, alpha=0.5)
                x = unit.after_add(x) if hasattr(unit, "after_add") else x
        return self.ours.head(x)


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("name", ["resnet20-relu-before-scale-0.5-0.5", "resnet20-original-scale-0.5-0.5"])
def test_scaled_networks_of_others_measure_as_ours_do(name: str, order: bool) -> None:
    ours = preresnet.create_model(name, seed=0).double()
    x, y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double(), torch.arange(4)
    here, there = probe(ours, (x, y)), probe(Own(ours, order), (x, y))
    same = [unit for unit, words in enumerate(here.shortcuts) if words == "0.5 x"]
    assert len(same) == 7
    assert [there.shortcuts[unit] for unit in same] == ["0.5 x"] * 7
    assert len(here.pairs) == len(there.pairs) == 3
    for one, other in zip(here.pairs, there.pairs, strict=True):
        for row, row_there in zip(one["deviation"], other["deviation"], strict=True):
            assert [value is None for value in row_there] == [value is None for value in row]
            assert numbers(row_there) == pytest.approx(numbers(row), rel=1e-9, abs=1e-13)
    for part in ("gradient", "straight", "rest"):
        assert there.backward[part] == pytest.approx(here.backward[part], rel=1e-9)


def test_what_is_no_multiple_says_so() -> None:
    for write in (CASES["a gate"][0], lambda u, x: F.dropout(x, 0.5), lambda u, x: u.norm(x)):
        found = probe(model(lambda u, x, h=write: h(u, x) + u.body(u.other(x))), batch())
        assert found.shortcuts == ("no multiple of x",) * 3
        assert found.pairs == []
    names = {"original": "x", "plain": "none", "original-conv1x1": "no multiple of x", "original-scale-0.5-1": "0.5 x"}
    for name, words in names.items():
        found = probe(preresnet.create_model(f"resnet20-{name}", seed=0), torch.randn(2, 3, 8, 8))
        assert found.shortcuts[0] == words
    found = probe(preresnet.create_model("resnet20-original", seed=0), torch.randn(2, 3, 8, 8))
    assert found.shortcuts[3] == "of another shape"
    dropped = probe(
        preresnet.create_model("resnet20-original-dropout-0.5", seed=0), torch.randn(2, 3, 8, 8), training=False
    )
    assert dropped.shortcuts[0] == "0.5 x"  # what a mask leaves on average, in evaluation


def test_pooling_twice_and_copies_are_no_units() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = F.pad(x, (0, 0)) + self.conv(x[:, :3])
            x = x + x
            return self.head(0.5 * (F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1)).flatten(1))

    assert len(probe(Pooled(), torch.randn(2, 3, 8, 8)).units) == 1


def test_a_projection_that_reshapes_is_found_on_either_side() -> None:
    class Down(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.first = first
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
            self.down, self.head = nn.Conv2d(3, 8, 1, 2), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(x) + self.body(x) if self.first else self.body(x) + self.down(x)
            return self.head(y.mean((2, 3)))

    x = torch.randn(2, 3, 8, 8)
    found: list[Probe] = []
    for first in (True, False):
        torch.manual_seed(0)
        found.append(probe(Down(first), (x, torch.tensor([1, 2]))))
    assert found[0].forward["shortcut_rms"] == found[1].forward["shortcut_rms"]
    assert found[0].doubts == found[1].doubts == []
    torch.manual_seed(0)
    with torch.no_grad():
        expected = float(Down(True).down(x).square().mean().sqrt())
    assert found[0].forward["shortcut_rms"][0] == pytest.approx(expected, rel=1e-5)
