"""What the registered operations refuse, and how they behave beside the rest of PyTorch."""

import copy
import multiprocessing
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.fx.experimental.optimization
import torch.fx.proxy
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import preresnet
from preresnet.kernels import native, operations, passes
from preresnet.model import weights
from preresnet.model.memory import set_plan
from preresnet.model.network import Network, build, set_fused
from preresnet.model.preactivation import Norm
from preresnet.model.units import ResidualUnit
from preresnet.paper.networks import ORDERS
from preresnet.spec import (
    Dialect,
    ExclusiveGate,
    Identity,
    MemoryPlan,
    NetSpec,
    Shortcut,
    StageSpec,
    StemSpec,
    UnitSpec,
    UserError,
)

needs_kernels = pytest.mark.skipif(not native.available(), reason="no C++ compiler")


class Names(TorchDispatchMode):
    """The operations of ours that are executed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "preresnet":
            self.found.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def image(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def small(order: str = "preact", shortcut: Shortcut | None = None, dtype: torch.dtype = torch.float64) -> Network:
    spec = NetSpec(
        num_classes=5,
        stem=StemSpec(width=8),
        stages=(StageSpec(num_units=2, width=8), StageSpec(num_units=2, width=16, stride=2)),
        unit=UnitSpec(kind="basic", order=ORDERS[order], shortcut=shortcut or Identity()),
    )
    return build(spec, 0).to(dtype)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


# --- arguments that do not fit ------------------------------------------------------------------------------------


def refused(message: str, call: Callable[[], object], kind: type[Exception] = RuntimeError) -> None:
    with pytest.raises(kind, match=message):
        call()


@needs_kernels
def test_a_norm_of_other_channels_is_refused_as_pytorch_does() -> None:
    norm, x = Norm(16, Dialect(), relu=True), image(4, 64, 8, 8, dtype=torch.float32)
    plain = nn.BatchNorm2d(16)
    for module in (norm, plain):
        refused("running_mean should contain 64 elements not 16", lambda module=module: module(x))
    refused("4D input", lambda: norm(x[0]), ValueError)
    refused("more than 1 value per channel", lambda: norm(image(1, 16, 1, 1, dtype=torch.float32)), ValueError)


@needs_kernels
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_state_of_another_size_type_or_device_is_refused(name: str) -> None:
    x = image(4, 16, 8, 8, dtype=torch.float32)
    for made, message in (
        (lambda t: t[:8], f"{name} should contain 16 elements not 8"),
        (lambda t: t.view(4, 4), f"{name} should contain 16 elements"),
        (lambda t: t.half() if name != "weight" else t, f"expected {name} of scalar type torch.float32"),
        (lambda t: t.to("meta"), "same device"),
    ):
        norm = Norm(16, Dialect(), relu=False)
        tensor = made(getattr(norm, name).detach())
        if tensor.shape == (16,) and tensor.dtype == torch.float32 and not tensor.is_meta:
            continue  # a norm whose weight is half is computed by PyTorch's own operations
        setattr(norm, name, nn.Parameter(tensor) if name in ("weight", "bias") else tensor)
        refused(message, lambda norm=norm: norm(x))


@needs_kernels
def test_every_way_into_a_kernel_checks() -> None:
    x, other = image(4, 16, 8, 8, dtype=torch.float32), image(4, 16, 4, 4, dtype=torch.float32)
    vector, short = torch.ones(16), torch.ones(8)
    ops: Any = torch.ops.preresnet
    for call, message in (
        (lambda: ops.normalise(x, short, vector, None, 1e-5, True), "weight should contain 16 elements not 8"),
        (lambda: ops.normalise(x, vector, vector, torch.ones(2, 8), 1e-5, True), "moments should have shape"),
        (lambda: ops.normalise(x.half(), vector, vector, None, 1e-5, True), "not implemented"),
        (lambda: ops.normalise(x[:0], vector, vector, None, 1e-5, True), "has no values"),
        (lambda: ops.normalise(x[0], vector, vector, None, 1e-5, True), "expected 4D"),
        (lambda: ops.apply(x, vector, vector, short, vector, True), "mean should contain 16 elements not 8"),
        (lambda: ops.apply(x, vector, vector.double(), vector, vector, True), "expected bias of scalar type"),
        (lambda: ops.differentiate(x, other, *[vector] * 4, None, True), "expected grad of shape"),
        (lambda: ops.differentiate(x, x, *[vector] * 4, x.double(), True), "expected other of scalar type"),
        (lambda: ops.add(x, other), "expected b of shape"),
        (lambda: ops.add(x, x.bfloat16()), "expected b of scalar type"),
        (lambda: ops.add(x, x.to("meta")), "same device"),
        (lambda: ops.gate(x, short, x, x, True), "bias should contain 16 elements not 8"),
        (lambda: ops.gate(x, vector, other, x, True), "expected shortcut of shape"),
        (lambda: ops.differentiate_gate(x, vector, x, None, other), "expected grad of shape"),
        (lambda: passes.apply(x, short, vector, (vector, vector), relu=True), "weight should contain"),
        (lambda: operations.addition(x, other), "expected b of shape"),
    ):
        refused(message, call)


@needs_kernels
def test_any_layout_of_memory_gives_the_same() -> None:
    """Expanded, transposed, sliced, negated lazily: what PyTorch's own operations take."""
    x, grad = image(4, 16, 8, 8), image(4, 16, 8, 8, seed=1)
    wide = image(4, 40, 8, 8, seed=2)
    weight, bias = torch.full((1,), 2.0).double().expand(16), torch.linspace(-1, 1, 32).double()[::2]
    maps = {
        "contiguous": x.contiguous(),
        "sliced": wide[:, 3:19],
        "expanded": x[:, :1].expand(4, 16, 8, 8),
        "transposed": x.transpose(2, 3),
        "negated": torch._neg_view(x),  # pyright: ignore[reportPrivateImportUsage]
    }
    for name, map_ in maps.items():
        given = map_.detach().requires_grad_()
        y, *_ = operations.norm(given, weight, bias, (None, None), momentum=0, eps=1e-5, relu=True)
        # Of an expanded weight beside a map in channels_last, PyTorch's own backward pass reads what lies behind it.
        expected = F.relu(F.batch_norm(given, None, None, weight.contiguous(), bias.contiguous(), True, eps=1e-5))
        assert error(y, expected) < 1e-12, name
        found, wanted = (torch.autograd.grad(result, given, grad.contiguous()[:]) for result in (y, expected))
        assert error(found[0], wanted[0]) < 1e-10, name
        assert error(operations.addition(given, grad)[0], given + grad) < 1e-12, name


