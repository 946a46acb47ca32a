"""A probe along training as heat maps: steps to the right, units upwards from 1, colours for what was measured."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from preresnet.pictures.canvas import FAINT, PAPER, SIZE, TEXT, wrapped
from preresnet.spec import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]
"""Lines of ``probe.jsonl``."""

MAPS = {
    "x_rms": "signal x, root mean square",
    "residual_rms": "residual F, root mean square",
    "gradient": "length of the gradient at x",
    "straight_share": "straight part, over the sum of both parts' lengths",
}
COLUMNS = 200  # of a map, however many steps were probed: each shows the probe nearest to it


def draw_heatmaps(runs: Mapping[str, Lines], scale: Sequence[Lines] = ()) -> "Figure":
    """Runs side by side, a map below the other.

    Args:
        runs: by title.
        scale: runs whose values the colours span; those drawn, by default. Pictures of one scale can be compared.

    Raises:
        ValueError: a run without lines.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if not runs or not all(runs.values()):
        raise UserError("nothing was probed in this run; train with --probe-every auto")
    size = SIZE[0] * len(runs), 0.6 + 1.75 * len(MAPS)
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    figure.get_layout_engine().set(hspace=0.04)  # type: ignore[union-attr]
    axes = figure.subplots(len(MAPS), len(runs), sharex="col", squeeze=False)
    for row, (key, words) in enumerate(MAPS.items()):
        colours = Normalize(*limits(scale or tuple(runs.values()), key))
        for axis, (title, lines) in zip(axes[row], runs.items(), strict=True):
            table = values(lines, key)
            steps = [line["step"] for line in lines]
            axis.imshow(
                _columns(table, steps),
                extent=(steps[0], max(steps[-1], steps[0] + 1), 0.5, len(table) + 0.5),
                aspect="auto",
                origin="lower",
                interpolation="none",
                norm=colours,
            )
            heading = f"{wrapped(title)}\n{words}" if row == 0 else words
            axis.set_title(heading, fontsize=9.5, color=TEXT, loc="left")
            axis.spines[:].set_visible(False)
            axis.tick_params(colors=TEXT, length=3, labelsize=9)
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[row, 0].set_ylabel("residual unit", color=TEXT)
        unit = "share" if key == "straight_share" else "log10"
        bar = figure.colorbar(ScalarMappable(colours), ax=axes[row, -1], label=unit)
        bar.ax.tick_params(colors=TEXT, length=3, labelsize=9)
        bar.ax.yaxis.label.set_color(TEXT)
        bar.outline.set_edgecolor(FAINT)  # type: ignore[operator]
    for axis in axes[-1]:
        axis.set_xlabel("step", color=TEXT)
    return figure


def values(lines: Lines, key: str) -> list[list[float]]:
    """What a map shows: a row for each unit, from the input up; a value for each probe.

    Args:
        lines: of a run.
        key: one of `MAPS`; all but ``straight_share`` as logarithms to base 10.

    Returns:
        NaN where nothing was measured, or where a logarithm has no value.
    """
    columns = [shares(line) if key == "straight_share" else line[key] for line in lines]
    units = min(map(len, columns))
    return [[_shown(column[unit], key) for column in columns] for unit in range(units)]


def shares(line: Mapping[str, Any]) -> list[float | None]:
    """The straight part of the gradient over the sum of both parts' lengths, at each x_l and at the last sum."""
    return [
        None if s is None or t is None or s + t == 0 else s / (s + t)
        for s, t in zip(line["straight"], line["rest"], strict=True)
    ]


def limits(runs: Sequence[Lines], key: str) -> tuple[float, float]:
    """Least and largest value of a map over several runs."""
    found = [value for lines in runs for row in values(lines, key) for value in row if math.isfinite(value)]
    return (min(found), max(found)) if found else (0.0, 1.0)


def _shown(value: float | None, key: str) -> float:
    if value is None or not math.isfinite(value):
        return math.nan
    if key == "straight_share":
        return value
    return math.log10(value) if value > 0 else math.nan


def _columns(table: list[list[float]], steps: list[int]) -> list[list[float]]:
    """Columns at equal distances of steps, each that of the nearest probe."""
    first, last = steps[0], steps[-1]
    nearest = []
    for column in range(COLUMNS):
        at = first + (last - first) * (column + 0.5) / COLUMNS
        after = min(bisect_left(steps, at), len(steps) - 1)
        before = max(after - 1, 0)
        nearest.append(before if at - steps[before] < steps[after] - at else after)
    return [[row[one] for one in nearest] for row in table]
