"""How the images of a network from elsewhere are prepared, and the folder that it becomes."""

import json
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preresnet import trained
from preresnet.data import streaming
from preresnet.data.augment import Normalisation
from preresnet.exchange.incoming import Brought
from preresnet.fields import read_json, with_fields
from preresnet.model import weights
from preresnet.recipe import DATA_SETS, PHOTOGRAPHS, DataSpec, ImagesInMemory, PaperPhotographs, Photographs
from preresnet.spec import NetSpec, UserError

IMPORT_FILE = "import.json"
CIFAR = ("cifar10", "cifar100")
HALVES = ("resnetv2 of timm", "ResNetV2 of Keras")  # which take pixels from -1 to 1


@dataclass(frozen=True)
class Prepared:
    """What a network answers for.

    Args:
        data: the set.
        classes: names, by label.
        normalisation: of its images.
        said: what was assumed, a sentence each.
    """

    data: DataSpec
    classes: tuple[str, ...]
    normalisation: Normalisation
    said: tuple[str, ...]


def prepared(brought: Brought, source: str, name: str | None, normalise: str | None, classes: Path | None) -> Prepared:
    """Data, classes and normalisation of a network, as given or as its library has them.

    Args:
        brought: the network.
        source: one of `preresnet.exchange.incoming.FORMATS`.
        name: of a data set; None: as stem and number of classes say.
        normalise: ``per_pixel_mean``, ``channel_mean_std`` or the path of a file, JSON or ``.npy``; None: as the
            library does.
        classes: text file with a name a line; None: those of CIFAR, else the labels themselves.

    Raises:
        UserError: they do not fit the network, or each other.
    """
    spec, said = brought.model.spec, list[str]()
    if name is None:
        name = _data(spec)
        said.append(f"data: {name}, as its stem and its {spec.num_classes} classes suggest; --data says otherwise")
    known = DATA_SETS[name]
    if known.classes not in (None, spec.num_classes):
        raise UserError(
            f"{name} has {known.classes} classes, and the network answers with {spec.num_classes}; give another --data"
        )
    if known.channels != spec.in_channels:
        raise UserError(
            f"images of {name} have {known.channels} channels, and the network takes {spec.in_channels}; give another "
            "--data"
        )
    in_memory = known.size is not None
    if in_memory:
        kind = normalise if normalise in ("per_pixel_mean", "channel_mean_std") else None
        if normalise is None:
            kind = "per_pixel_mean" if source == "keras" else "channel_mean_std"
            said.append(f"normalise: {kind}, as is usual there; --normalise says otherwise")
        data: Any = with_fields(ImagesInMemory(name=name), normalise=kind or "channel_mean_std")
        numbers = _statistics(name, kind) if kind else _from_file(Path(str(normalise)), spec)
    else:
        crops: Any = {"image_size": 224, "test_crops": (224,), "test_sides": (256,)}
        data = Photographs(name="images", **crops) if name == PHOTOGRAPHS else PaperPhotographs(name=name, **crops)
        if normalise in ("per_pixel_mean", "channel_mean_std"):
            raise UserError(
                f"--normalise {normalise} is for CIFAR; for photographs give a JSON file with mean and std, or leave "
                "it out"
            )
        if normalise is not None:
            numbers = _from_file(Path(normalise), spec)
        elif brought.title in HALVES:
            numbers = Normalisation(torch.full((1, 1, 3), 0.5), torch.full((3,), 0.5))
            said.append("normalise: pixels from -1 to 1, as its library does; --normalise says otherwise")
        else:
            numbers = streaming.normalisation()
            said.append("normalise: mean and deviation of ImageNet, as its library does; --normalise says otherwise")
    return Prepared(data, _classes(name, spec.num_classes, classes), numbers, tuple(said))


def _data(spec: NetSpec) -> str:
    if spec.stem.pooled:
        return "imagenet" if spec.num_classes == DATA_SETS["imagenet"].classes else "folder"
    found = next((name for name in CIFAR if DATA_SETS[name].classes == spec.num_classes), None)
    if found is None:
        raise UserError(
            f"a network for small images with {spec.num_classes} classes is of no data set here; give --data folder"
        )
    return found


