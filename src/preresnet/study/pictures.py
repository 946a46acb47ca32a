"""How does a probe look: norms, gradient parts and shortcut products along depth, and along training?"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Numbers = Sequence[float | None]
FORMATS = (".png", ".svg")


def draw(probes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Networks side by side, depth to the right.

    Args:
        probes: by title, `preresnet.study.probe.Probe.as_dict`.
        path: of the picture, ``.png`` or ``.svg``.
    """
    plt = _plotting(path)
    figure, axes = plt.subplots(
        4, len(probes), figsize=(1.2 + 4.4 * len(probes), 9.6), sharex="col", sharey="row", squeeze=False
    )
    for column, (title, found) in enumerate(probes.items()):
        forward, back, joins = found["forward"], found["backward"], found["joins"]
        top, gradient, decay, signs = axes[:, column]
        for axis in (top, gradient, decay):
            axis.set_yscale("log")
        top.set_title(title, fontsize=11)
        _line(top, forward["x_rms"], "signal x", "tab:blue")
        _line(top, forward["residual_rms"], "residual F", "tab:orange")
        _line(gradient, back["gradient"], "gradient at x", "black", linewidth=2.5, alpha=0.35)
        _line(gradient, back["straight"], "straight through the shortcuts", "tab:blue")
        _line(gradient, back["rest"], "through the weight layers", "tab:orange")
        _line(decay, joins["product"], "product of shortcut factors", "tab:blue", style="--")
        _line(decay, _relative(back["straight"]), "measured: straight part, relative to the end", "tab:blue")
        _line(decay, _relative(back["gradient"]), "measured: gradient, relative to the end", "black", alpha=0.35)
        _line(signs, forward["sum_negative_share"], "share of negative y", "tab:green")
        _line(signs, forward["changed"], "change between y and the next x", "tab:red")
        _line(signs, back["cosine"], "cosine between the gradient's parts", "tab:purple")
        signs.set_xlabel("residual unit")
        for axis in axes[:, column]:
            for boundary in _boundaries(found):
                axis.axvline(boundary, color="0.85", linewidth=1, zorder=0)
    words = ("root mean square", "norm of a sample's gradient", "factor", "share, or cosine")
    for row, word in enumerate(words):
        axes[row, 0].set_ylabel(word)
        axes[row, 0].legend(fontsize=8, frameon=False, loc="best")
    _limit(axes[1, 0], [found["backward"]["gradient"] for found in probes.values()])
    _limit(
        axes[2, 0],
        [found["joins"]["product"] for found in probes.values()]
        + [_relative(found["backward"]["gradient"]) for found in probes.values()],
    )
    _save(figure, path)


def draw_products(probes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Shortcut products of several networks, and beside each the measured decay of the straight part.

    Args:
        probes: by title.
        path: of the picture.
    """
    plt = _plotting(path)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), sharey=True)
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
    right.legend(fontsize=8, frameon=False, loc="lower right")
    _save(figure, path)


def draw_series(lines: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Heat maps along training: steps to the right, depth upwards.

    Args:
        lines: of ``probe.jsonl``.
        path: of the picture.
        title: above it.

    Raises:
        ValueError: no line.
    """
    if not lines:
        raise ValueError("nothing was probed in this run; train with --probe-every")
    plt = _plotting(path)
    wanted = (
        ("x_rms", "signal x, rms"),
        ("residual_rms", "residual F, rms"),
        ("gradient", "gradient at x, norm"),
        ("straight_share", "straight part over the sum of both"),
    )
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True, sharey=True)
    for axis, (key, word) in zip(axes.flat, wanted, strict=True):
        table = [_column(line, key) for line in lines]
        values = [[row[unit] for row in table] for unit in range(min(map(len, table)))]
        linear = key == "straight_share"
        shown = [[_log(v) if not linear else (math.nan if v is None else v) for v in row] for row in values]
        image = axis.imshow(shown, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest")
        bar = figure.colorbar(image, ax=axis)
        bar.set_label("share" if linear else "log10")
        axis.set_title(word, fontsize=10)
    every = max(1, len(lines) // 6)
    marks = list(range(0, len(lines), every))
    for axis in axes[1]:
        axis.set_xticks(marks, [f"{lines[mark]['step']:,}" for mark in marks])
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("residual unit")
    if title:
        figure.suptitle(title, fontsize=11)
    _save(figure, path)


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


def _log(value: float | None) -> float:
    return math.log10(value) if value else math.nan


def _boundaries(found: Mapping[str, Any]) -> list[float]:
    """Between the units of two stages, where names say so: ``stages.1.units.0`` or ``layer2.0``."""
    parents = [name.rsplit(".", 1)[0] for name in found["units"]]
    return [unit + 0.5 for unit in range(1, len(parents)) if parents[unit] != parents[unit - 1] and "." in parents[0]]


def _limit(axis: Any, columns: Sequence[Numbers]) -> None:
    """A product of 1e-300 shall not flatten all else: below 1e-20 is below the rounding of anything."""
    positive = [value for column in columns for value in column if value]
    if positive:
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 1e-20 * max(positive)), high)
