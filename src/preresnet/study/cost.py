"""The cost of a study's runs, predicted: images, and hours on this device.

Hours are predicted from steps that are really timed: for each kind of residual unit, at the recipe's batch and
precision, two shallow networks of 1 and 3 units a stage. A unit adds the same time at any depth, so a line through the
two, in multiply-adds, gives the deep ones, without the minutes that a step of 1001 layers may take. Evaluations are
timed and extended alike. Runs are counted one after the other.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import preresnet.device as devices
from preresnet import inference
from preresnet.data import sets
from preresnet.model.describe import multiply_adds
from preresnet.model.network import build
from preresnet.recipe import DATA_SETS, ImagesInFiles, Optim, Precision, Recipe
from preresnet.spec import NetSpec, UserError
from preresnet.study.plan import Plan, run_folder
from preresnet.train.folder import resolve_network
from preresnet.train.optim import build_optimizer, set_lr, update

SHALLOW = (1, 3)  # units a stage
TIMED_S, TIMED_STEPS = 0.3, 20  # a measurement ends with the first of the two, after one step that warms up
MEASURED = (
    f"timed steps of two shallow networks of each kind of unit ({SHALLOW[0]} and {SHALLOW[1]} units a stage), extended "
    "along a line to the multiply-adds of each row; one run at a time"
)


@dataclass(frozen=True)
class Work:
    """What one run computes.

    Args:
        spec: its network.
        size: height and width of its images.
        steps: weight updates.
        batch: images of each.
        evaluated: images evaluated in all, counted as so many of the size of training.
        optim: its optimiser.
        norm_batch: images that a norm sees at once.
        precision: of its steps.
    """

    spec: NetSpec
    size: int
    steps: int
    batch: int
    evaluated: int
    optim: Optim
    norm_batch: int | None
    precision: Precision


def predict(
    plan: Plan,
    seeds: int,
    device_name: str,
    out: Path | None,
    data_root: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """List the runs of a plan with their cost.

    Args:
        plan: from `preresnet.study.plan`.
        seeds: runs of each row.
        device_name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        out: folder of the study, for the places of the runs.
        data_root: of the data set ``folder``, whose classes and images are counted.
        report: is told what is measured.

    Returns:
        ``study``, ``title``, ``scale``, ``device``, ``measured`` (how), ``runs``: each with ``row``, ``label``,
        ``seed``, ``network``, ``data``, ``folder``, ``steps``, ``batch``, ``images`` (training), ``multiply_adds`` (of
        an image) and ``hours``; and ``images`` and ``hours`` of all together. Rows that test the same run share its
        cost: the second of them has none.

    Raises:
        ValueError: no such device.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}; it must be 1 or more")
    device = devices.choose(device_name)
    works = {row.name: work(row.recipe, device, data_root) for row in plan.rows}
    adds = {spec: multiply_adds(spec, size) for spec, size in {(one.spec, one.size) for one in works.values()}}
    lines: dict[Any, Callable[[int], tuple[float, float]]] = {}
    runs, seen = [], set()
    for seed in range(seeds):
        for row in plan.rows:
            one = works[row.name]
            folder = run_folder(out or Path(), row, seed)
            key = kind(one)
            if key not in lines:
                report(f"timing {row.network}'s kind of unit")
                lines[key] = line(one, device)
            per_image, per_evaluated = lines[key](adds[one.spec])
            images = 0 if folder in seen else one.steps * one.batch
            evaluated = 0 if folder in seen else one.evaluated
            seen.add(folder)
            runs.append(
                {
                    "row": row.name,
                    "label": row.label,
                    "seed": seed,
                    "network": row.network,
                    "data": row.data,
                    "folder": str(folder),
                    "steps": one.steps,
                    "batch": one.batch,
                    "images": images,
                    "multiply_adds": adds[one.spec],
                    "hours": round((images * per_image + evaluated * per_evaluated) / 3600, 4),
                }
            )
    return {
        "study": plan.study,
        "title": plan.title,
        "scale": plan.scale.given if plan.scale else None,
        "device": devices.describe(device),
        "measured": MEASURED,
        "images": sum(run["images"] for run in runs),
        "hours": round(sum(run["hours"] for run in runs), 3),
        "runs": runs,
    }


