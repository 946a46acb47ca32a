"""Memory plans: the same results, and predictions that hold."""

import ctypes
import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import preresnet
from preresnet import device as devices
from preresnet.cli import main
from preresnet.kernels import native
from preresnet.model import counts, memory
from preresnet.model.counts import Saved
from preresnet.model.describe import describe
from preresnet.model.network import Network, build
from preresnet.model.preactivation import Norm
from preresnet.paper.networks import network
from preresnet.spec import MEMORY_PLANS, MemoryPlan, NetSpec, UnitShape

NETWORKS = [
    "resnet20-preact",
    "resnet29-preact-bottleneck",
    "resnet20-original",
    "resnet20-bn-after",
    "resnet20-original-dropout-0.5",
    "resnet20-original-exclusive-gate-6",
]


def spec_of(name: str) -> NetSpec:
    return network(name, num_classes=5)


def step(name: str, plan: MemoryPlan, dtype: torch.dtype, *, autocast: bool = False) -> dict[str, Tensor]:
    """Loss, gradients and buffers after one training step."""
    model = build(spec_of(name), 0).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    memory.set_plan(model, plan)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.manual_seed(0)  # dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(x.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(output.to(dtype), torch.arange(4))
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads, **dict(model.named_buffers())}


@pytest.mark.parametrize(("name", "plan"), [(n, p) for n, p in product(NETWORKS, MEMORY_PLANS) if p != "plain"])
def test_a_plan_changes_no_bit(name: str, plan: MemoryPlan) -> None:
    for autocast in (False, True):
        expected = step(name, "plain", torch.float32, autocast=autocast)
        found = step(name, plan, torch.float32, autocast=autocast)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (key, autocast)
    assert int(found["stages.0.units.1.residual.norm1.num_batches_tracked"]) == 1


def test_an_unknown_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="use plain, recompute, units, sqrt"):
        memory.set_plan(build(spec_of("resnet8-preact"), 0), "none")  # type: ignore[arg-type]


def saved_bytes(model: Network, x: Tensor) -> int:
    saved = Saved(model)
    with torch.autocast("cpu", torch.bfloat16), saved.counting():
        model(x)
    return saved.bytes


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_saved_is_what_was_predicted(name: str) -> None:
    x = torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    before = None
    for plan in ("plain", "recompute", "units"):
        model = preresnet.create_model(name, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        memory.set_plan(model, plan)
        predicted = memory.predict(model.spec, 32, 16, "bfloat16", plan)
        held = predicted["saved_bytes"]
        assert predicted["peak_bytes"] > held
        assert before is None or held < before
        before = held
        if plan == "units":
            continue  # autograd's hooks see what a recomputed part holds only while it is recomputed
        weights = 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        real = saved_bytes(model, x)
        assert abs(real - weights - held) < 0.1 * held or abs(real - held) < 0.1 * held


def test_square_root_segments_make_1001_layers_small() -> None:
    spec = network("resnet1001-preact")
    peaks = describe(spec, batch=128)["training"]["peak_bytes"]
    assert list(peaks) == list(MEMORY_PLANS)
    assert peaks["recompute"] < 0.55 * peaks["plain"]
    assert peaks["sqrt"] < 0.1 * peaks["plain"]


def test_the_cheapest_plan_that_fits_is_chosen() -> None:
    spec = network("resnet56-preact")
    peaks = {plan: memory.predict(spec, 32, 64, "bfloat16", plan)["peak_bytes"] for plan in MEMORY_PLANS}
    for plan, peak in peaks.items():
        assert memory.choose(spec, 32, 64, "bfloat16", peak)[0] == plan
    assert memory.choose(spec, 32, 64, "bfloat16", 0)[0] == "sqrt"


def test_like_units_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[UnitShape] = []

    class Counted(counts.ResidualUnit):
        def __init__(self, shape: UnitShape, *others: Any) -> None:
            super().__init__(shape, *others)
            built.append(shape)

    monkeypatch.setattr(counts, "ResidualUnit", Counted)
    counts._count_like_units.cache_clear()
    spec = network("resnet164-preact")
    found = describe(spec)
    assert len(set(built)) == 6  # of each stage, the first and the others
    assert len(built) == 6 * 4  # in two precisions, and as each memory plan trains them
    assert [part["units"] for part in found["parts"]] == [None, 18, 18, 18, None]
    describe(network("resnet1001-preact"))
    assert len(built) == 6 * 4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_describe_predicts_in_the_precision_of_this_machine(
    precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "computes_bfloat16", lambda device: precision == "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["describe", "resnet20-preact", "--json"]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    assert training["precision"] == precision
    expected = memory.predict(network("resnet20-preact"), 32, 128, precision, "plain")["peak_bytes"]
    assert training["peak_bytes"]["plain"] == expected
    assert main(["describe", "resnet20-preact"]) == 0
    assert f"batch 128, {precision}, with" in " ".join(capsys.readouterr().out.split())


def test_without_passes_more_is_kept() -> None:
    spec = network("resnet20-preact")
    fused, plain = (memory.predict(spec, 32, 64, "float32", "recompute", fused=fused) for fused in (True, False))
    assert plain["saved_bytes"] > 1.2 * fused["saved_bytes"]


def test_every_norm_of_a_network_is_counted() -> None:
    found = describe(network("resnet164-preact"))["fused"]
    norms = sum(isinstance(m, Norm) for m in build(network("resnet164-preact"), 0).modules())
    assert found == {"norms": norms, "lone_relus": 0, "convolutions": 166, "recomputing": 159}
    original = describe(network("resnet20-original"))["fused"]
    assert original["lone_relus"] == 9


def test_free_memory_is_what_a_group_of_processes_may_still_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file cache that the kernel would give back counts as free."""
    monkeypatch.setattr(devices, "GROUP", tmp_path)
    cpu = torch.device("cpu")
    whole = devices.free_bytes(cpu)
    for name, text in {"max": "9000000\n", "current": "8000000\n", "stat": "anon 5\ninactive_file 7000000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert devices.free_bytes(cpu) == 8_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_bytes(cpu) == pytest.approx(whole, rel=0.5)


def test_free_memory_is_known_without_sysconf(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows: what GlobalMemoryStatusEx writes into the structure that it is given."""

    class Kernel32:
        @staticmethod
        def GlobalMemoryStatusEx(pointer: object) -> int:  # noqa: N802
            status = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint32))  # type: ignore[arg-type]
            assert status[0] == 64
            words = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint64))  # type: ignore[arg-type]
            words[1], words[2] = 16 << 30, 5 << 30
            return 1

    monkeypatch.delattr("os.sysconf")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=Kernel32), raising=False)
    assert devices.free_bytes(torch.device("cpu")) == 5 << 30


def test_a_run_says_its_plan_and_ends_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for plan in ("auto", "sqrt"):
        given = ["--memory", plan, "--schedule.steps", "3", "--network", "resnet8-preact", "--precision", "float32"]
        assert main(["train", "digits/resnet20-preact", "--out", str(tmp_path / plan), *given]) == 0
        assert f"memory plan {'plain' if plan == 'auto' else plan}: 0.0" in capsys.readouterr().err
        results.append(json.loads((tmp_path / plan / "result.json").read_text()))
    assert results[0]["loss"] == results[1]["loss"]
    assert [result["memory_plan"] for result in results] == ["plain", "sqrt"]
    assert results[1]["memory_predicted_bytes"] < results[0]["memory_predicted_bytes"]
