"""How does a recipe become a trained network in a folder?"""

import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import preresnet.device as devices
from preresnet import inference, trained
from preresnet.data import augment, sets
from preresnet.data.files import ImageFiles
from preresnet.data.loaders import evaluations, fit, fixed_batch, training_batches
from preresnet.data.sets import Images
from preresnet.model import memory, weights
from preresnet.model.network import Network, build
from preresnet.pictures import canvas, curves
from preresnet.recipe import Precision, Recipe
from preresnet.spec import MemoryPlan, NetSpec, to_json
from preresnet.train import checkpoint, folder, runlog
from preresnet.train.capture import Steps, own_stream
from preresnet.train.optim import set_lr, sgd
from preresnet.train.watch import Watch, Watching


class InterruptedRunError(Exception):
    """Ctrl-C or SIGTERM ended a run after its checkpoint was saved."""

    def __init__(self, signal_number: int, step: int, out: Path) -> None:
        super().__init__(f"stopped at step {step}; saved in {out}. Continue with the same command and --resume")
        self.exit_code = 128 + signal_number


class NotFiniteError(Exception):
    """The loss became infinite or not a number."""


@dataclass
class State:
    """A run between two steps."""

    model: Network
    optimizer: torch.optim.Optimizer
    step: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def progress(self) -> dict[str, Any]:
        """The counters, for a checkpoint."""
        names = ("step", "train_seconds", "wait_seconds", "evaluations")
        return {name: getattr(self, name) for name in names}


