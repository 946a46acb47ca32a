"""What does a trained network need beside its weights to answer for an image, and what does it answer?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preresnet import device as devices
from preresnet import inference
from preresnet.data import crops, images, sets
from preresnet.data.augment import Normalisation
from preresnet.model import weights
from preresnet.model.network import Network
from preresnet.recipe import DATA_SETS, DataSpec, ImagesInFiles, Precision
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
    numbers = json.loads(kept["normalisation"])
    normalisation = Normalisation(torch.tensor(numbers["mean"]), torch.tensor(numbers["std"]))
    return Trained(model, tuple(json.loads(kept["classes"])), from_json(DataSpec, kept["data"]), normalisation)


def predict(
    trained: Trained, paths: Sequence[Path], device: torch.device, precision: Precision
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The likeliest classes of image files.

    An image is brought to the size of the data set's own images (square, centred), then padded as they were; for a
    network of image files, its first test crop is cut.

    Args:
        trained: from `open_weights`.
        paths: image files.
        device: where to compute.
        precision: resolved, not ``auto``.

    Returns:
        For each readable file ``{"image", "top": [{"class", "probability"}, ...]}``, likeliest first; and for each
        other file, what is wrong with it.
    """
    readable, pixels, broken = [], [], {}
    for path in paths:
        try:
            pixels.append(_pixels(path, trained.data))
            readable.append(path)
        except ValueError as error:
            broken[str(path)] = str(error)
    answers: list[dict[str, Any]] = []
    devices.place(trained.model, device)
    normalisation = trained.normalisation.to(device)
    answer = inference.answering(trained.model, precision)
    for start in range(0, len(readable), PREDICT_BATCH):
        batch = torch.stack(pixels[start : start + PREDICT_BATCH]).to(device)
        output = answer(normalisation(batch).permute(0, 3, 1, 2))
        likeliest = output.float().softmax(1).topk(min(inference.TOP, len(trained.classes)), dim=1)
        for path, values, labels in zip(
            readable[start : start + PREDICT_BATCH], likeliest.values.tolist(), likeliest.indices.tolist(), strict=True
        ):
            top = [
                {"class": trained.classes[label], "probability": value}
                for value, label in zip(values, labels, strict=True)
            ]
            answers.append({"image": str(path), "top": top})
    return answers, broken


def _pixels(path: Path, data: DataSpec) -> torch.Tensor:
    if isinstance(data, ImagesInFiles):
        side, crop = data.test_sides[0], data.test_crops[0]
        return images.pixels(crops.centre(images.open_image(path, side), side, crop))
    known = DATA_SETS[data.name]
    assert known.size is not None
    return sets.pad(images.read(path, known.channels, known.size).unsqueeze(0), data.image_size)[0]