def _cifar() -> Any:
    with resources.files("preresnet.data").joinpath("cifar.npz").open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def _statistics(name: str, kind: str) -> Normalisation:
    """Of all training images, from sums of their pixels that come with the package."""
    if name not in CIFAR:
        raise UserError(
            f"--normalise {kind} of {name} is not known without its images; give a JSON file with mean and std"
        )
    found = _cifar()
    count, sums = 50_000, found[f"{name}_sums"].astype(np.float64)
    if kind == "per_pixel_mean":
        return Normalisation(torch.from_numpy(sums / count / 255).float(), torch.ones(sums.shape[2]))
    values, total = count * sums.shape[0] * sums.shape[1], sums.sum((0, 1))
    squares = found[f"{name}_squares"].astype(np.float64)
    std = np.sqrt((squares - total * total / values) / (values - 1)) / 255
    mean = torch.from_numpy(total / values / 255).float()
    return Normalisation(mean.view(1, 1, -1), torch.from_numpy(std).float())


def _from_file(path: Path, spec: NetSpec) -> Normalisation:
    if path.suffix == ".npy":
        content: Any = {"mean": _array(path).tolist(), "std": [1.0]}
    else:
        content = read_json(path, "the file of --normalise")
    if not isinstance(content, dict) or not {"mean", "std"} <= content.keys():
        raise UserError(f'{path} must hold {{"mean": ..., "std": ...}} of pixels between 0 and 1')
    try:
        mean, std = (torch.tensor(content[name], dtype=torch.float32) for name in ("mean", "std"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: mean and std must be numbers ({error})") from None
    channels = spec.in_channels
    if mean.ndim == 3 and mean.shape[2] != channels and mean.shape[0] == channels:
        mean = mean.permute(1, 2, 0).contiguous()
    mean = mean.view(1, 1, -1) if mean.ndim < 3 else mean
    std = std.flatten()
    for what, value in (("mean", mean.shape[2]), ("std", len(std))):
        if value not in (1, channels):
            raise UserError(f"{path}: {what} has {value} channels, and the network takes {channels}")
    if not (bool(mean.isfinite().all()) and bool((std > 0).all()) and bool(std.isfinite().all())):
        raise UserError(f"{path}: mean must be finite, and std above 0")
    if float(mean.abs().max()) > 2:
        raise UserError(f"{path}: a mean of {float(mean.max()):g}; give it for pixels between 0 and 1, divided by 255")
    return Normalisation(mean.expand(*mean.shape[:2], channels).contiguous(), std.expand(channels).contiguous())


def _array(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the mean image {path}: {error}") from None
    return np.asarray(found, dtype=np.float32)


def _classes(name: str, count: int, path: Path | None) -> tuple[str, ...]:
    if path is None:
        if name in CIFAR:
            return tuple(_cifar()[f"{name}_classes"].tolist())
        return tuple(str(label) for label in range(count))
    try:
        found = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the classes in {path}: {error}") from None
    found = [line.strip() for line in found if line.strip()]
    if len(found) != count or len(set(found)) != count:
        raise UserError(
            f"{path} names {len(set(found))} different classes in {len(found)} lines, and the network has {count}"
        )
    return tuple(found)


def write(out: Path, brought: Brought, found: Prepared, command: str) -> None:
    """The folder of an imported network: its weights with all they need, and where they come from."""
    record = {
        "command": command,
        "from": brought.title,
        "sha256": brought.digest,
        "tensors": brought.num_tensors,
        "said": [*brought.said, *found.said],
    }
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    try:
        kept = trained.metadata(found.data, found.classes, found.normalisation)
        weights.save(partial / weights.WEIGHTS_FILE, brought.model, kept)
        (partial / IMPORT_FILE).write_text(json.dumps(record, indent=1) + "\n")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
