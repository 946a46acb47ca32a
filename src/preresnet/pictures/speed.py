"""Speed and memory of a network beside other systems, as bars."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from preresnet.pictures.canvas import plain, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_speed(result: Mapping[str, Any]) -> "Figure":
    """Images a second, and peak memory, a bar for each system.

    Args:
        result: what `preresnet.bench.measure.bench` returns.
    """
    from matplotlib.figure import Figure

    rows = result["rows"][::-1]
    places = range(len(rows))
    colours = ["tab:blue" if row["system"] == "preresnet" else "tab:gray" for row in rows]
    figure = Figure(figsize=(9, 1.2 + 0.38 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, scale, label in (
        (axes[0], "images_per_s", 1, "images a second"),
        (axes[1], "peak_bytes", 2**20, "peak memory, MiB"),
    ):
        bars = axis.barh(places, [row[key] / scale for row in rows], color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.margins(x=0.15)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, [plain(f"{row['system']} {row['mode']}") for row in rows])
    title = f"{result['network']}, {result['task']}, batch {result['batch']}, {result['device']}"
    figure.suptitle(wrapped(title, 100), fontsize=10)
    return figure
