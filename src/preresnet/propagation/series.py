"""Probes along training: what each of them keeps, and the picture of the series."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from preresnet import distributed
from preresnet.data.image_set import ImageSet
from preresnet.model.network import Network
from preresnet.pictures import canvas, heatmaps
from preresnet.propagation.probe import Probe, probe
from preresnet.train import trainer
from preresnet.train.checkpoint import write_atomically
from preresnet.train.folder import Request
from preresnet.train.watch import Watch, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Every = int | Literal["auto"] | None  # steps between two probes; None: no probe

PICTURE_FILE = "probe.png"
IMAGES, LAYER_IMAGES = 32, 4000  # of a probe: 32 of up to 125 layers, 4 of 1001, so that its memory stays small


def train(request: Request, every: Every, data: ImageSet | None = None) -> dict[str, Any]:
    """Do a run and, where asked, probe it on the way; the heat maps lie in its folder then.

    Args:
        request: as for `preresnet.train.trainer.train`, whose result and errors are these too.
        every: steps between two probes, or ``auto``; None trains alone.
        data: as for `preresnet.train.trainer.train`.
    """
    if every is None:
        return trainer.train(request, data=data)
    if not distributed.world().first:  # a probe needs no company
        return trainer.train(request, data=data)
    result = trainer.train(request, watch(every), data)
    draw_heat_maps(request.out, request.name)
    return result


def watch(every: int | Literal["auto"]) -> Watch:
    """A probe on the way of a run.

    Args:
        every: steps; ``auto``: as often as at most 3 % of the run's time allow, and a hundred times at most.

    Raises:
        ValueError: not a positive number.
    """
    return Watch(every, lambda depth: max(4, min(IMAGES, LAYER_IMAGES // depth)), measure)


def measure(model: Network, x: Tensor, y: Tensor) -> dict[str, Any]:
    """One line of ``probe.jsonl``.

    Args:
        model: left as it is.
        x: (n, c, h, w).
        y: (n,) labels.
    """
    return line(probe(model, (x, y)))


def line(found: Probe) -> dict[str, Any]:
    """The short form of a probe: what moves along training, at four digits."""
    return {
        "loss": short(found.loss),
        **{name: short(found.forward[name]) for name in ("x_rms", "residual_rms", "sum_negative_share", "changed")},
        **{name: short(found.joins[name]) for name in ("factor", "product")},
        **{name: short(found.backward[name]) for name in ("gradient", "straight", "rest", "cosine")},
        "dead": sum(one["dead"] for one in found.dead.values()),
        "channels": sum(one["channels"] for one in found.dead.values()),
        "unmoved": sum(one["unmoved"] for one in found.norms.values()),
        "scales": sum(one["scales"] for one in found.norms.values()),
    }


def short(value: Any) -> Any:
    """Numbers at four digits, at any depth of lists and mappings."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list | tuple):
        return [short(one) for one in value]
    if isinstance(value, dict):
        return {name: short(one) for name, one in value.items()}
    return value


def draw_heat_maps(folder: Path, title: str) -> None:
    """The heat maps of a run, in its folder; nothing where nothing was probed."""
    lines = read(folder)
    if lines:
        write_picture(heatmaps.draw_heatmaps({title: lines}), folder / PICTURE_FILE)


def write_picture(figure: "Figure", path: Path) -> None:
    """A PNG, whole or not at all.

    Raises:
        NotWrittenError: the disk is full, say.
    """
    image = canvas.encoded(figure, "png", dpi=100)
    write_atomically(path, lambda partial: partial.write_bytes(image))