# --- beside the rest of PyTorch -----------------------------------------------------------------------------------


def call_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y, beside, *_ = operations.norm(x, weight, bias, (None, None), momentum=0, eps=1e-5, relu=True)
    return y * y + 3 * beside


def call_gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return operations.gated(x, bias, 2 * x, x * x, exclusive=True) * weight.view(-1, 1, 1)


def call_addition(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return operations.addition(x, x * x)[0] * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


OPERATIONS = {"norm": call_norm, "gated": call_gate, "addition": call_addition}


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = F.relu(F.batch_norm(x, None, None, weight, bias, True, eps=1e-5))
    return y * y + 3 * x


def plain_gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    gate = torch.sigmoid(x + bias.view(-1, 1, 1))
    return ((1 - gate) * 2 * x + gate * x * x) * weight.view(-1, 1, 1)


def plain_addition(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x + x * x) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


PLAIN = {"norm": plain_norm, "gated": plain_gate, "addition": plain_addition}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(2)
    weight, bias = (torch.randn(4, generator=source).double() for _ in range(2))
    return image(3, 4, 3, 3), weight, bias


def derivatives(function: Callable[..., Tensor]) -> dict[str, Any]:
    """All kinds of derivatives that PyTorch takes of its own operations."""
    given = inputs()
    tangents = tuple(tensor.flip(0) for tensor in given)

    def total(*inputs: Tensor) -> Tensor:
        return function(*inputs).square().sum()

    def dual(*inputs: Tensor) -> Tensor:
        with forward_ad.dual_level():
            made = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
            tangent = forward_ad.unpack_dual(function(*made)).tangent
            assert tangent is not None
            return tangent

    def batched(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        y = function(leaf, weight, bias)
        return torch.autograd.grad(y, leaf, torch.stack([y.detach(), x]), is_grads_batched=True)[0]

    func = torch.func
    return {
        "grad": func.grad(total, argnums=(0, 1, 2))(*given),
        "vmap": func.vmap(function)(*(torch.stack([tensor, 2 * tensor]) for tensor in given)),
        "vmap of grad": func.vmap(func.grad(total))(*(torch.stack([tensor, 2 * tensor]) for tensor in given)),
        "jvp": func.jvp(function, given, tangents),
        "hessian": func.hessian(total, argnums=1)(*given),
        "forward mode": dual(*given),
        "forward mode beside autograd": dual(*(tensor.clone().requires_grad_() for tensor in given)),
        "hvp": torch.autograd.functional.hvp(total, given, tangents)[1],
        "batched gradients": batched(*given),
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*", "ignore:There is a performance drop")
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_derivative_is_that_of_plain_operations(name: str) -> None:
    found, expected = derivatives(OPERATIONS[name]), derivatives(PLAIN[name])
    for kind, value in expected.items():
        torch.testing.assert_close(found[kind], value, rtol=1e-9, atol=1e-11, msg=kind)


@needs_kernels
def test_registrations_are_sound() -> None:
    """PyTorch's own checks: the schema, what a tensor without memory gives, and tracing."""
    x, grad, other = (image(4, 16, 4, 4, dtype=torch.float32, seed=seed) for seed in range(3))
    vectors = [torch.rand(16) + 0.5 for _ in range(4)]
    ops: Any = torch.ops.preresnet
    for operation, given in (
        (ops.normalise, (x, *vectors[:2], None, 1e-5, True)),
        (ops.normalise, (x.contiguous(), *vectors[:2], torch.rand(2, 16), 1e-5, False)),
        (ops.apply, (x, *vectors, True)),
        (ops.differentiate, (x, grad, *vectors, other, True)),
        (ops.differentiate, (x, grad, *vectors, None, False)),
        (ops.add, (x, other)),
        (ops.gate, (x, vectors[0], grad, other, True)),
        (ops.differentiate_gate, (x, vectors[0], grad, other, grad)),
        (ops.differentiate_gate, (x, vectors[0], grad, None, grad)),
    ):
        torch.library.opcheck(operation.default, given)


@needs_kernels
@pytest.mark.parametrize("shortcut", [Identity(), ExclusiveGate(-1)])
def test_a_compiled_network_trains_the_same(shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch) -> None:
    x, results, names = image(4, 3, 8, 8), [], []
    call = native.call
    monkeypatch.setattr(native, "call", lambda name, *given: (names.append(name), call(name, *given)))
    plans: tuple[MemoryPlan, ...] = ("plain", "recompute", "sqrt")
    for compiling, plan in product((False, True), plans):
        model = small("preact", shortcut)
        set_plan(model, plan)
        called = torch.compile(model, backend="aot_eager", fullgraph=True) if compiling else model
        names.clear()
        called(x).square().sum().backward()
        if (
            not compiling or names
        ):  # PyTorch 2.11 does not foresee the layout of convolutions in float64: plain operations
            assert {"normalise", "differentiate"} <= set(names)
            assert ("apply" in names) == (plan == "recompute" or (plan == "sqrt" and not compiling))
        results.append([p.grad for p in model.parameters()] + list(model.buffers()))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-11)


def test_a_unit_that_is_compiled_alone_is_not_recomputed() -> None:
    model = small("preact")
    set_plan(model, "units")
    model.get_submodule("stages.0.units.1").compile(backend="eager")
    with pytest.raises(UserError, match="compiled one by one"):
        model(image(4, 3, 8, 8))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_network_needs_nothing_of_ours(training: bool, strict: bool) -> None:
    model, x = small("preact", ExclusiveGate(-1)).train(training), image(4, 3, 8, 8)
    exported = torch.export.export(model, (x,), strict=strict)
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any("batch_norm" in name for name in called)
    assert not any("preresnet" in name for name in called)
    expected, again = copy.deepcopy(model), exported.module()
    assert error(again(x), expected(x)) < 1e-10
    if training:
        again(x).square().sum().backward()
        expected(x).square().sum().backward()
        for (name, p), (other, q) in zip(again.named_parameters(), expected.named_parameters(), strict=True):
            assert name == other
            assert p.grad is not None
            assert q.grad is not None
            assert error(p.grad, q.grad) < 1e-8, name


@pytest.mark.filterwarnings("ignore")  # that PyTorch would have it exported, and that a shape becomes a constant
def test_a_network_is_traced() -> None:
    model, x = preresnet.create_model("resnet8-preact", seed=0).eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.jit.trace(model, x)(x), model(x))  # type: ignore[operator]


@needs_kernels
def test_running_statistics_are_seen_to_change() -> None:
    norm, x = Norm(16, Dialect(), relu=True), image(4, 16, 4, 4, dtype=torch.float32)
    assert norm.running_mean is not None
    before = norm.running_mean._version
    norm(x)
    assert norm.running_mean._version > before
    saved = norm.running_mean * nn.Parameter(torch.ones(16))  # autograd keeps the buffer
    norm(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def trained(seed: int) -> list[Tensor]:
    """Gradients of one step."""
    model = small("preact", dtype=torch.float32)
    model(image(4, 3, 8, 8, dtype=torch.float32, seed=seed)).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@needs_kernels
def test_two_threads_do_not_disturb_each_other() -> None:
    expected, found = [trained(seed) for seed in range(2)], {}

    def work(seed: int) -> None:
        for _ in range(5):
            found[seed] = trained(seed)
            torch.testing.assert_close(found[seed], expected[seed], rtol=0, atol=1e-5)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(2):
        torch.testing.assert_close(found[seed], expected[seed], rtol=0, atol=1e-5)


def in_child(pipe: Any) -> None:
    """Runs in a process that was forked after the kernels had run."""
    torch.set_num_threads(1)
    pipe.send([grad.numpy() for grad in trained(0)])


@needs_kernels
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_computes_the_same() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, with PyTorch's own operations either
    try:
        expected = trained(0)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=in_child, args=(theirs,))
        process.start()
        assert ours.poll(60), "the child hangs"
        for found, wanted in zip(ours.recv(), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-6)
        process.join()
    finally:
        torch.set_num_threads(before)


# --- what replaces or edits modules -------------------------------------------------------------------------------


def test_pytorchs_converters_change_nothing_or_refuse() -> None:
    model = preresnet.create_model("resnet8-preact", seed=0)
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 32))
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert torch.equal(converted(x), before)
    unit = model.get_submodule("stages.0.units.0")
    conv, norm = unit.get_submodule("residual.conv1"), unit.get_submodule("residual.norm1")
    assert isinstance(norm, Norm)
    with pytest.raises(TypeError, match="ends in a ReLU"):
        torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)  # type: ignore[type-var]
    with pytest.raises(AssertionError, match="did not find fuser method"):
        torch.ao.quantization.fuse_modules(unit, [["residual.conv1", "residual.norm1"]])
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.experimental.optimization.fuse(unit)
    last = Norm(16, Dialect(), relu=False).eval()
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, last)  # type: ignore[type-var]
    h = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(fused(h), last(conv(h)))


