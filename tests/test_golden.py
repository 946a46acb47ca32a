"""Losses of twenty updates of a tiny member of each family, pinned to nine digits.

In float64 on one thread, from weights and images of numpy's frozen random stream, so that they hold on every machine
and torch version: a refactoring must leave them as they are. They hold for passes of our own, which need weights in
channels_last, and for PyTorch's own operations. After a change that is meant to move them:

    python tests/test_golden.py --write
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from preresnet.kernels import native
from preresnet.model.network import Network
from preresnet.model.preactivation import Norm
from preresnet.paper.networks import ORDERS, SHORTCUTS
from preresnet.recipe import SGD
from preresnet.spec import Dialect, Dropout, NetSpec, StageSpec, StemSpec, UnitSpec
from preresnet.train.optim import build_optimizer, set_lr, update

LOSSES = Path(__file__).parent / "golden" / "losses.json"
STEPS = 20


def families() -> dict[str, NetSpec]:
    def spec(unit: UnitSpec, dialect: Dialect | None = None, stem: StemSpec | None = None) -> NetSpec:
        stages = (StageSpec(num_units=2, width=8), StageSpec(num_units=2, width=16, stride=2))
        return NetSpec(stem or StemSpec(width=8), stages, unit, dialect or Dialect(), num_classes=4)

    found = {name: spec(UnitSpec(kind="basic", order=order)) for name, order in ORDERS.items()}
    for kind in ("bottleneck", "single"):
        for name in ("original", "preact"):
            unit = UnitSpec(kind=kind, order=ORDERS[name])
            found[f"{name} {kind}"] = spec(unit, Dialect(dimension_change="projection"))
    for name, shortcut in SHORTCUTS.items():
        # The mask of a dropout comes from torch's random stream, which is not frozen: p = 0 pins the rest of the join.
        shortcut = Dropout(p=0.0) if isinstance(shortcut, Dropout) else shortcut
        found[f"original {name}"] = spec(UnitSpec(kind="basic", order=ORDERS["original"], shortcut=shortcut))
    found["preact stride in the 3x3"] = spec(
        UnitSpec(kind="bottleneck", order=ORDERS["preact"]),
        Dialect(dimension_change="projection", stride_position="spatial", strided_unit="last"),
    )
    imagenet = StemSpec(width=8, kernel=7, stride=2, activated=True)
    found["preact ImageNet stem"] = spec(UnitSpec(kind="basic", order=ORDERS["preact"]), stem=imagenet)
    return found


def losses(spec: NetSpec, *, channels_last: bool = True) -> list[float]:
    random = np.random.RandomState(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape))

    model = Network(spec).double()
    if not channels_last:
        for parameter in model.parameters():  # by hand, since those of 1x1 convolutions already count as both
            parameter.data = torch.empty(parameter.shape, dtype=torch.float64).copy_(parameter.data)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # gates, norms and biases keep the values that they start with
            parameter.data.copy_(draw(*parameter.shape) / np.sqrt(parameter[0].numel()))
    model.head.linear.bias.data.zero_()
    size = 16 if spec.stem.activated else 8
    x, y = draw(8, spec.in_channels, size, size), torch.arange(8) % spec.num_classes
    optimizer = build_optimizer(model, SGD())
    set_lr(optimizer, 0.05)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [update(model, optimizer, x, y, None, "float32")[0].item() for _ in range(STEPS)]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", families())
def test_losses_are_the_pinned_ones(name: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned, spec = json.loads(LOSSES.read_text())[name], families()[name]
    assert len(pinned) == STEPS
    passed: list[str] = []
    call = native.call
    monkeypatch.setattr(native, "call", lambda name, *given: (passed.append(name), call(name, *given)))
    assert losses(spec, channels_last=channels_last) == pytest.approx(pinned, rel=1e-9)
    assert pinned[-1] != pinned[0]
    norms = sum(isinstance(module, Norm) for module in Network(spec).modules())
    expected = STEPS * norms if channels_last and native.available() else 0
    assert passed.count("normalise") == passed.count("differentiate") == expected


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    lines = [f"  {json.dumps(name)}: {json.dumps(losses(spec))}" for name, spec in families().items()]
    LOSSES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
