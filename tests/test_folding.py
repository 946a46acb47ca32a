"""Folded norms: exactly the foldable ones, and the same answers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preresnet import device as devices
from preresnet import inference
from preresnet.inference import answering
from preresnet.kernels import native, onednn
from preresnet.model import folding, program
from preresnet.model.network import Network, build
from preresnet.model.preactivation import Norm
from preresnet.paper.networks import ORDERS, SHORTCUTS, network
from preresnet.spec import NetSpec

NAMES = [
    *(f"resnet14-{order}{kind}" for order, kind in product(ORDERS, ("", "-1layer"))),
    *(f"resnet20-{order}-bottleneck" for order in ORDERS),
    *(f"resnet14-original-{shortcut}" for shortcut in SHORTCUTS),
    *(f"resnet14-preact-{shortcut}" for shortcut in ("conv1x1", "shortcut-gate-0", "scale-0.5-0.5")),
    *("resnet14-plain", "resnet18-preact", "resnet50-preact", "resnet50-original"),
]


def used(spec: NetSpec) -> tuple[Network, Tensor]:
    """A network whose norms have statistics and parameters of their own, in evaluation mode, and a batch."""
    model = build(spec, 0).double()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Norm):
                for tensor in (module.weight, module.bias, module.get_buffer("running_mean")):
                    tensor.add_(0.3 * torch.randn(tensor.shape, generator=source, dtype=torch.double))
                module.get_buffer("running_var").mul_(0.5 + torch.rand(len(module.weight), generator=source))
    x = torch.randn(2, spec.in_channels, 32, 32, generator=source, dtype=torch.double)
    return model.eval(), x


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_network_answers_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = network(name, num_classes=7)
    if spec.depth == 50:
        spec = replace(spec, stages=tuple(replace(stage, num_units=1) for stage in spec.stages))
    model, x = used(spec)
    with torch.no_grad():
        expected = model(x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.testing.assert_close(answering(model, "float32")(x), expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    single = model.float()
    for few in (x.numel(), 0):  # as one program where there is one, and by PyTorch's operations
        monkeypatch.setattr(inference, "FEW_PIXELS", {torch.float32: few})
        found = answering(single, "float32")(x.float())
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 1e-4
    half = answering(single, "bfloat16")(x.float())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        unfolded = single(x.float()).float()
    errors = [float((answer - expected).norm() / expected.norm()) for answer in (half, unfolded)]
    assert errors[0] < 2 * errors[1] + 1e-2  # as near as the unfolded network, give or take chance


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("resnet20-original", 0),
        ("resnet20-preact", 9),  # a pre-activation a unit but the first, whose input is the stem alone; and the head
        ("resnet29-preact-bottleneck", 9),
        ("resnet50-preact", 16),  # its first unit has none, its stem folds
        ("resnet20-bn-after", 9),
        ("resnet20-relu-only", 0),
    ],
)
def test_exactly_the_foldable_norms_fold(name: str, kept: int) -> None:
    model = build(network(name), 0)
    found = list(folding.folded(model, torch.float32).modules())
    assert not any(isinstance(module, Norm) for module in found)
    assert sum(isinstance(module, folding.Affine) for module in found) == kept


def test_a_stem_that_the_shortcut_reads_keeps_its_norm() -> None:
    spec = network("resnet8-preact")
    spec = replace(spec, dialect=replace(spec.dialect, shared_preactivation="never"))
    model, x = used(spec)
    kept = sum(isinstance(m, folding.Affine) for m in folding.folded(model, torch.float64).modules())
    assert kept == 4
    with torch.no_grad():
        torch.testing.assert_close(answering(model, "float32")(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_batch_answered_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = used(network("resnet8-preact"))
    x = torch.cat([x, x.flip(3), x[:1]])
    whole = answering(model, "float32")(x)
    monkeypatch.setattr(inference, "CACHE_BYTES", 2 * 16 * 32 * 32 * 8)  # two images at a time
    torch.testing.assert_close(answering(model, "float32")(x), whole, rtol=1e-12, atol=1e-12)


def test_bfloat16_without_onednn_rounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "convolves", lambda dtype: dtype != torch.bfloat16)
    conv = nn.Conv2d(24, 16, 3, padding=1)
    source = torch.Generator().manual_seed(0)
    x, plus = (torch.randn(2, c, 9, 9, generator=source).bfloat16() for c in (24, 16))
    for after in (nn.Identity(), nn.ReLU()):
        folded = folding.FoldedConv(conv, after, torch.bfloat16)
        with torch.inference_mode():
            found = folded(x, plus)
        exact = after(F.conv2d(x.double(), folded.weight.double(), folded.bias.double(), padding=1)) + plus.double()
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


def test_bfloat16_is_the_hardwares_only_where_onednn_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(onednn, "convolves", lambda dtype: True)
    for limit, whether in (("", True), ("AVX512_CORE_BF16", True), ("avx512_core", False), ("AVX2", False)):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert devices.computes_bfloat16(cpu) == whether
        assert devices.resolve("auto", cpu) == ("bfloat16" if whether else "float32")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(onednn, "convolves", lambda dtype: dtype != torch.bfloat16)
    assert not devices.computes_bfloat16(cpu)


needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")


PROGRAMS = [
    *(f"resnet14-{order}{kind}" for order, kind in product(ORDERS, ("", "-1layer"))),
    *(f"resnet20-{order}-bottleneck" for order in ORDERS),
    *("resnet14-original-conv1x1", "resnet14-preact-conv1x1"),
]


@needs_compiler
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("images", "height", "width"), [(1, 32, 32), (3, 13, 21), (2, 4, 1)])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_program_computes_what_the_folded_network_does(
    name: str, images: int, height: int, width: int, dtype: torch.dtype, rounding: float
) -> None:
    if not native.program_takes(dtype):
        pytest.skip(f"this processor does not multiply {dtype}")
    spec = network(name, num_classes=7, in_channels=2)
    model, _ = used(spec)
    folded = folding.folded(model.float(), torch.float32)
    answer = program.answering(folded, dtype)
    assert answer is not None
    source = torch.Generator().manual_seed(2)
    for _ in range(2):  # nothing is left of the first batch
        x = torch.randn(images, 2, height, width, generator=source).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            found, expected = answer(x), folded(x)
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < rounding


@pytest.mark.parametrize("name", ["resnet14-original-shortcut-gate-6", "resnet14-plain", "resnet18-preact"])
def test_some_networks_have_no_program(name: str) -> None:
    """A gate, no shortcut at all, and weights that no cache holds."""
    model, _ = used(network(name))
    assert program.answering(folding.folded(model.float(), torch.float32)) is None


@needs_compiler
def test_a_program_serves_several_threads() -> None:
    model, _ = used(network("resnet14-preact"))
    answer = answering(model.float(), "float32")
    x = torch.randn(16, 1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    expected = [answer(one) for one in x]
    with ThreadPoolExecutor(4) as threads:
        assert all(map(torch.equal, threads.map(answer, x), expected))
