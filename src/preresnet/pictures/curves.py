"""Training curves, drawn as in the paper's Figures 1, 3 and 6: loss and error of seeds and their median."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preresnet.pictures.canvas import COLOURS, DASHED, FAINT, TEXT, blank, columns, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = tuple[tuple[int, float], ...]
"""(step, value), by step."""

LINE = 1.2, 1.8  # widths of loss and error, points
MOST_POINTS = 160  # of a line: more than the picture can show would only make the file large


@dataclass(frozen=True)
class Seed:
    """What one run measured.

    Args:
        loss: training loss, nats, mean of the steps since the point before.
        error: error on the evaluation images, per cent.
    """

    loss: Points
    error: Points


@dataclass(frozen=True)
class Curve:
    """Runs of one recipe: a line each, and their median.

    Args:
        label: in the legend.
        seeds: finished runs, whose median is drawn thick.
        others: unfinished or failed runs, drawn thin.
    """

    label: str
    seeds: tuple[Seed, ...]
    others: tuple[Seed, ...] = ()


def measured(lines: Sequence[dict[str, Any]]) -> Seed:
    """The curves in the lines of ``metrics.jsonl`` (`runlog.read`)."""
    loss = tuple((line["step"], line["loss"]) for line in lines if "loss" in line)
    return Seed(loss, tuple((line["step"], line["error_pct"]) for line in lines if "error_pct" in line))


def median(lines: Sequence[Points]) -> Points:
    """The median over seeds at every step that all of them have."""
    values = [dict(line) for line in lines]
    steps = sorted(set.intersection(*(set(one) for one in values))) if values else []
    return tuple((step, statistics.median(one[step] for one in values)) for step in steps)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` points: means of neighbours, at the step of the last of them."""
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return tuple((group[-1][0], statistics.fmean(value for _, value in group)) for group in groups)


def draw_curves(curves: Sequence[Curve], title: str, split: str) -> "Figure":
    """Training loss (dashed, left axis, logarithmic) and error (solid, right axis) against the step.

    Seeds are thin lines, the median of the finished ones is thick; one run alone is thick.

    Args:
        curves: the first in the first colour; at most two.
        title: above the picture.
        split: of the images that the error is measured on: ``test`` or ``holdout``.
    """
    from matplotlib.lines import Line2D

    figure, left = blank(title)
    right = left.twinx()
    right.spines[["top", "left", "bottom"]].set_visible(False)
    right.spines["right"].set_color(FAINT)
    right.tick_params(colors=TEXT, length=3)
    for curve, colour in reversed(list(zip(curves, COLOURS, strict=False))):
        for axes, name, style, width in ((left, "loss", DASHED, LINE[0]), (right, "error", "-", LINE[1])):
            lines = [getattr(seed, name) for seed in curve.seeds or curve.others]
            thin = [getattr(seed, name) for seed in (*curve.seeds, *curve.others)]
            thick = median(lines)
            for line in thin if len(thin) > 1 else ():
                axes.plot(*_columns(thinned(line)), linestyle=style, color=colour, linewidth=0.8, alpha=0.5)
            if thick:
                axes.plot(*_columns(thinned(thick)), linestyle=style, color=colour, linewidth=width)
                if axes is right or len(thick) == 1:  # the error at the last step is what is reported
                    axes.plot(*thick[-1], "o", color=colour, markersize=4, clip_on=False)
    _scales(left, right)
    left.set_ylabel("training loss, nats")
    right.set_ylabel(f"{split_words(split)} error, %", color=TEXT)
    # One curve is named by the title; its keys then show its own colour.
    named = list(zip(curves, COLOURS, strict=False)) if len(curves) > 1 else []
    key = TEXT if named else COLOURS[0]
    keys = {curve.label: Line2D([], [], color=colour, linewidth=2) for curve, colour in named}
    keys["training loss (left)"] = Line2D([], [], color=key, linewidth=LINE[0], linestyle=DASHED)
    keys[f"{split_words(split)} error (right)"] = Line2D([], [], color=key, linewidth=LINE[1])
    legend(
        figure,
        keys,
        loc="outside lower left",
        ncols=columns(list(keys)),
        frameon=False,
        labelcolor=TEXT,
        fontsize=9,
        handlelength=2.4,
        borderaxespad=0.3,
    )
    return figure


def split_words(split: str) -> str:
    """A split in words."""
    return "held-out" if split == "holdout" else split


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _scales(left: "Axes", right: "Axes") -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    left.set_xlabel("step")
    left.set_xlim(left=0)
    left.margins(x=0.02)
    left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    left.xaxis.set_major_formatter(EngFormatter(sep=""))  # 64k
    left.set_yscale("log")
    low, high = left.get_ylim()
    subs = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0) if high > 4 * low else (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
    left.yaxis.set_major_locator(LogLocator(subs=subs))
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_locator(NullLocator())
    right.set_ylim(bottom=0)
    right.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    right.tick_params(labelsize=9)
