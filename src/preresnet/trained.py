"""A trained network with all it needs to answer for images: its classes, and how its images were prepared."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from preresnet import device as devices
from preresnet import inference
from preresnet.data import crops, files, images, sets
from preresnet.data.augment import Normalisation
from preresnet.data.image_set import ImageSet
from preresnet.model import weights
from preresnet.model.network import Network
from preresnet.recipe import DATA_SETS, PHOTOGRAPHS, DataSpec, ImagesInFiles, Precision
from preresnet.spec import UserError, from_json, to_json

PREDICT_BATCH = 64


@dataclass(frozen=True)
class Trained:
    """A network together with how its images were prepared.

    Args:
        model: in evaluation mode.
        classes: names by label.
        data: the data set it was trained on.
        normalisation: fitted on that set's training images.
    """

    model: Network
    classes: tuple[str, ...]
    data: DataSpec
    normalisation: Normalisation


def metadata(data: DataSpec, classes: Sequence[str], normalisation: Normalisation) -> dict[str, str]:
    """What a weights file keeps beside its tensors, so that `open_weights` needs nothing else."""
    numbers = {"mean": normalisation.mean.tolist(), "std": normalisation.std.tolist()}
    return {"data": to_json(data), "classes": json.dumps(list(classes)), "normalisation": json.dumps(numbers)}


def open_weights(path: Path) -> Trained:
    """A trained network from a run folder or a weights file.

    Raises:
        ValueError: nothing usable there, or weights that do not say how their images were prepared.
    """
    model, kept = weights.load(path)
    missing = [name for name in ("data", "classes", "normalisation") if name not in kept]
    if missing:
        raise UserError(f"{path} does not hold {', '.join(missing)}; it was not written by `preresnet train`")
    try:
        numbers, classes = json.loads(kept["normalisation"]), _class_names(kept)
        normalisation = Normalisation(torch.tensor(numbers["mean"]), torch.tensor(numbers["std"]))
        data = from_json(DataSpec, kept["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: what it holds beside its tensors is damaged ({error}); restore it, or export it again"
        ) from None
    if len(classes) != model.spec.num_classes:
        raise UserError(f"{path} names {len(classes)} classes, but its network answers with {model.spec.num_classes}")
    return Trained(model, classes, data, normalisation)


def stored_classes(folder: Path) -> tuple[str, ...] | None:
    """The classes of the run in a folder, by label; None where no weights of it say so."""
    try:
        return _class_names(weights.load(folder)[1])
    except (ValueError, KeyError):  # a run continues from its checkpoint, whatever became of its weights
        return None


def _class_names(kept: dict[str, str]) -> tuple[str, ...]:
    names = json.loads(kept["classes"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("classes: it must be a list of names")
    return tuple(names)


def load_set(
    trained: Trained,
    data: DataSpec,
    root: Path | None,
    leave_out: Path | None = None,
    written: Path | None = None,
    *,
    train: bool = False,
) -> ImageSet:
    """Images for a trained network, with its labels (`with_classes`); of ImageNet, any of the classes.

    Args:
        trained: the network.
        data: which set.
        root: as for `preresnet.data.sets.load`, like the two that follow.
        leave_out: files that are not read.
        written: files that its run has kept for evaluation.
        train: whether training images are wanted too; without, there may be none.

    Raises:
        ValueError: as `preresnet.data.sets.load` and `with_classes`.
    """
    if not isinstance(data, ImagesInFiles):
        return with_classes(sets.load(data, root), trained.classes, root)
    named = data if data.name == PHOTOGRAPHS else replace(data, name="folder")
    found = (sets.load if train else sets.load_tested)(named, root, leave_out, written)
    return with_classes(found, trained.classes, root)


def with_classes(data: ImageSet, classes: Sequence[str], place: Path | None, *, whole: bool = False) -> ImageSet:
    """A data set with the labels of a network that knows its classes, found by their names.

    A class of which the set has no folder has no image in it.

    Args:
        data: with labels of its own.
        classes: names, by the network's label.
        place: where the set lies, for messages.
        whole: refuse a set that lacks a class, as to continue a training does.

    Raises:
        ValueError: the set has a class that the network does not know, or lacks one; the first is named.
    """
    where = str(place) if place is not None else "the data set"
    labels = files.labels_by_name(data.classes, classes, where)
    if whole and (missing := [name for label, name in enumerate(classes) if label not in labels.tolist()]):
        raise UserError(
            f"{where} has no images of class {missing[0]!r}, which the run was started with; give the same images, or "
            "another --out"
        )
    train, evaluation = (replace(part, labels=labels[part.labels]) for part in (data.train, data.evaluation))
    return replace(data, classes=tuple(classes), train=train, evaluation=evaluation)


def predict(
    trained: Trained,
    paths: Sequence[Path],
    device: torch.device | None = None,
    precision: Precision = "auto",
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The likeliest classes of image files.

    An image is brought to the size of the data set's own images (square, centred), then padded as they were; for a
    network of image files, its first test crop is cut. The files are read as they are answered, a batch at a time::

        from preresnet import trained
        answers, broken = trained.predict(trained.open_weights(Path("runs/photos")), [Path("new.jpg")])

    Args:
        trained: from `open_weights`.
        paths: image files.
        device: where to compute; None chooses.
        precision: ``auto``, ``float32`` or ``bfloat16``.

    Returns:
        For each readable file ``{"image", "top": [{"class", "probability"}, ...]}``, likeliest first; and for each
        other file, what is wrong with it.
    """
    device = _placed(trained, device)
    answer = inference.answering(trained.model, devices.resolve(precision, device))
    rows, broken = _of_files(trained, paths, device, answer)
    return [{"image": str(path), "top": _top(one, trained.classes)} for path, one in rows], broken


