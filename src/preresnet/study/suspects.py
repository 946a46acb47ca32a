"""Labels that are probably wrong: each image is judged by a network that was trained without it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preresnet import device as devices
from preresnet import inference, trained
from preresnet.data import division, files, leaving_out, own_images, shards
from preresnet.data.files import ImageFiles
from preresnet.data.image_set import ImageSet
from preresnet.data.loaders import evaluations
from preresnet.data.scan import scan
from preresnet.data.walk import normal
from preresnet.fields import UserError, read_json
from preresnet.paper.recipes import recipe
from preresnet.recipe import Photographs, Recipe
from preresnet.terminal import counting
from preresnet.train import folder, length, trainer
from preresnet.train.checkpoint import write_atomically

PLAN_FILE, SUSPECTS_FILE = "folds.json", "suspects.json"
RECIPE, IMAGE_SIZE = "images/resnet18-preact", 96


@dataclass(frozen=True)
class Asked:
    """What is judged, and how.

    Args:
        root: folder of images, in folders of their class, right in it or in ``train/`` and ``val/``.
        out: folder for the networks and what they found.
        folds: networks; each is trained on all images but its fold.
        minutes: for all of it, about.
        name: of the recipe that they are trained by.
        leave_out: a list of files that are not read; files that are no whole images never are.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: processes that read image files; None chooses.
        command: for records.
    """

    root: Path
    out: Path
    folds: int = 5
    minutes: float = 40.0
    name: str = RECIPE
    leave_out: Path | None = None
    device: str = "auto"
    workers: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UserError(f"--folds {self.folds}; it must be 2 or more")


def find(asked: Asked, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Judge the label of every image; the same again continues where it was stopped.

    Copies and near copies are in one fold, so that no network has seen what it judges.

    Args:
        asked: what, and how.
        report: is told what is going on.

    Returns:
        ``num_images``, ``folds``, ``error_pct`` of the answers, and ``suspects``: for every image ``file``, ``label``,
        ``answer`` (the likeliest class, given what the others look like), ``score``, from 0 (the label is sure) to 1
        (another is), and ``probably_wrong``; the most suspicious first.

    Raises:
        UserError: bad input.
    """
    base = recipe(asked.name)
    if not isinstance(base.data, Photographs):
        raise UserError(f"--recipe {asked.name}; give one of those for photographs, images/NETWORK")
    classes, images, groups = _read(asked, report)
    fold = torch.tensor(division.folds(images.labels.tolist(), groups, asked.folds))
    if min(torch.bincount(fold, minlength=asked.folds).tolist()) == 0:
        raise UserError(f"--folds {asked.folds}, but there are {len(images)} images; give fewer folds")
    base = replace(base, data=replace(base.data, **_size(base.data)))
    _plan(asked, images, fold)
    probabilities = torch.zeros(len(images), len(classes), dtype=torch.float64)
    made: Recipe | None = None
    for number in range(asked.folds):
        data = _without(classes, images, fold, number)
        request = _request(asked, number, base)
        if not (request.out / folder.RESULT_FILE).is_file():
            made = made or _length(request, asked, data, report)
            report(f"fold {number + 1} of {asked.folds}: {len(data.train):,} images to train on")
            trainer.train(replace(request, recipe=made), data=data)
        probabilities[fold == number] = _answers(request, data)
    found = _judged(images.listed(asked.root), images.labels, probabilities, classes)
    result = {
        "num_images": len(images),
        "folds": asked.folds,
        "error_pct": 100 * float((probabilities.argmax(1) != images.labels).double().mean()),
        "suspects": found,
    }
    text = json.dumps({"command": asked.command, **result}, indent=1) + "\n"
    write_atomically(asked.out / SUSPECTS_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    return result


def _size(data: Photographs) -> dict[str, Any]:
    """Crops small enough that several networks are trained in the time of one."""
    if data.image_size <= IMAGE_SIZE:
        return {}
    side = data.test_crops[0] * IMAGE_SIZE // data.image_size
    return {"image_size": IMAGE_SIZE, "test_crops": (side,), "test_sides": (side,)}


def _read(asked: Asked, report: Callable[[str], None]) -> tuple[tuple[str, ...], ImageFiles, list[str]]:
    """Classes, all images below the folder with paths from it on, and the group of each that has to stay together."""
    root, listed = asked.root, leaving_out.read(asked.leave_out) if asked.leave_out else frozenset[str]()
    if shards.find(root):
        raise UserError(f"{root} holds shards; labels are judged of images in folders of their class")
    _, part = files.training_place(root)
    with counting("files") as told, scan(root, told) as found:
        damaged = own_images.broken(found)
        leave_out = listed | damaged.keys()
        classes = files.classes("images", root)
        parts = [files.split(root, part, classes, leave_out)]
        if (root / "val").is_dir():
            parts.append(files.split(root, "val", files.matching(root, classes), leave_out))
        paths = [path for one in parts for path in one.listed(root)]
        labels = torch.cat([one.labels for one in parts])
        images = ImageFiles(root, np.array([os.fsencode(path) for path in paths], dtype=np.bytes_), labels)
        if number := len(damaged.keys() - listed):
            report(f"{number:,} files are no whole images and are not judged; `preresnet data check` names them")
        return classes, images, division.groups(list(map(normal, paths)), own_images.like(found))


def _plan(asked: Asked, images: ImageFiles, fold: Tensor) -> None:
    """Write down what the folder is for; refuse one that is for something else."""
    plan = {
        "folds": asked.folds,
        "minutes": asked.minutes,
        "recipe": asked.name,
        "images": dict(zip(images.listed(asked.root), fold.tolist(), strict=True)),
    }
    file = asked.out / PLAN_FILE
    if file.is_file():
        known = read_json(file, "the folder's plan")
        differ = [name for name in plan if not isinstance(known, dict) or known.get(name) != plan[name]]
        if differ:
            raise UserError(f"{asked.out} judges something else ({', '.join(differ)} differ); give another --out")
        return
    if asked.out.exists() and (not asked.out.is_dir() or any(asked.out.iterdir())):
        raise UserError(f"{asked.out} is there already and holds something else; give another --out")
    asked.out.mkdir(parents=True, exist_ok=True)
    folder.write_text(file, json.dumps(plan) + "\n")


def _request(asked: Asked, number: int, base: Recipe) -> folder.Request:
    return folder.Request(
        recipe=base,
        out=asked.out / f"fold{number}",
        data_root=asked.root,
        device=asked.device,
        workers=asked.workers,
        resume=True,
        name=asked.name,
        command=asked.command,
    )


def _without(classes: tuple[str, ...], images: ImageFiles, fold: Tensor, number: int) -> ImageSet:
    """All images but a fold to train on, and those of the fold to judge."""
    inside = fold == number
    return ImageSet(
        classes, images.take((~inside).nonzero().flatten()), images.take(inside.nonzero().flatten()), "holdout"
    )


def _length(request: folder.Request, asked: Asked, data: ImageSet, report: Callable[[str], None]) -> Recipe:
    """The recipe with its steps: those of a fold that has been begun, or so many as the time allows."""
    for other in range(asked.folds):
        stored = asked.out / f"fold{other}" / folder.RECIPE_FILE
        if stored.is_file():
            return folder.stored_as(Recipe, stored)
    made = length.fitted(request, length.Length(minutes=asked.minutes / asked.folds), data=data)
    for line in made.said:
        report(line)
    steps = made.request.recipe.schedule.steps
    return replace(made.request.recipe, eval_every=steps, save_every=max(1, steps // 4))


def _answers(request: folder.Request, data: ImageSet) -> Tensor:
    """What the network of a fold answers to it: (n, num_classes) probabilities."""
    network = trained.open_weights(request.out)
    device = devices.choose(request.device)
    devices.place(network.model, device)
    passes = evaluations(data.evaluation, network.data, network.normalisation.to(device), request.workers)
    precision = devices.resolve("auto", device)
    output, _ = inference.logits(network.model, next(iter(passes.values())), precision)
    return output.double().softmax(1)


def _judged(paths: list[str], labels: Tensor, probabilities: Tensor, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every image with its score, the most suspicious first (`inference.doubts`)."""
    (score, doubted), answer = inference.doubts(probabilities, labels), probabilities.argmax(1)
    return [
        {
            "file": paths[place],
            "label": classes[int(labels[place])],
            "answer": classes[int(answer[place])],
            "score": round(float(score[place]), 6),
            "probably_wrong": bool(doubted[place]),
        }
        for place in torch.argsort(score, descending=True, stable=True).tolist()
    ]