def test_old_files_are_read_whether_they_count_batches_or_not() -> None:
    model = preresnet.create_model("resnet8-preact", seed=0)
    state = {name: value for name, value in model.state_dict().items() if "num_batches_tracked" not in name}
    assert all(hasattr(value, "shape") for value in state.values())
    other = preresnet.create_model("resnet8-preact", seed=1)
    other.load_state_dict(state)
    for name, value in state.items():
        assert torch.equal(other.state_dict()[name], value), name
    keys = {name.rpartition(".")[2] for name in model.state_dict() if name.startswith("head.norm")}
    assert keys == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def edited(_: nn.Module, __: object, y: Tensor) -> None:
    """Changes a tensor without autograd's or its version counter's knowledge."""
    y.data.mul_(3).add_(1)


def replaced(_: nn.Module, __: object, y: Tensor) -> Tensor:
    return 3 * y + 1


def before_it(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    inputs[0].data.mul_(3).add_(1)


def hook(model: Network, place: str, name: str) -> None:
    module = model.get_submodule(name)
    if place == "before":
        module.register_forward_pre_hook(before_it)
    else:
        module.register_forward_hook({"edit": edited, "replace": replaced}[place])


@pytest.mark.parametrize("order", ["preact", "bn-after"])
@pytest.mark.parametrize("place", ["edit", "replace", "before"])
@pytest.mark.parametrize("plan", ["plain", "sqrt"])
def test_what_a_hook_makes_of_a_sum_is_what_the_norm_behind_it_reads(order: str, place: str, plan: MemoryPlan) -> None:
    x = image(4, 3, 8, 8)
    names = ["stem", "stages.0", "stages.0.units", "stages.0.units.0", "stages.0.units.0.join", "stages.0.units.1"]
    names += ["stages", "stages.1.units.1", "stages.0.units.1.join", "head.norm"]
    names += ["stages.0.units.1.pre"] if order == "preact" else ["stages.0.units.1.after_add"]
    for name in names:
        if place == "before" and (name in ("stem",) or name.endswith("join")):
            continue  # the image itself; a join's input is no sum
        model = small(order)
        set_plan(model, plan if name not in ("stages.0.units",) else "plain")
        hook(model, place, name)
        plain = copy.deepcopy(model)
        set_fused(plain, False)
        assert error(model(x.clone()), plain(x.clone())) < 1e-9, name


def test_a_hook_on_all_modules_is_seen() -> None:
    model, x = small(), image(4, 3, 8, 8)
    plain = copy.deepcopy(model)
    set_fused(plain, False)

    def edit(module: nn.Module, _: object, y: Tensor) -> None:
        if isinstance(module, ResidualUnit):
            y.data.mul_(3).add_(1)

    handle = nn.modules.module.register_module_forward_hook(edit)
    try:
        assert error(model(x), plain(x)) < 1e-9
    finally:
        handle.remove()


def test_a_unit_with_another_forward_is_called_by_it() -> None:
    model, x = small(), image(4, 3, 8, 8)
    unit = model.get_submodule("stages.0.units.0")
    plain = copy.deepcopy(model)
    set_fused(plain, False)
    for one in (model, plain):
        unit = one.get_submodule("stages.0.units.0")
        own = unit.forward
        unit.forward = lambda x, own=own: 3 * own(x) + 1  # type: ignore[method-assign]
    assert error(model(x), plain(x)) < 1e-9
    assert error(model(x), small()(x)) > 1e-3


# --- which path runs ----------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize(
    "name", ["resnet26-preact", "resnet18-preact", "resnet20-original", "resnet29-preact-bottleneck"]
)
@pytest.mark.parametrize("channels", [3, 1])
def test_what_create_model_gives_runs_every_norm_as_passes(name: str, channels: int) -> None:
    model = preresnet.create_model(name, num_classes=10, in_channels=channels, seed=0)
    with Names() as names:
        model(torch.randn(8, channels, 32, 32))
    norms = sum(isinstance(module, Norm) for module in model.modules())
    assert names.found.count("normalise") == norms


@needs_kernels
def test_what_is_read_from_a_file_runs_as_passes(tmp_path: Any) -> None:
    weights.save(tmp_path / "weights.safetensors", preresnet.create_model("resnet8-preact", seed=0), {})
    model = preresnet.load(tmp_path).train()
    with Names() as names:
        model(torch.randn(8, 3, 32, 32))
    assert names.found.count("normalise") == 7


def test_off_a_cpu_passes_are_off_unless_asked_for() -> None:
    """The meta device stands for any that is no CPU."""
    for fused, expected in ((None, False), (False, False), (True, True)):
        with torch.device("meta"):
            model = Network(small().spec)
        set_fused(model, fused)
        with Names() as names:
            model(torch.empty(4, 3, 8, 8, device="meta"))
        assert bool(names.found) is expected
