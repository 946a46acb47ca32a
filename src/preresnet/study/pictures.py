"""How does a probe look: norms, gradient parts and shortcut products along depth, and along training?"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = Sequence[float | None]
Row = Literal["signal", "gradient", "decay", "shares"]
ROWS: tuple[Row, ...] = get_args(Row)
FORMATS = (".png", ".svg")


def draw(probes: Mapping[str, Mapping[str, Any]], path: Path, rows: Sequence[Row] = ROWS) -> None:
    """Networks side by side, depth to the right.

    Args:
        probes: by title, `preresnet.study.probe.Probe.as_dict`.
        path: of the picture, ``.png`` or ``.svg``.
        rows: what to show, from above: ``signal``, ``gradient``, ``decay``, ``shares``.
    """
    plt = _plotting(path)
    figure, axes = plt.subplots(
        len(rows),
        len(probes),
        figsize=(2.6 + 4.2 * len(probes), 0.9 + 2.3 * len(rows)),
        sharex="col",
        sharey="row",
        squeeze=False,
    )
    drawing = {"signal": _signal, "gradient": _gradient, "decay": _decay, "shares": _shares}
    for column, (title, found) in enumerate(probes.items()):
        axes[0, column].set_title(title, fontsize=11)
        axes[-1, column].set_xlabel("residual unit")
        axes[-1, column].xaxis.get_major_locator().set_params(integer=True)
        for row, name in enumerate(rows):
            axis = axes[row, column]
            word = drawing[name](axis, found)
            if column == 0:
                axis.set_ylabel(word)
            if column == len(probes) - 1:  # beside the picture, where no line can be
                axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
            for boundary in _boundaries(found):
                axis.axvline(boundary, color="0.85", linewidth=1, zorder=0)
    for row, name in enumerate(rows):
        if name == "decay":
            _limit(axes[row, 0])
    _save(figure, path)


def _signal(axis: Any, found: Mapping[str, Any]) -> str:
    axis.set_yscale("log")
    _line(axis, found["forward"]["x_rms"], "signal x", "tab:blue")
    _line(axis, found["forward"]["residual_rms"], "residual F", "tab:orange")
    return "root mean square"


def _gradient(axis: Any, found: Mapping[str, Any]) -> str:
    axis.set_yscale("log")
    _line(axis, found["backward"]["gradient"], "gradient at x", "black", linewidth=3, alpha=0.3)
    _line(axis, found["backward"]["straight"], "straight through the shortcuts", "tab:blue")
    _line(axis, found["backward"]["rest"], "through the weight layers", "tab:orange")
    return "norm of a sample's gradient"


def _decay(axis: Any, found: Mapping[str, Any]) -> str:
    axis.set_yscale("log")
    _line(axis, found["joins"]["product"], "product of shortcut factors", "tab:blue", style="--")
    _line(axis, _relative(found["backward"]["straight"]), "straight part, relative to the end", "tab:blue")
    _line(axis, _relative(found["backward"]["gradient"]), "gradient, relative to the end", "black", alpha=0.3)
    return "factor"


def _shares(axis: Any, found: Mapping[str, Any]) -> str:
    _line(axis, found["forward"]["sum_negative_share"], "share of negative y", "tab:green")
    _line(axis, found["forward"]["changed"], "change from y to the next x", "tab:red")
    _line(axis, found["backward"]["cosine"], "cosine of the gradient's parts", "tab:purple")
    return "share, or cosine"


def draw_pairs(probes: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """How far x_L - x_l is from the sum of the residuals between, for l the first unit of a run.

    Args:
        probes: by title, for each run of units ``first`` (its name) and ``from_first``, the deviation for each L.
        path: of the picture.
    """
    plt = _plotting(path)
    figure, axes = plt.subplots(1, len(probes), figsize=(1.2 + 4.4 * len(probes), 3.6), sharey=True, squeeze=False)
    for axis, (title, runs) in zip(axes[0], probes.items(), strict=True):
        axis.set_yscale("log")
        for number, run in enumerate(runs):
            _line(axis, run["from_first"], f"from {run['first']}", f"C{number}")
        axis.axhline(2.0**-24, color="0.6", linewidth=1, linestyle=":")
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("units passed")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("deviation from Eq. 4, relative to x")
    axes[0, 0].legend(fontsize=8, frameon=False)
    place = {"fontsize": 8, "color": "0.4", "ha": "right", "va": "bottom"}
    axes[0, 0].text(0.98, 2.0**-24, "rounding of float32", transform=axes[0, 0].get_yaxis_transform(), **place)
    _save(figure, path)


def draw_products(probes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Shortcut products of several networks, and beside each the measured decay of the straight part.

    Args:
        probes: by title.
        path: of the picture.
    """
    plt = _plotting(path)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.4), sharey=True)
    colours = plt.get_cmap("tab10")
    left.set_yscale("log")
    for number, (title, found) in enumerate(probes.items()):
        colour = colours(number % 10)
        _line(left, found["joins"]["product"], title, colour)
        _line(right, _relative(found["backward"]["straight"]), title, colour)
    left.set(xlabel="residual unit", ylabel="what is left of the end's gradient")
    left.set_title("product of the shortcut factors (Eq. 8)", fontsize=11)
    right.set(xlabel="residual unit")
    right.set_title("measured: straight part of the gradient, relative to the end", fontsize=11)
    right.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def draw_series(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Heat maps along training, runs side by side: steps to the right, depth upwards, one scale a row.

    Args:
        runs: by title, the lines of ``probe.jsonl``.
        path: of the picture.

    Raises:
        ValueError: a run without lines.
    """
    _plotting(path)
    _save(heat_maps(runs), path)


def heat_maps(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """The drawing of `draw_series`, for a page that holds more than this.

    Args:
        runs: by title, the lines of ``probe.jsonl``.

    Raises:
        ValueError: a run without lines.
    """
    if not runs or not all(runs.values()):
        raise ValueError("nothing was probed in this run; train with --probe-every")
    plt = _plotting(Path("any.png"))
    size = (1.6 + 4.2 * len(runs), 0.8 + 2.1 * len(_HEATS))
    figure, axes = plt.subplots(len(_HEATS), len(runs), figsize=size, sharex="col", sharey="col", squeeze=False)
    for row, (key, word) in enumerate(_HEATS.items()):
        logarithmic = key != "straight_share"
        maps = [_heat_map(lines, key, logarithmic=logarithmic) for lines in runs.values()]
        shown = [value for table in maps for values in table for value in values if not math.isnan(value)]
        low, high = (min(shown), max(shown)) if shown else (0, 1)
        images = []
        for axis, table in zip(axes[row], maps, strict=True):
            drawn = axis.imshow(
                table, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest", vmin=low, vmax=high
            )
            images.append(drawn)
            axis.set_title(word, fontsize=9)
        figure.colorbar(images[-1], ax=axes[row, -1], label="log10" if logarithmic else "share")
    for column, (title, lines) in enumerate(runs.items()):
        axes[-1, column].yaxis.get_major_locator().set_params(integer=True)
        axes[0, column].set_title(f"{title}\n{next(iter(_HEATS.values()))}", fontsize=9)
        marks = list(range(0, len(lines), max(1, len(lines) // 5)))
        axes[-1, column].set_xticks(marks, [f"{lines[mark]['step']:,}" for mark in marks])
        axes[-1, column].set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("residual unit")
    return figure


_HEATS = {
    "x_rms": "signal x, root mean square",
    "residual_rms": "residual F, root mean square",
    "gradient": "norm of the gradient at x",
    "straight_share": "straight part, over the sum of both parts' norms",
}


def _heat_map(lines: Sequence[Mapping[str, Any]], key: str, *, logarithmic: bool) -> list[list[float]]:
    """A row for each unit, from the input up; a column for each step."""
    columns = [_column(line, key) for line in lines]
    if logarithmic:
        columns = [[math.log10(value) if value else math.nan for value in column] for column in columns]
    return [
        [math.nan if column[unit] is None else column[unit] for column in columns] for unit in range(len(columns[0]))
    ]  # type: ignore[misc]


def _column(line: Mapping[str, Any], key: str) -> list[float | None]:
    if key != "straight_share":
        return list(line[key])
    return [
        None if s is None or t is None or s + t == 0 else s / (s + t)
        for s, t in zip(line["straight"], line["rest"], strict=True)
    ]


def _plotting(path: Path) -> Any:
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: a picture is {' or '.join(FORMATS)}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _line(axis: Any, values: Numbers, label: str, colour: Any, style: str = "-", **more: Any) -> None:
    # a logarithmic axis has no place for 0
    shown = [math.nan if value is None or (value == 0 and axis.get_yscale() == "log") else value for value in values]
    if all(math.isnan(value) for value in shown):
        return
    more.setdefault("linewidth", 1.4)
    marker = "." if len(shown) <= 20 else ""
    axis.plot(range(1, len(shown) + 1), shown, style, color=colour, label=label, marker=marker, **more)


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
