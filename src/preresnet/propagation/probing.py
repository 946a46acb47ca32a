"""Probes of networks and runs by name: what the command does, with images, files and pictures."""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import preresnet.device as devices
from preresnet import trained
from preresnet.data import loaders, sets
from preresnet.data.order import generator
from preresnet.fields import require, with_fields
from preresnet.model.describe import default_size
from preresnet.model.network import Network, build
from preresnet.paper.networks import network
from preresnet.pictures import depth, heatmaps
from preresnet.propagation import series, verdict
from preresnet.propagation.probe import probe
from preresnet.recipe import DATA_SETS, DataName, Photographs, images_of
from preresnet.spec import UserError
from preresnet.train import watch
from preresnet.train.checkpoint import write_atomically
from preresnet.train.folder import read_network

Data = Literal["auto", "noise"] | DataName
PROBE_FILE, PICTURE_FILE, SERIES_PICTURE = "probe.json", "probe.png", "training.png"


@dataclass(frozen=True)
class Settings:
    """On what, and where, networks are probed.

    Args:
        data: ``noise``, a data set, or ``auto``: that of a run, noise for initial weights.
        data_root: folder of the official files; None downloads.
        batch: images in a batch.
        batches: of which there are so many.
        image_size: height and width; None: that of the run, of the recipe, or of the network.
        seed: of initial weights, of the choice of images and of dropout.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        verdict: whether to predict as well.
        out: folder for results; None writes nothing.
        command: that asked for it, for records.
    """

    data: Data = "auto"
    data_root: Path | None = None
    batch: int = 64
    batches: int = 1
    image_size: int | None = None
    seed: int = 0
    device: str = "auto"
    verdict: bool = False
    out: Path | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for field, least in (("batch", 2), ("batches", 1), ("image_size", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise UserError(f"{field} {value}; it must be {least} or more")
        require(0 <= self.seed < 2**63, f"seed {self.seed}; it must be 0 or more, and below 2**63")


def measure(names: Sequence[str], settings: Settings, report: Callable[[str], None]) -> dict[str, Any]:
    """Probe networks and runs, and write what came of it.

    Args:
        names: networks by name or file, run folders, weights files.
        settings: on what, and where.
        report: is told what is going on.

    Returns:
        ``command``, ``data``, ``images``, ``device``, ``versions`` and ``probes``: by name, what
        `preresnet.propagation.probe.Probe.as_dict` gives, with ``verdict`` where it was asked for.

    Raises:
        UserError: bad input; nothing was written.
    """
    out, found = settings.out, {}
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and is not empty; give another --out")
    if len(set(names)) < len(names):
        raise UserError("the same name is given twice; name each network once")
    device = devices.choose(settings.device)
    opened = [_open(name, settings) for name in names]
    data = ""
    for name, subject in zip(names, opened, strict=True):
        report(f"probing {name}")
        model = devices.place(subject.model, device)
        batches = subject.batches(max(settings.batches, verdict.STEPS if settings.verdict else 0))
        batches = [(x.to(device), y.to(device)) for x, y in batches]
        found[name] = probe(model, *batches[: settings.batches], seed=settings.seed).as_dict()
        data = subject.data
        if settings.verdict:
            report(f"training a copy of {name} for {verdict.STEPS} steps")
            found[name]["verdict"] = verdict.judge(model, batches[: verdict.STEPS], seed=settings.seed).as_dict()
    from preresnet import __version__

    result = {
        "command": settings.command,
        "data": data,
        "batch": settings.batch,
        "batches": settings.batches,
        "seed": settings.seed,
        "device": devices.describe(device),
        "versions": {"preresnet": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "probes": found,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(series.short(result), indent=1) + "\n"
        write_atomically(out / PROBE_FILE, lambda path: path.write_text(text))
        titles = dict(zip(names, _titles(names), strict=True))
        series.write_picture(depth.draw_depth({titles[name]: one for name, one in found.items()}), out / PICTURE_FILE)
        probed = {titles[name]: lines for name in names if Path(name).is_dir() and (lines := watch.read(Path(name)))}
        if probed:
            series.write_picture(heatmaps.draw_heatmaps(probed), out / SERIES_PICTURE)
    return result


def _titles(names: Sequence[str]) -> list[str]:
    """Names of networks and last names of paths, which differ; whole paths where those do not."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else list(names)


@dataclass(frozen=True)
class Subject:
    """A network and the batches that it is probed on.

    Args:
        model: on the CPU.
        data: what the images are, in words.
        batches: gives so many batches of images and labels.
    """

    model: Network
    data: str
    batches: Callable[[int], list[tuple[Tensor, Tensor]]]


def _open(name: str, settings: Settings) -> Subject:
    path, data = Path(name), settings.data
    if len(path.parts) > 1 and not path.exists():
        raise UserError(f"there is no run, weights file or specification {name}")
    normalisation = own = None
    if path.is_dir() or name.endswith(".safetensors"):
        own = found = trained.open_weights(path)
        model = found.model
        spec = found.data if data in ("auto", found.data.name) else None if data == "noise" else images_of(data)
        if spec is found.data:
            normalisation = found.normalisation
    else:
        net = read_network(path) if name.endswith(".json") else network(name)
        spec = None if data == "auto" or data == "noise" else images_of(data)
        if spec is not None:
            classes, channels = sets.shape(spec, settings.data_root)
            net = replace(net, num_classes=classes, in_channels=channels)
        model = build(net, settings.seed)
    if spec is None:
        if settings.verdict:
            raise UserError(f"a verdict needs labelled images; give --data {', '.join(DATA_SETS)}")
        return Subject(model, "noise", lambda count: _noise(model, settings, count))
    if settings.image_size is not None:
        spec = with_fields(spec, image_size=settings.image_size)
    _, channels = sets.shape(spec, settings.data_root)
    if channels != model.spec.in_channels:
        raise UserError(f"{name} takes images of {model.spec.in_channels} channels, {spec.name} has {channels}")
    if isinstance(spec, Photographs):  # a probe's labels are whole
        spec = replace(spec, mixed=0.0, smoothing=0.0, balance="none")
    root = settings.data_root
    loaded = sets.load(spec, root) if own is None else trained.load_set(own, spec, root, train=True)
    if normalisation is None:
        normalisation = loaders.fit(loaded.train, spec)
    batches = loaders.training_batches(
        loaded.train,
        spec,
        normalisation,
        settings.batch,
        settings.seed,
        workers=0 if settings.batches == 1 else None,
        classes=loaded.classes,
    )
    return Subject(model, spec.name, lambda count: [batches.at(step) for step in range(count)])


def _noise(model: Network, settings: Settings, count: int) -> list[tuple[Tensor, Tensor]]:
    spec, size = model.spec, settings.image_size or default_size(model.spec)
    found = []
    for number in range(count):
        source = generator(settings.seed, "noise", number)
        x = torch.randn(settings.batch, spec.in_channels, size, size, generator=source)
        x = x.contiguous(memory_format=torch.channels_last)
        found.append((x, torch.randint(spec.num_classes, (settings.batch,), generator=source)))
    return found
