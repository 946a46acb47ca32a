"""Pictures of probes along depth: signals, what f changes, gradient parts, factors and their products.

In a picture of `draw_depth` a colour means one thing in all rows; in one of `draw_lines` it is a network in all panels.
Units are counted from 1, as in the printed table; behind the last one stands the end, where the gradient comes from.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from preresnet.pictures.canvas import legend, plain, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = Sequence[float | None]
Panel = Literal["signal", "activation", "gradient", "angle", "decay"]
Quantity = Literal["signal", "activation", "factor", "product", "straight", "gradient"]
PANELS: tuple[Panel, ...] = get_args(Panel)
COLOURS = {
    "signal": "tab:blue",
    "residual": "tab:orange",
    "negative": "tab:green",
    "changed": "tab:red",
    "gradient": "black",
    "straight": "tab:purple",
    "rest": "tab:brown",
    "cosine": "tab:pink",
    "cancelled": "tab:olive",
    "product": "tab:cyan",
}
WITH_END = {"gradient", "angle", "decay", "straight"}  # rows and panels that show one point more than units


def draw_depth(probes: Mapping[str, Mapping[str, Any]], rows: Sequence[Panel] = PANELS) -> "Figure":
    """Networks side by side, depth to the right.

    Args:
        probes: by title, `preresnet.propagation.probe.Probe.as_dict`.
        rows: what to show, from above: the signal; what f changes of y (Eq. 2); the gradient and its parts (Eq. 5) and
            the angle between them; products of factors and what is left of the gradient (Eq. 7 and 8).
    """
    figure = _figure(2.6 + 4.2 * len(probes), 0.9 + 2.3 * len(rows))
    axes = figure.subplots(len(rows), len(probes), sharex="col", sharey="row", squeeze=False)
    drawing = {
        "signal": _signal,
        "activation": _activation,
        "gradient": _gradient,
        "angle": _angle,
        "decay": _decay,
    }
    for column, (title, found) in enumerate(probes.items()):
        axes[0, column].set_title(wrapped(title), fontsize=11)
        _count_units(axes[-1, column], len(found["units"]), end=not WITH_END.isdisjoint(rows))
        for row, name in enumerate(rows):
            axis = axes[row, column]
            word = drawing[name](axis, found)
            if column == 0:
                axis.set_ylabel(word)
            for boundary in _boundaries(found):
                axis.axvline(boundary, color="0.85", linewidth=1, zorder=0)
    for row, name in enumerate(rows):
        keys = {label: key for axis in axes[row] for key, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        if keys:  # beside the picture, where no line can be
            place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            axes[row, -1].legend(keys.values(), keys, fontsize=8, frameon=False, **place)
        if name == "decay":
            _limit(axes[row, 0])
    return _tidy(figure)


def _signal(axis: Any, found: Mapping[str, Any]) -> str:
    axis.set_yscale("log")
    _line(axis, found["forward"]["x_rms"], "signal x", "signal")
    _line(axis, found["forward"]["residual_rms"], "residual F", "residual")
    return "root mean square"


def _gradient(axis: Any, found: Mapping[str, Any]) -> str:
    axis.set_yscale("log")
    _line(axis, found["backward"]["gradient"], "gradient at x", "gradient", linewidth=3, alpha=0.3)
    _line(axis, found["backward"]["straight"], "straight part: through shortcuts alone", "straight")
    _line(axis, found["backward"]["rest"], "rest: through weight layers", "rest")
    return "length of a sample's gradient"


def _decay(axis: Any, found: Mapping[str, Any]) -> str:
    axis.set_yscale("log")
    _line(
        axis,
        _relative(found["backward"]["gradient"]),
        "gradient, relative to the end",
        "gradient",
        linewidth=3,
        alpha=0.3,
    )
    _line(axis, found["joins"]["product"], "product of shortcut factors", "product", style="--")
    _line(axis, _relative(found["backward"]["straight"]), "straight part, relative to the end", "straight")
    return "factor"


def _activation(axis: Any, found: Mapping[str, Any]) -> str:
    _line(axis, found["forward"]["sum_negative_share"], "share of y that is negative", "negative")
    _line(axis, found["forward"]["changed"], "change from y to the next x", "changed")
    return "share"


def _angle(axis: Any, found: Mapping[str, Any]) -> str:
    axis.set_ylim(-1.05, 1.05)
    _line(axis, found["backward"]["cosine"], "cosine between both parts", "cosine")
    _line(axis, found["backward"]["cancelled_share"], "share of samples that nearly cancel", "cancelled", style="--")
    return "cosine, or share"


def draw_pairs(probes: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """How far x_L - x_l is from the sum of the residuals between, for l the first unit of a run.

    Args:
        probes: by title, for each run of units ``first`` (its name) and ``from_first``, the deviation for each L.
    """
    figure = _figure(1.2 + 4.4 * len(probes), 3.6)
    axes = figure.subplots(1, len(probes), sharey=True, squeeze=False)
    for axis, (title, runs) in zip(axes[0], probes.items(), strict=True):
        axis.set_yscale("log")
        for number, run in enumerate(runs):
            _line(axis, run["from_first"], plain(f"from {run['first']}"), f"C{number}")
        axis.axhline(2.0**-24, color="0.6", linewidth=1, linestyle=":")
        axis.set_title(wrapped(title), fontsize=11)
        axis.set_xlabel("units passed")
        axis.set_xlim(0.5, max(len(run["from_first"]) for run in runs) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("deviation from Eq. 4, relative to x")
    axes[0, 0].legend(fontsize=8, frameon=False)
    place = {"fontsize": 8, "color": "0.4", "ha": "right", "va": "bottom"}
    axes[0, 0].text(0.98, 2.0**-24, "rounding of float32", transform=axes[0, 0].get_yaxis_transform(), **place)
    return _tidy(figure)


def draw_lines(probes: Mapping[str, Mapping[str, Any]], panels: Sequence[Quantity]) -> "Figure":
    """Several networks as lines of one panel, a panel for each thing measured, two in a row.

    Args:
        probes: by title.
        panels: what to show: ``signal``; ``activation``, what f changes of y; ``factor`` of each
            shortcut (Eq. 6) and their ``product`` to the end (Eq. 7); the ``straight`` part of the gradient and the
            whole ``gradient``, relative to the end (Eq. 8).
    """
    from matplotlib.lines import Line2D

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(2.9 + 4.4 * columns, 0.3 + 3.5 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    colours = [f"C{number % 10}" for number in range(len(probes))]
    for axis, name in zip(axes.flat, panels, strict=True):
        part, key, title, logarithmic = _QUANTITIES[name]
        if logarithmic:
            axis.set_yscale("log")
        for colour, (label, found) in zip(colours, probes.items(), strict=True):
            values = found[part][key]
            _line(axis, _relative(values) if part == "backward" else values, label, colour)
        _count_units(axis, max(len(found["units"]) for found in probes.values()), end=name in WITH_END)
        axis.set_title(title, fontsize=11)
        if logarithmic:
            _limit(axis)
    # each is named, also where all its values are 0 and a logarithmic axis shows none
    keys = {label: Line2D([], [], color=colour) for colour, label in zip(colours, probes, strict=True)}
    legend(axes[rows // 2, -1], keys, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _tidy(figure)


_QUANTITIES: dict[Quantity, tuple[str, str, str, bool]] = {
    "signal": ("forward", "x_rms", "signal x, root mean square", True),
    "activation": ("forward", "changed", "change from y to the next x", False),
    "factor": ("joins", "factor", "factor of each shortcut", False),
    "product": ("joins", "product", "product of the factors, to the end", True),
    "straight": ("backward", "straight", "straight part of the gradient, over the end's", True),
    "gradient": ("backward", "gradient", "whole gradient, over the end's", True),
}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="tight")


def _tidy(figure: "Figure") -> "Figure":
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _count_units(axis: Any, units: int, *, end: bool) -> None:
    axis.set_xlim(0.5, units + (1.5 if end else 0.5))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("residual unit; rightmost point: the end" if end else "residual unit")


def _line(axis: Any, values: Numbers, label: str, colour: Any, style: str = "-", **more: Any) -> None:
    # a logarithmic axis has no place for 0
    shown = [math.nan if value is None or (value == 0 and axis.get_yscale() == "log") else value for value in values]
    if all(math.isnan(value) for value in shown):
        return
    more.setdefault("linewidth", 1.4)
    marker = "." if len(shown) <= 20 else ""
    drawn = COLOURS.get(colour, colour)
    axis.plot(range(1, len(shown) + 1), shown, style, color=drawn, label=label, marker=marker, **more)


def _relative(values: Numbers) -> list[float | None]:
    end = values[-1]
    return [value / end if value is not None and end else None for value in values]


def _boundaries(found: Mapping[str, Any]) -> list[float]:
    """Between the units of two stages, where names say so: ``stages.1.units.0`` or ``layer2.0``."""
    parents = [name.rsplit(".", 1)[0] for name in found["units"]]
    return [
        unit + 0.5 for unit in range(1, len(parents)) if parents[unit] != parents[unit - 1] and _are_stages(parents)
    ]


def _are_stages(parents: Sequence[str]) -> bool:
    """Whether some units share a parent: then another parent is another stage."""
    return len(set(parents)) < len(parents)


def _limit(axis: Any) -> None:
    """A product of 1e-300 shall not flatten all else: below 1e-20 is below the rounding of anything."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 1e-20 * min(high, 1.0)), high)
