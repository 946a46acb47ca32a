"""What a recipe leaves to the data and to the machine: how many steps a run has, and at which size its images."""

import tempfile
import time
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from preresnet import distributed, inference
from preresnet.changes import changed
from preresnet.data import balance, scan, shards
from preresnet.data.image_set import ImageSet
from preresnet.data.loaders import evaluations
from preresnet.fields import UserError
from preresnet.model import weights
from preresnet.recipe import Photographs, Recipe
from preresnet.train import checkpoint, folder
from preresnet.train.capture import TrainingStep, own_stream
from preresnet.train.optim import set_lr
from preresnet.train.run import STATISTICS_IMAGES, Run, prepare

EPOCHS = 100  # of a recipe for photographs, where nothing else is asked for
EVALUATIONS = 20  # of a run, at most
EVALUATION_SHARE = 0.1  # of its time, at most
FINE_LR = 0.02  # of a run that starts from trained weights
LEAST_BATCHES = 8  # in an epoch; a smaller set has smaller batches
FIRST_STEPS, LEAST_STEPS = 3, 5  # before steps are timed; that are timed
MEASURED_SHARE, MEASURED_S = 0.05, 20.0  # of a run's time, for measuring it; at most


@dataclass(frozen=True)
class Length:
    """How long a run is to be; nothing given: as its recipe says.

    Args:
        epochs: times that every training image is seen.
        minutes: that it takes on this machine, with its evaluations and checkpoints.
        begin: when the minutes began, in seconds of `time.perf_counter`; None: when it is fitted.
    """

    epochs: float | None = None
    minutes: float | None = None
    begin: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise UserError("--epochs and --minutes are both given; give one of them")
        for name in ("epochs", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                raise UserError(f"--{name} {value}; it must be above 0")


@dataclass(frozen=True)
class Fitted:
    """A request whose recipe is whole.

    Args:
        request: what to train, and where.
        said: a sentence for all that was chosen.
        data: images, where they had to be read; None: they were not.
    """

    request: folder.Request
    said: tuple[str, ...] = ()
    data: ImageSet | None = None


def fitted(
    request: folder.Request, length: Length, given: Collection[str] = (), data: ImageSet | None = None
) -> Fitted:
    """What a recipe leaves open, chosen.

    A recipe for photographs is fitted to them: no larger than they are, batches that a small set has several of. A run
    that is resumed keeps what was chosen when it began.

    Args:
        request: what to train, and where.
        length: how long.
        given: fields of the recipe that are not to be chosen, by their full names: ``schedule.steps``.
        data: as for `preresnet.train.run.prepare`.

    Raises:
        UserError: bad input, as for `preresnet.train.run.prepare`.
    """
    begin = time.perf_counter() if length.begin is None else length.begin
    own, asked = isinstance(request.recipe.data, Photographs), length.epochs or length.minutes
    if not own and not asked:
        return Fitted(request)
    if "schedule.steps" in given and asked:
        raise UserError("schedule.steps is given, and --epochs or --minutes too; give one of them")
    stored = request.out / folder.RECIPE_FILE
    if request.resume and stored.is_file():
        return Fitted(_as_begun(request, folder.stored_as(Recipe, stored), given))
    said: list[str] = []
    if own:
        request = _of_source(_sized(request, given, said), given, said)
    run = prepare(request, data)
    if own:
        request = _batched(request, run, given, said)
        run = prepare(request, run.data) if request.recipe.global_batch != run.recipe.global_batch else run
    epoch = _epoch(run)
    batch, evaluation = request.recipe.global_batch, 0.0
    if length.minutes is not None:
        step, evaluation = _seconds(run, 60 * length.minutes)
        left = 60 * length.minutes - distributed.shared(lambda: time.perf_counter() - begin)
        times = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * left / evaluation)))
        steps = int((left - times * evaluation) / step)
        if steps < 1:
            raise UserError(
                f"--minutes {length.minutes:g}: here a step takes {step:.1f} s, an evaluation {evaluation:.1f} s, so "
                "that nothing could be trained; give more minutes, a smaller --network or --data.image-size"
            )
        said.append(
            f"{length.minutes:g} minutes are {steps:,} steps of {batch} images, {steps * batch / epoch:.3g} epochs: a "
            f"step takes {step:.3f} s, an evaluation {evaluation:.1f} s, measured here"
        )
    elif "schedule.steps" in given:
        steps, times = request.recipe.schedule.steps, EVALUATIONS
    else:
        epochs = EPOCHS if length.epochs is None else length.epochs
        steps, times = max(1, round(epochs * epoch / batch)), EVALUATIONS
        said.append(f"{epochs:g} epochs of {epoch:,} images are {steps:,} steps of {batch} images")
    recipe = _of_length(request.recipe, steps, times, given)
    return Fitted(replace(request, recipe=recipe), tuple(said), run.data)


def _as_begun(request: folder.Request, stored: Recipe, given: Collection[str]) -> folder.Request:
    """What was chosen when the run began, and what is given now."""
    return replace(request, recipe=changed(stored, {name: _value(request.recipe, name) for name in given})[0])