def embed(
    trained: Trained, paths: Sequence[Path], device: torch.device | None = None
) -> tuple[list[Path], torch.Tensor, dict[str, str]]:
    """What the classifier of a network reads of image files: the mean of the last feature map, in float32.

    Args:
        trained: from `open_weights`.
        paths: image files, prepared as for `predict`.
        device: where to compute; None chooses.

    Returns:
        The files that could be read; (n, width of the last stage) float32, a row for each of them, on the CPU; and for
        each other file, what is wrong with it.
    """
    device = _placed(trained, device)
    model = trained.model

    def features(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model.forward_features(x).mean((2, 3)).float().cpu()

    rows, broken = _of_files(trained, paths, device, features)
    width = model.spec.stages[-1].width
    found = torch.stack([row for _, row in rows]) if rows else torch.empty(0, width)
    return [path for path, _ in rows], found, broken


def _placed(trained: Trained, device: torch.device | None) -> torch.device:
    device = devices.choose("auto") if device is None else device
    devices.place(trained.model, device)
    return device


def _of_files(
    trained: Trained,
    paths: Sequence[Path],
    device: torch.device,
    compute: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[list[tuple[Path, torch.Tensor]], dict[str, str]]:
    """What is computed of each readable file, a batch at a time; and what is wrong with each other one."""
    normalisation = trained.normalisation.to(device)
    found: list[tuple[Path, torch.Tensor]] = []
    broken: dict[str, str] = {}
    for start in range(0, len(paths), PREDICT_BATCH):
        readable, pixels = [], []
        for path in paths[start : start + PREDICT_BATCH]:
            try:
                pixels.append(_pixels(path, trained.data))
                readable.append(path)
            except UserError as error:
                broken[str(path)] = str(error)
        if readable:
            output = compute(normalisation(torch.stack(pixels).to(device)).permute(0, 3, 1, 2))
            found += zip(readable, output, strict=True)
    return found, broken


@dataclass(frozen=True)
class Explained:
    """One answer, and where in the image it comes from.

    Args:
        pixels: (h, w, channels) uint8, what the network saw.
        contributions: (h / s, w / s) float32, what each place contributes to the logit (`inference.class_maps`).
        bias: of the classifier; with the mean of ``contributions`` it is the logit.
        name: of the class that is explained.
        top: the likeliest classes, ``{"class", "probability"}`` each.
    """

    pixels: torch.Tensor
    contributions: torch.Tensor
    bias: float
    name: str
    top: list[dict[str, Any]]


def explain(trained: Trained, path: Path, name: str | None = None, device: torch.device | None = None) -> Explained:
    """Where in an image file an answer comes from, in float32.

    Args:
        trained: from `open_weights`.
        path: the file.
        name: of a class; None: the likeliest.
        device: where to compute; None chooses.

    Raises:
        UserError: the file is no whole image, or there is no such class.
    """
    device = devices.choose("auto") if device is None else device
    label = None if name is None else files.labels_by_name([name], trained.classes, "--class").to(device)
    model = devices.place(trained.model, device)
    pixels = _pixels(path, trained.data)
    x = trained.normalisation.to(device)(pixels.unsqueeze(0).to(device)).permute(0, 3, 1, 2)
    output, maps = inference.class_maps(model, x, label)
    chosen = int(output.argmax(1) if label is None else label)
    return Explained(
        pixels,
        maps[0].float().cpu(),
        float(model.head.linear.bias[chosen].detach()),
        trained.classes[chosen],
        _top(output[0], trained.classes),
    )


def _top(output: torch.Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The likeliest classes of one image: (num_classes,) logits -> ``{"class", "probability"}`` each."""
    values, labels = output.float().softmax(0).topk(min(inference.TOP, len(classes)))
    return [
        {"class": classes[label], "probability": value}
        for value, label in zip(values.tolist(), labels.tolist(), strict=True)
    ]


def _pixels(path: Path, data: DataSpec) -> torch.Tensor:
    if isinstance(data, ImagesInFiles):
        return crops.test_crop(path, data.test_sides[0], data.test_crops[0])
    known = DATA_SETS[data.name]
    assert known.size is not None
    return sets.pad(images.read(path, known.channels, known.size).unsqueeze(0), data.image_size)[0]
