"""One system in a process of its own: it builds a network, takes steps, and says how long and how much memory."""

import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import preresnet.device as devices
from preresnet import inference
from preresnet.model import memory
from preresnet.model.network import build, set_fused
from preresnet.recipe import SGD, Precision
from preresnet.signals import take_no_interrupts
from preresnet.spec import MemoryPlan, NetSpec, from_json
from preresnet.train.capture import EAGER_STEPS, Mechanism, TrainingStep, own_stream
from preresnet.train.optim import build_optimizer, set_lr

ROUND_S = 0.3  # a system's share of a round lasts at least this long
REST_S = 0.1  # until the threads of the system before are asleep: after a step they stay busy for a while
LR = 1e-3


@dataclass(frozen=True)
class Setup:
    """One system at one setting.

    Args:
        system: ``preresnet``, ``pytorchcv``, ``timm`` or ``limit``.
        mode: the setting's name.
        settings: the setting in words.
        network: a `NetSpec` as JSON, or the other system's name of it.
        size: height and width of the images.
        classes: outputs.
        channels: of the images.
        batch: images in a step.
        device: where it runs.
        precision: ``float32`` or ``bfloat16`` autocast.
        training: whole training steps, or answers alone.
        plan: memory plan of ours.
        fused: whether ours uses its own operations.
        gpu: mechanisms of ours on a CUDA device.
        channels_last: memory layout of the other systems.
        runner: what runs another system's network.
    """

    system: str
    mode: str
    settings: str
    network: str
    size: int
    classes: int
    channels: int
    batch: int
    device: str
    precision: Precision
    training: bool
    plan: MemoryPlan = "plain"
    fused: bool = True
    gpu: tuple[Mechanism, ...] = ()
    channels_last: bool = True
    runner: Literal["eager", "compiled", "onnxruntime"] = "eager"

    @property
    def name(self) -> str:
        """For ratios and messages."""
        return f"{self.system} {self.mode}"


def serve(pipe: Any, setup: Setup) -> None:
    """Answer a parent process until it sends 0.

    Sends ``first_step_s`` once; for each number of steps received, ``seconds`` of one of them; at the end
    ``peak_bytes``, beyond what the process held before the network was built. An exception becomes ``error``.

    Args:
        pipe: a `multiprocessing.connection.Connection` to the parent.
        setup: what to run.
    """
    take_no_interrupts()
    try:
        device = torch.device(setup.device)
        with own_stream(device, setup.gpu):
            _serve(pipe, setup, device)
    except Exception as error:  # the parent decides whether that ends the run
        pipe.send({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"})


def _serve(pipe: Any, setup: Setup, device: torch.device) -> None:
    _warm(device)
    before = _memory(device)
    step = _prepare(setup, device)
    begin = time.perf_counter()
    step()
    _wait(device)
    pipe.send({"first_step_s": round(time.perf_counter() - begin, 3)})
    settling = EAGER_STEPS + 1 if device.type == "cuda" else 1  # memory and caches; until a step is captured
    seconds = _timed(step, settling, device) / settling
    while steps := pipe.recv():
        time.sleep(REST_S)
        step()
        steps = max(steps, math.ceil(ROUND_S / seconds))
        seconds = _timed(step, steps, device) / steps
        pipe.send({"seconds": seconds})
    pipe.send({"peak_bytes": _peak(device) - before})


def _timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return time.perf_counter() - begin


def _warm(device: torch.device) -> None:
    """Load what any training needs, so that it does not count as the network's memory."""
    import torch._dynamo

    x = torch.ones(1, 16, 8, 8, device=device, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        nn.functional.conv2d(x.to(dtype), torch.ones(16, 16, 3, 3, device=device, dtype=dtype)).sum().backward()
    gc.collect()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1024 if sys.platform == "linux" else 1  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _prepare(setup: Setup, device: torch.device) -> Callable[[], object]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(setup.batch, setup.channels, setup.size, setup.size, generator=source).to(device)
    y = torch.randint(0, setup.classes, (setup.batch,), generator=source).to(device)
    if setup.system in ("preresnet", "limit"):
        return _ours(setup, x.contiguous(memory_format=torch.channels_last), y)
    return _theirs(setup, x, y)


def _ours(setup: Setup, x: Tensor, y: Tensor) -> Callable[[], object]:
    spec = from_json(NetSpec, setup.network)
    model = build(spec, 0)
    devices.place(model, x.device)
    set_fused(model, ("compiled" in setup.gpu or None) if setup.fused else False)
    if not setup.training:
        if setup.fused and setup.system == "preresnet":
            answer = inference.answering(model, setup.precision)
            return lambda: answer(x)
        return _answering(model, model, x, setup.precision)
    memory.set_plan(model, setup.plan)
    optimizer = build_optimizer(model, SGD())
    set_lr(optimizer, LR)
    step = TrainingStep(model, optimizer, None, setup.precision, setup.gpu)
    return lambda: step(x, y)


def _theirs(setup: Setup, x: Tensor, y: Tensor) -> Callable[[], object]:
    if setup.system == "pytorchcv":
        from pytorchcv.model_provider import get_model  # pyright: ignore[reportMissingImports] - an extra

        model: nn.Module = get_model(setup.network)
    else:
        import timm  # pyright: ignore[reportMissingImports] - an extra

        model = timm.create_model(setup.network)
    model = model.to(x.device)
    if setup.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    if setup.runner == "onnxruntime":
        return _exported(model, x)
    called = torch.compile(model) if setup.runner == "compiled" else model
    if not setup.training:
        return _answering(model, called, x, setup.precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with devices.autocast(x.device, setup.precision):
            output = called(x)
        nn.functional.cross_entropy(output.float(), y).backward()
        optimizer.step()

    return step


def _exported(model: nn.Module, x: Tensor) -> Callable[[], object]:
    import onnxruntime  # pyright: ignore[reportMissingImports] - an extra

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "network.onnx")
        torch.onnx.export(model.eval(), (x,), file, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, fed)


def _answering(
    model: nn.Module, called: Callable[..., Tensor], x: Tensor, precision: Precision
) -> Callable[[], object]:
    model.eval()

    def step() -> None:
        with torch.inference_mode(), devices.autocast(x.device, precision):
            called(x)

    return step