def _value(recipe: Recipe, name: str) -> Any:
    found: Any = recipe
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _sized(request: folder.Request, given: Collection[str], said: list[str]) -> folder.Request:
    """Crops no larger than the photographs."""
    data = request.recipe.data
    if "data.image_size" in given or request.data_root is None:
        return request
    if shards.find(request.data_root):
        side = shards.median_side(shards.read(request.data_root, "train")[1])
    else:
        side = scan.median_side(request.data_root)
    size = max(32, side // 32 * 32)
    if size >= data.image_size:
        return request
    said.append(f"the images are {side} pixels wide or high (the median of the shorter sides): data.image_size={size}")
    recipe, more = changed(request.recipe, {"data.image_size": size})
    said += more
    return replace(request, recipe=recipe)


def _of_source(request: folder.Request, given: Collection[str], said: list[str]) -> folder.Request:
    """A gentle start from a trained network: Muon would bring its kernels to another norm, and change what it knows."""
    if request.weights is None or any(name.startswith("optim.") for name in given):
        return request
    wanted = {"optim.kind": "sgd"} | ({} if "schedule.lr" in given else {"schedule.lr": FINE_LR})
    said.append(f"from trained weights: {', '.join(f'{name}={value}' for name, value in wanted.items())}")
    return replace(request, recipe=changed(request.recipe, wanted)[0])


def _batched(request: folder.Request, run: Run, given: Collection[str], said: list[str]) -> folder.Request:
    """Batches that an epoch has several of, with a learning rate in proportion."""
    recipe, images = request.recipe, len(run.data.train)
    batch = recipe.global_batch
    while batch > 4 and batch * LEAST_BATCHES > images:
        batch //= 2
    if "global_batch" in given or batch == recipe.global_batch:
        return request
    schedule = recipe.schedule
    if "schedule.lr" not in given:
        schedule = replace(schedule, lr=schedule.lr * batch / recipe.global_batch)
    said.append(f"{images:,} images to train on: global_batch={batch}, schedule.lr={schedule.lr:g}")
    return replace(request, recipe=replace(recipe, global_batch=batch, schedule=schedule))


def _epoch(run: Run) -> int:
    """Images that an epoch has."""
    data = run.recipe.data
    if not isinstance(data, Photographs):
        return len(run.data.train)
    repeats = balance.choose(data, run.data.train.labels, run.data.classes).repeats
    return len(run.data.train) if repeats is None else round(float(repeats.double().sum()))


def _seconds(run: Run, budget: float) -> tuple[float, float]:
    """Of a step, and of an evaluation with its checkpoints; measured within a share of the time there is."""
    allowed = min(MEASURED_S, MEASURED_SHARE * budget)
    run.begin()
    with own_stream(run.device, run.mechanisms), closing(run.training_step()) as update:
        return _measured(run, update, allowed)


def _measured(run: Run, update: TrainingStep, allowed: float) -> tuple[float, float]:
    set_lr(run.optimizer, 1e-6)
    batches = run.batches()
    begin, steps = time.perf_counter(), 0
    while distributed.shared(lambda: steps < LEAST_STEPS or time.perf_counter() - begin < allowed):  # noqa: B023
        if steps == 0:
            for first in range(FIRST_STEPS):
                update(*batches.at(first))[0].item()
            begin = time.perf_counter()
        update(*batches.at(FIRST_STEPS + steps))[0].item()
        steps += 1
    step = (time.perf_counter() - begin) / steps
    there = len(run.data.evaluation)
    chosen = torch.arange(min(64, there), device=run.evaluation_images.labels.device) * there // min(64, there)
    some = run.evaluation_images.take(chosen)
    for _ in range(2):  # the first is slower
        begin = time.perf_counter()
        passes = evaluations(some, run.recipe.data, run.normalisation, run.request.workers)
        inference.logits(run.model, next(iter(passes.values())), run.precision)
    images = there + (min(STATISTICS_IMAGES, len(run.data.train)) if run.average else 0)
    evaluation = (time.perf_counter() - begin) * images / len(some)
    return distributed.shared(lambda: (step, evaluation + 2 * _saving(run)))  # it is saved before and after it


def _saving(run: Run) -> float:
    """Seconds that a checkpoint and the weights take to be written."""
    with tempfile.TemporaryDirectory() as place:
        begin, model = time.perf_counter(), run.average.model if run.average else run.model
        checkpoint.save(Path(place), run.model, run.optimizer, {}, run.average and run.average.model)
        weights.save(Path(place) / weights.WEIGHTS_FILE, model, {})
        return time.perf_counter() - begin


def _of_length(recipe: Recipe, steps: int, times: int, given: Collection[str]) -> Recipe:
    """A recipe of so many steps, evaluated and saved so many times."""
    made = recipe if steps == recipe.schedule.steps else changed(recipe, {"schedule.steps": steps})[0]
    every = -(-steps // times)
    rhythm = {"eval_every": every, "save_every": every, "log_every": max(1, min(recipe.log_every, steps // 20))}
    return replace(made, **{name: value for name, value in rhythm.items() if name not in given})
