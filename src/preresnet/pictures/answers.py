"""How a trained network answers: errors by class, confusion matrix, calibration; each drawn, and told in words."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from preresnet.pictures.canvas import COLOURS, DASHED, FAINT, PAPER, SIZE, TEXT, blank, legend, plain
from preresnet.pictures.curves import split_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # per cent of a class's images: lower ends of the map's colours
HEAT = ("#f1f6fe", "#d7e5fd", "#b9d2fb", "#90b7f6", "#6698ec", "#1e53b8", "#0a3174")
# The same where a page cannot set them: one shade beside, so that a page's own colours leave them alone.
FIXED_HEAT = tuple(f"#{int(colour[1:], 16) + 1:06x}" for colour in HEAT)
LIGHT_FROM = 5  # from this colour on, letters are light
LIGHT = "#fefefe"  # those letters; not quite `PAPER`, so that a page can tell them apart
MOST_CELLS = 20  # classes of a map with numbers in its cells
MOST_BARS = 20
BAR_LETTERS, CELL_LETTERS = 32, 20  # of a class's name in a picture; the table beside it has the whole


def draw_classes(evaluation: Mapping[str, Any]) -> "tuple[Figure, str]":
    """Error of every class; of many classes, the worst.

    Args:
        evaluation: `preresnet.inference.full_report`, with its ``split``.
    """
    found = [entry for entry in evaluation["classes"] if entry["error_pct"] is not None]
    all_shown = len(found) <= MOST_BARS
    if not all_shown:
        found = sorted(found, key=lambda entry: -entry["error_pct"])[:MOST_BARS]
    figure, axes = blank("Error by class" if all_shown else f"The {MOST_BARS} worst classes", _tall(len(found)))
    names = [
        f"{_short(entry['name'], BAR_LETTERS)}: {entry['error_pct']:.1f}" for entry in found
    ]  # beside the bars, uncrossed
    axes.barh(range(len(found)), [entry["error_pct"] for entry in found], color=COLOURS[0], height=0.7)
    axes.set_yticks(range(len(found)), names)
    line = axes.axvline(evaluation["error_pct"], color=COLOURS[1], linewidth=1.2, linestyle=DASHED)
    axes.set_xlabel(f"{split_words(evaluation['split'])} error, %")
    legend(figure, {"all classes": line}, loc="outside lower left", frameon=False, labelcolor=TEXT, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.05, y=0.02)
    axes.set_xlim(left=0)
    worst = max(found, key=lambda entry: entry["error_pct"], default=None)
    words = f"All classes: {evaluation['error_pct']:.2f} %."
    if worst:
        words += f" Worst: {worst['name']}, {worst['error_pct']:.2f} %."
    return figure, words


def draw_confusion(evaluation: Mapping[str, Any]) -> "tuple[Figure, str]":
    """Which class was taken for which: a map of per cents of each true class."""
    import numpy as np
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    names = [entry["name"] for entry in evaluation["classes"]]
    counts = np.array(evaluation["confusion"])
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = blank("Confusion matrix", (SIZE[0], 4.9))
    with_numbers = len(names) <= MOST_CELLS
    shades = HEAT if with_numbers else FIXED_HEAT
    norm, colours = BoundaryNorm([*LEVELS, 100.001], len(HEAT)), ListedColormap(shades)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="answer", ylabel="true class")
    axes.set_aspect("equal")
    axes.tick_params(length=0, labelsize=8)
    if with_numbers:
        axes.pcolormesh(share, cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1, clip_on=False)
        for (true, answer), count in np.ndenumerate(counts):
            if count:
                light = np.searchsorted(LEVELS, share[true, answer], side="right") > LIGHT_FROM
                place = {"ha": "center", "va": "center", "fontsize": 7.5}
                axes.text(answer + 0.5, true + 0.5, str(count), color=LIGHT if light else TEXT, **place)
        middle = np.arange(len(names)) + 0.5
        shown = [_short(name, CELL_LETTERS) for name in names]
        if max(map(len, names)) > 2:
            axes.set_xticks(middle, shown, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(middle, shown)
        axes.set_yticks(middle, shown)
        axes.invert_yaxis()
    else:  # too many cells for a drawing of each: an image, whose colours are the same on a dark page
        image = colours(norm(share))
        axes.imshow(image, extent=(0, len(names), len(names), 0), interpolation="none")
        axes.set(xlabel="answer, number of the class", ylabel="true class, number")
    keys = [Patch(facecolor=colour, edgecolor=FAINT, linewidth=0.5) for colour in shades]
    ends = [*(f"{level:g}" for level in LEVELS[1:]), "100"]
    figure.legend(
        keys,
        [f"{low:g}-{high}" for low, high in zip(LEVELS, ends, strict=True)],
        title="per cent of the true class",
        title_fontsize=8.5,
        loc="outside lower left",
        ncols=4,
        frameon=False,
        labelcolor=TEXT,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.2,
    )
    figure.legends[0].get_title().set_color(TEXT)
    off = counts - np.diag(np.diag(counts))
    true, answer = np.unravel_index(int(off.argmax()), off.shape)
    words = f"{int(np.trace(counts)):,} of {int(counts.sum()):,} images right."
    if off.any():
        words += f" Most frequent mistake: {names[int(true)]} taken for {names[int(answer)]}, {off.max()} times."
    return figure, words


def draw_calibration(evaluation: Mapping[str, Any]) -> "tuple[Figure, str]":
    """Reliability diagram: how often an answer of some confidence is right (Guo et al., 2017)."""
    found = evaluation["calibration"]
    figure, axes = blank(f"Expected calibration error {found['ece_pct']:.2f} %", (SIZE[0], 4.3))
    right = [entry["accuracy_pct"] for entry in found["bins"]]
    sure = [entry["confidence_pct"] for entry in found["bins"]]
    width = [100 * (entry["to"] - entry["from"]) for entry in found["bins"]]
    axes.bar(
        [100 * entry["from"] for entry in found["bins"]],
        right,
        width,
        align="edge",
        color=HEAT[3],
        edgecolor=PAPER,
        linewidth=1,
        label="share right in a bin",
    )
    axes.plot([0, 100], [0, 100], color=COLOURS[1], linewidth=1.2, linestyle=DASHED, label="perfect calibration")
    axes.plot(
        sure,
        right,
        "o-",
        color=COLOURS[0],
        linewidth=1.6,
        markersize=3.5,
        label="at its mean confidence",
        clip_on=False,
    )
    axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(0, 102), ylim=(0, 102))  # room for a point at 100
    figure.legend(loc="outside lower left", ncols=2, frameon=False, labelcolor=TEXT, fontsize=9, borderaxespad=0.3)
    bins = f"{len(found['bins'])} bins that hold" if len(found["bins"]) > 1 else "the one bin that holds"
    words = f"Expected calibration error {found['ece_pct']:.2f} % over {bins} images."
    if found["bins"]:
        last = found["bins"][-1]
        words += (
            f" In the surest bin, {last['num_images']:,} images: mean confidence {last['confidence_pct']:.1f}, "
            f"right {last['accuracy_pct']:.1f} %."
        )
    return figure, words


def _tall(bars: int) -> tuple[float, float]:
    return SIZE[0], 1.35 + 0.23 * max(bars, 4)


def _short(name: str, letters: int) -> str:
    return plain(name if len(name) <= letters else name[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}")