def train(request: folder.Request, watch: Watch | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave in ``request.out`` all that came of it.

    Args:
        request: what to train, and where.
        watch: looks at the network on the way; the result does not depend on it.

    Returns:
        The content of ``result.json``: the error at the last step, and everything needed to repeat it.

    Raises:
        ValueError: bad input; nothing was changed.
        InterruptedRunError: a signal ended the run; it can be resumed.
        NotFiniteError: the loss was not finite; the last checkpoint was kept.
    """
    recipe, out = request.recipe, request.out
    device = devices.choose(request.device)
    precision = devices.resolve(recipe.precision, device)
    num_classes, in_channels = sets.shape(recipe.data, request.data_root)
    known = trained.stored_classes(out) if request.resume else None
    spec = folder.resolve_network(recipe, len(known or ()) or num_classes, in_channels)
    folder.check(request, spec)
    data = sets.load(recipe.data, request.data_root)
    if known is not None:
        data = trained.with_classes(data, known, request.data_root, whole=True)

    plan, predicted = _plan(request, spec, device, precision)
    torch.manual_seed(request.seed)
    model = build(spec, request.seed)
    memory.set_plan(model, plan)
    devices.place(model, device)
    state = State(model, sgd(model, recipe.optim))
    folder.claim(request, spec, device, precision)
    if (out / checkpoint.CHECKPOINT_FILE).is_file():
        for name, value in checkpoint.restore(out, state.model, state.optimizer).items():
            setattr(state, name, value)

    normalisation = fit(data.train, recipe.data)
    kept = trained.metadata(recipe.data, data.classes, normalisation)
    log = runlog.RunLog(out, recipe.schedule.steps, state.step)
    free = devices.free_bytes(device)
    log.say(data.words())
    log.say(f"memory plan {plan}: {predicted / 2**30:.2f} GiB predicted, {free / 2**30:.1f} GiB free")
    try:
        _loop(state, request, data, normalisation.to(device), device, precision, log, kept, watch)
    finally:
        log.close()
    result = _result(request, state, data, spec, device, precision) | {
        "memory_plan": plan,
        "memory_predicted_bytes": predicted,
    }
    _write_json(out / folder.RESULT_FILE, result, indent=1)
    name = request.name or recipe.network
    curve = curves.Curve(name, (curves.measured(runlog.read(out)),))
    picture = curves.draw_curves([curve], f"{name}, seed {request.seed}", data.split)
    canvas.save(picture, out / folder.CURVE_FILE, dpi=200)
    return result


def _plan(request: folder.Request, spec: NetSpec, device: torch.device, precision: Precision) -> tuple[MemoryPlan, int]:
    """The memory plan of a run, and the bytes that a step is predicted to take."""
    recipe = request.recipe
    size, batch = recipe.data.image_size, recipe.norm_batch or recipe.global_batch
    fused = device.type == "cpu"
    if request.memory == "auto":
        plan, found = memory.choose(spec, size, batch, precision, devices.free_bytes(device), fused=fused)
    else:
        plan = request.memory
        found = memory.predict(spec, size, batch, precision, plan, fused=fused)
    return plan, found["peak_bytes"]


def _loop(
    state: State,
    request: folder.Request,
    data: sets.ImageSet,
    normalisation: augment.Normalisation,
    device: torch.device,
    precision: Precision,
    log: runlog.RunLog,
    kept: dict[str, str],
    watch: Watch | None,
) -> None:
    recipe, last = request.recipe, request.recipe.schedule.steps
    small_steps = recipe.small_steps
    train_images = data.train.to(device)
    batches = training_batches(
        train_images, recipe.data, normalisation, recipe.global_batch, request.seed, small_steps, request.workers
    )
    held = data.evaluation.to(device)
    state.model.train()
    watching = watch and Watching(
        watch,
        request.out,
        state.model,
        lambda count: fixed_batch(train_images, recipe.data, normalisation, count),
        start=state.step,
        last=last,
        trained=state.train_seconds,
        say=log.say,
    )
    if watching and state.step == 0:
        watching.look(0)
    window = _Window(state)
    step = Steps(state.model, state.optimizer, recipe.norm_batch, precision)
    with _Signals() as signals, own_stream(device):
        while state.step < last:
            begin = time.perf_counter()
            x, y = batches.at(state.step)
            state.wait_seconds += time.perf_counter() - begin
            lr = recipe.schedule.at(state.step)
            set_lr(state.optimizer, lr)
            window.add(*step(x, y))
            state.step += 1
            if watching:
                window.begin += watching.look(state.step)  # no time of training
            done, stop = state.step == last, signals.received
            if not (done or stop or any(state.step % every == 0 for every in _rhythms(recipe))):
                continue  # nothing below is due, and nothing above waited for the device

            line = window.close(state, recipe.global_batch)
            state.train_seconds = line.pop("train_seconds")
            if state.step % recipe.log_every == 0 or done:
                log.write(state.step, **line, lr=lr)
                log.show(state.step, _words(line, state.evaluations))
            if state.step % recipe.eval_every == 0 or done:
                entry = _evaluate(state.model, request, data, held, normalisation, precision, full=done)
                state.evaluations.append({"step": state.step, "split": data.split, **entry})
                log.write(state.step, split=data.split, error_pct=entry["error_pct"], evaluation_loss=entry["loss"])
            if state.step % recipe.save_every == 0 or done or stop:
                checkpoint.save(request.out, state.model, state.optimizer, state.progress())
                weights.save(request.out / weights.WEIGHTS_FILE, state.model, {"step": str(state.step), **kept})
            if stop and not done:
                raise InterruptedRunError(stop, state.step, request.out)
            window = _Window(state)
    if watching:
        share = 100 * watching.seconds / (watching.seconds + state.train_seconds)
        log.say(f"probes: {watching.count}, {watching.seconds:.1f} s, {share:.1f} % of the time of this run")


def _evaluate(
    model: Network,
    request: folder.Request,
    data: sets.ImageSet,
    held: Images | ImageFiles,
    normalisation: augment.Normalisation,
    precision: Precision,
    *,
    full: bool,
) -> dict[str, Any]:
    """Errors on the first test crop; at the end also on the others, and the report of the first in its own file."""
    passes = evaluations(held, request.recipe.data, normalisation, request.workers)
    first, *others = passes if full else list(passes)[:1]
    output, labels = inference.logits(model, passes[first], precision)
    errors = inference.count_errors(output, labels)
    entry: dict[str, Any] = {"loss": errors.loss, **_shares(errors)}
    if full:
        report = {"split": data.split, **inference.full_report(output, labels, data.classes)}
        _write_json(request.out / folder.EVALUATION_FILE, report)
        answers = {crop: inference.logits(model, passes[crop], precision) for crop in others}
        entry["other_crops"] = {str(crop): _shares(inference.count_errors(*answer)) for crop, answer in answers.items()}
    return entry


def _shares(errors: inference.Errors) -> dict[str, float]:
    return {"error_pct": errors.error_pct, "top5_error_pct": errors.top5_error_pct}


class _Window:
    """Losses since the last look, left on the device until they are needed."""

    def __init__(self, state: State) -> None:
        self.start_step, self.before = state.step, state.train_seconds
        self.wait_before = state.wait_seconds
        self.begin = time.perf_counter()
        self.losses: list[Tensor] = []
        self.wrong: list[Tensor] = []

    def add(self, loss: Tensor, wrong: Tensor) -> None:
        self.losses.append(loss)
        self.wrong.append(wrong)

    def close(self, state: State, batch: int) -> dict[str, float]:
        losses = torch.stack(self.losses).double().cpu()
        finite = losses.isfinite()
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise NotFiniteError(
                f"the loss was {losses[bad].item()} at step {self.start_step + bad + 1}; the run stopped. "
                "The last checkpoint was kept; a lower learning rate or float32 may help"
            )
        seconds = time.perf_counter() - self.begin
        images = len(losses) * batch
        return {
            "loss": float(losses.mean()),
            "train_error_pct": 100 * float(torch.stack(self.wrong).sum()) / images,
            "images_per_s": images / seconds,
            "data_wait_pct": 100 * (state.wait_seconds - self.wait_before) / seconds,
            "train_seconds": self.before + seconds,
        }


class _Signals:
    """Turns Ctrl-C and SIGTERM into a flag that the loop reads between two steps; a second one acts at once."""

    def __enter__(self) -> "_Signals":
        self.received = 0
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever called from there handles signals
                break
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _write_json(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    checkpoint.write_atomically(path, lambda partial: partial.write_text(json.dumps(content, indent=indent) + "\n"))


def _rhythms(recipe: Recipe) -> tuple[int, int, int]:
    return recipe.log_every, recipe.eval_every, recipe.save_every


def _words(line: dict[str, float], evaluations: list[dict[str, Any]]) -> str:
    text = (
        f"loss {line['loss']:.4f}  train error {line['train_error_pct']:.2f} %  {line['images_per_s']:.0f} images/s  "
        f"data wait {line['data_wait_pct']:.1f} %"
    )
    if evaluations:
        text += f"  {evaluations[-1]['split']} error {evaluations[-1]['error_pct']:.2f} %"
    return text


def _result(
    request: folder.Request,
    state: State,
    data: sets.ImageSet,
    spec: NetSpec,
    device: torch.device,
    precision: Precision,
) -> dict[str, Any]:
    last, best = state.evaluations[-1], min(state.evaluations, key=lambda entry: entry["error_pct"])
    return {
        "error_pct": last["error_pct"],  # at the last step
        "top5_error_pct": last["top5_error_pct"],
        **({"other_crops": last["other_crops"]} if last["other_crops"] else {}),  # by size, at the last step too
        "split": data.split,
        "num_images": len(data.evaluation),
        "steps": state.step,
        "loss": last["loss"],
        f"best_error_pct_chosen_on_{data.split}": best["error_pct"],
        "seed": request.seed,
        **folder.provenance(request, device, precision),
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "train_seconds": round(state.train_seconds, 1),
        "images_per_s": round(state.step * request.recipe.global_batch / max(state.train_seconds, 1e-9), 1),
        "data_wait_pct": round(100 * state.wait_seconds / max(state.train_seconds, 1e-9), 2),
        "recipe": json.loads(to_json(request.recipe)),
        "network": json.loads(to_json(spec)),
        "evaluations": [[entry["step"], entry["error_pct"]] for entry in state.evaluations],
    }
