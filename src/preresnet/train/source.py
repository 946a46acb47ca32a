"""The trained network that a run starts from: what is taken of it, and what is not."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from preresnet import trained
from preresnet.data.augment import Normalisation
from preresnet.data.walk import normal
from preresnet.fields import UserError
from preresnet.model import weights
from preresnet.model.network import Network
from preresnet.recipe import DataSpec, ImagesInMemory
from preresnet.spec import NetSpec
from preresnet.trained import Trained

NEW_HEAD = ("head.linear.weight", "head.linear.bias")


@dataclass(frozen=True)
class Source:
    """A trained network that another starts from.

    Args:
        path: of its weights file.
        sha256: of that file, in hexadecimal.
        network: with what it needs to answer.
    """

    path: Path
    sha256: str
    network: Trained

    def as_dict(self) -> dict[str, str]:
        """For records."""
        return {"path": str(self.path), "sha256": self.sha256}


def open_source(path: Path, expected: str = "") -> Source:
    """The network of a run or of a weights file.

    Args:
        path: of either.
        expected: SHA-256 that the file must have; empty: any.

    Raises:
        UserError: nothing usable there, or another file than expected.
    """
    file = path / weights.WEIGHTS_FILE if path.is_dir() else path
    network = trained.open_weights(path)
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if expected and digest != expected:
        raise UserError(
            f"{file} is not what the run was started from (SHA-256 {digest[:12]}..., then {expected[:12]}...); give "
            "that file, or another --out"
        )
    return Source(file, digest, network)


def fitted(spec: NetSpec, source: Source) -> tuple[NetSpec, list[str]]:
    """The specification of a network that takes the tensors of another, and what is to be said of it.

    Args:
        spec: that the recipe asks for, with the classes of its data.
        source: where the tensors come from; details in which libraries differ (`preresnet.spec.Dialect`) are its.

    Raises:
        UserError: the two are different networks; says in what.
    """
    have = source.network.model.spec
    wanted = replace(have, num_classes=spec.num_classes, dialect=spec.dialect)
    differ = [name for name in vars(spec) if getattr(spec, name) != getattr(wanted, name)]
    if differ:
        name = differ[0]
        raise UserError(
            f"{source.path} holds another network than the recipe asks for ({name}: {getattr(have, name)} there, "
            f"{getattr(spec, name)} here); give the recipe of the same network"
        )
    said = [] if have.dialect == spec.dialect else ["the details of the network (its dialect) are those of the source"]
    return replace(wanted, dialect=have.dialect), said


def take(model: Network, classes: tuple[str, ...], source: Source) -> list[str]:
    """Fill a new network with the tensors of a trained one; says which were taken and which were not.

    The classifier is taken where both have the same classes, by name; else it stays as it is.

    Args:
        model: as `fitted` describes it, with initial weights.
        classes: its names, by label.
        source: where the tensors come from.
    """
    known = {normal(name): label for label, name in enumerate(source.network.classes)}
    tensors = source.network.model.state_dict()
    have = set(map(normal, classes))
    if have == set(known):
        rows = torch.tensor([known[normal(name)] for name in classes])
        tensors |= {name: tensors[name][rows] for name in NEW_HEAD}
        left = ""
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in NEW_HEAD}
        only = sorted(have ^ set(known))[0]
        where = "here" if only in have else "there"
        left = f"; not {' and '.join(NEW_HEAD)}, because the classes differ ({only!r} is {where} alone): a new head"
    model.load_state_dict(tensors, strict=False)
    return [f"{len(tensors)} of {len(model.state_dict())} tensors taken from {source.path}{left}"]


def normalisation(source: Trained, data: DataSpec) -> Normalisation:
    """How the images of the source were normalised; a mean image that does not fit becomes a mean a channel."""
    found = source.normalisation
    height, width, _ = found.mean.shape
    if (height, width) == (1, 1) or (isinstance(data, ImagesInMemory) and height == width == data.image_size):
        return found
    return Normalisation(found.mean.mean((0, 1), keepdim=True), found.std)


def of_run(run: Any) -> tuple[Path, str] | None:
    """Path and SHA-256 of the weights that a run was started from, as its file says; None: from initial ones."""
    kept = run.get("weights") if isinstance(run, dict) else None
    return (Path(kept["path"]), kept["sha256"]) if kept else None