def work(recipe: Recipe, device: torch.device, root: Path | None) -> Work:
    """What a run by a recipe computes.

    Args:
        recipe: of the run.
        device: that it runs on.
        root: folder of its images, where they have to be counted.
    """
    classes, channels = sets.shape(recipe.data, root)
    evaluated = (
        recipe.data.holdout or DATA_SETS[recipe.data.name].num_test or len(sets.load(recipe.data, root).evaluation)
    )
    return Work(
        spec=resolve_network(recipe, classes, channels),
        size=recipe.data.image_size,
        steps=recipe.schedule.steps,
        batch=recipe.global_batch,
        evaluated=round(_passes(recipe) * evaluated),
        optim=recipe.optim,
        norm_batch=recipe.norm_batch,
        precision=devices.resolve(recipe.precision, device),
    )


def _passes(recipe: Recipe) -> float:
    """Over the evaluated images, in all; one on larger crops counts as their pixels do."""
    size = recipe.data.image_size
    crops = recipe.data.test_crops if isinstance(recipe.data, ImagesInFiles) else (size,)
    first, *others = [(crop / size) ** 2 for crop in crops]
    return -(-recipe.schedule.steps // recipe.eval_every) * first + sum(others)


def kind(work: Work) -> str:
    """What decides the time of a unit: all but depth, classes and the values of a shortcut's numbers."""
    shortcut = asdict(work.spec.unit.shortcut)
    is_plain = shortcut.get("shortcut") == 0.0
    unit = asdict(work.spec.unit) | {"shortcut": (shortcut["kind"], is_plain)}
    widths = [(stage.width, stage.stride, stage.bottleneck_ratio) for stage in work.spec.stages]
    key = (unit, work.spec.stem, widths, work.spec.dialect, work.size, work.batch, work.norm_batch, work.precision)
    return repr((*key, work.optim.kind))


def line(work: Work, device: torch.device) -> Callable[[int], tuple[float, float]]:
    """Seconds an image, of training and of evaluation, as a function of its multiply-adds."""
    points = []
    for units in SHALLOW:
        spec = replace(work.spec, stages=tuple(replace(stage, num_units=units) for stage in work.spec.stages))
        points.append((multiply_adds(spec, work.size), *_seconds(replace(work, spec=spec), device)))
    (fewer_adds, *shallow), (more_adds, *deep) = points

    def at(adds: int) -> tuple[float, float]:
        found = []
        for low, high in zip(shallow, deep, strict=True):
            slope = max(0.0, (high - low) / (more_adds - fewer_adds))
            # noise can make the slope 0; a deeper network still takes longer
            found.append(max(low + slope * (adds - fewer_adds), low * adds / more_adds))
        return found[0], found[1]

    return at


def _seconds(work: Work, device: torch.device) -> tuple[float, float]:
    """Seconds an image of training and of evaluation."""
    # a norm's part of the batch is a pass of its own: its time is that of a batch of that size
    batch = min(work.batch, 32) if work.size > 64 else work.norm_batch or work.batch
    model = build(work.spec, 0)
    devices.place(model, device)
    optimizer = build_optimizer(model, work.optim, precision=work.precision)
    set_lr(optimizer, 0.01)
    x = torch.randn(batch, work.spec.in_channels, work.size, work.size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch, device=device) % work.spec.num_classes
    model.train()
    training = _timed(lambda: update(model, optimizer, x, y, None, work.precision)[0].item())
    answer = inference.answering(model, work.precision)
    evaluation = _timed(lambda: answer(x).sum().item())
    return training / batch, evaluation / batch


def _timed(once: Callable[[], Any]) -> float:
    """Seconds of one call: the fastest of several, because a disturbance only makes it longer."""
    once()
    took = []
    begin = time.perf_counter()
    while not took or (time.perf_counter() - begin < TIMED_S and len(took) < TIMED_STEPS):
        start = time.perf_counter()
        once()
        took.append(time.perf_counter() - start)
    return min(took)
