"""Which pictures does a report show, and how do they become files and part of a page?"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preresnet.pictures import curves, heatmaps
from preresnet.pictures.curves import COLOURS, FAINT, PAPER, TEXT, Curve
from preresnet.report.content import Row, Run
from preresnet.spec import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "preresnet report"  # in every file that a report writes, so that the next one knows what it may replace
LEVELS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # per cent of a class's images: lower ends of the map's colours
HEAT = ("#f1f6fe", "#d7e5fd", "#b9d2fb", "#90b7f6", "#6698ec", "#1e53b8", "#0a3174")
# The same where a page cannot set them: one shade beside, so that the theme below leaves them alone.
FIXED_HEAT = tuple(f"#{int(colour[1:], 16) + 1:06x}" for colour in HEAT)
LIGHT_FROM = 5  # from this colour on, letters are light
LIGHT = "#fefefe"  # those letters; not quite `PAPER`, so that a page can tell them apart
MOST_CELLS = 20  # classes of a map with numbers in its cells
MOST_BARS = 20
OFTEN = 5  # uses of a style from which on a drawing names it
# What a page sets in its own colours, light and dark (the variables are in report.html.j2).
THEME = {
    TEXT: "--text",
    FAINT: "--line",
    PAPER: "--page",
    COLOURS[0]: "--first",
    COLOURS[1]: "--second",
    LIGHT: "--on-heat",
    **{colour: f"--heat-{level}" for level, colour in enumerate(HEAT)},
}


@dataclass(frozen=True)
class Picture:
    """A drawing with what it says in words.

    Args:
        name: of its files, without suffix.
        caption: what it shows.
        words: what can be seen in it, for who cannot see it.
        figure: the drawing.
    """

    name: str
    caption: str
    words: str
    figure: "Figure"

    def files(self) -> dict[str, bytes]:
        """PNG and SVG by file name, the same bytes whenever the drawing is the same."""
        png = io.BytesIO()
        self.figure.savefig(png, format="png", dpi=200, metadata={"Software": MARK})
        return {f"{self.name}.svg": f"{self._svg()}<!-- {MARK} -->\n".encode(), f"{self.name}.png": png.getvalue()}

    def inline(self) -> str:
        """The drawing as part of a page: its colours are the page's, its ids are its own, its words are in it."""
        svg = self._svg()
        svg = svg[svg.index("<svg") :]
        # a page may hold a hundred pictures: no list of fonts on every word, no names that nothing refers to
        svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)  # the page's style has them
        used = set(re.findall(r"#([\w-]+)", svg))
        svg = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", svg)
        body = re.sub(r"<(defs>\s*<style).*?</defs>", "", svg[svg.index(">") + 1 :], count=1, flags=re.DOTALL)
        own = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        body = re.sub(r'\bid="', f'id="f{own}-', body)
        body = re.sub(r"url\(#", f"url(#f{own}-", body).replace('xlink:href="#', f'href="#f{own}-')
        body = _compact(body, f"f{own}")
        for colour, variable in THEME.items():
            body = body.replace(colour, f"var({variable})")
        box = re.search(r'viewBox="([^"]*)"', svg)
        assert box
        size = " ".join(f"{float(value):.0f}" for value in box.group(1).split())
        ids = f"{self.name}-title", f"{self.name}-words"
        return (
            f'<svg viewBox="{size}" role="img" aria-labelledby="{ids[0]} {ids[1]}">'
            f'<title id="{ids[0]}">{_escaped(self.caption)}</title><desc id="{ids[1]}">{_escaped(self.words)}</desc>'
            f"{body}"
        )

    def _svg(self) -> str:
        import matplotlib

        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            self.figure.savefig(text, format="svg", metadata=nothing)
        return text.getvalue()


def training(name: str, row: Row, beside: Row | None) -> Picture:
    """Curves of a row, and of the row beside it, as in Figures 1, 3 and 6."""
    rows = [one for one in (row, beside) if one is not None]
    lines = [_curve(one) for one in rows]
    caption = "Training curves" + (f", {row.label}, beside {beside.label}" if beside else f", {row.label}")
    words = " ".join(_curve_words(one) for one in lines)
    return Picture(name, caption, words, curves.draw(lines, row.label, row.split))


def _curve(row: Row) -> Curve:
    done = tuple(curves.measured(run.lines) for run in row.runs if run.status == "done" and run.lines)
    others = tuple(curves.measured(run.lines) for run in row.runs if run.status != "done" and run.lines)
    return Curve(row.label, done, others)


def _curve_words(curve: Curve) -> str:
    words = []
    for name, what, unit, digits in (("loss", "training loss", "", 3), ("error", "error", " %", 2)):
        middle = curves.median([getattr(seed, name) for seed in curve.seeds or curve.others])
        if middle:
            (first, start), (last, end) = middle[0], middle[-1]
            words.append(
                f"{what} {start:.{digits}f}{unit} at step {first:,} and {end:.{digits}f}{unit} at step {last:,}"
            )
    return f"{curve.label}: {'; '.join(words)}." if words else f"{curve.label}: nothing measured."


def signal(name: str, label: str, run: Run, others: Sequence[Run]) -> Picture:
    """Signal and gradient of a run along depth and training, in the colours of ``others`` too."""
    first, last = run.probes[0], run.probes[-1]
    words = f"{len(first['x_rms'])} units, {len(run.probes)} probes."
    for key, what in (("x_rms", "Signal x"), ("gradient", "Gradient at x")):
        told = [f"{line[key][0]:.3g} to {line[key][-1]:.3g} at step {line['step']:,}" for line in (first, last)]
        words += f" {what}, first unit to the end: {', '.join(dict.fromkeys(told))}."
    figure = heatmaps.draw({label: run.probes}, [one.probes for one in others])
    return Picture(name, f"Signal and gradient, {label}", words, figure)


def by_class(name: str, label: str, evaluation: Mapping[str, Any]) -> Picture:
    """Error of every class; of many classes, the worst."""
    found = [entry for entry in evaluation["classes"] if entry["error_pct"] is not None]
    few = len(found) <= MOST_BARS
    if not few:
        found = sorted(found, key=lambda entry: -entry["error_pct"])[:MOST_BARS]
    figure, axes = curves.blank("Error by class" if few else f"The {MOST_BARS} worst classes", _tall(len(found)))
    names = [f"{entry['name']}: {entry['error_pct']:.1f}" for entry in found]  # beside the bars nothing crosses them
    axes.barh(names, [entry["error_pct"] for entry in found], color=COLOURS[0], height=0.7)
    axes.axvline(evaluation["error_pct"], color=COLOURS[1], linewidth=1.2, linestyle=curves.DASHED)
    axes.set_xlabel(f"{curves.split_words(evaluation['split'])} error, %; dashed: all classes")
    axes.invert_yaxis()
    axes.margins(x=0.05, y=0.02)
    axes.set_xlim(left=0)
    worst = max(found, key=lambda entry: entry["error_pct"], default=None)
    words = f"All classes: {evaluation['error_pct']:.2f} %."
    if worst:
        words += f" Worst: {worst['name']}, {worst['error_pct']:.2f} %."
    return Picture(name, f"Error by class, {label}", words, figure)


def confusion(name: str, label: str, evaluation: Mapping[str, Any]) -> Picture:
    """Which class was taken for which: a map of per cents of each true class."""
    import numpy as np
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    names = [entry["name"] for entry in evaluation["classes"]]
    counts = np.array(evaluation["confusion"])
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = curves.blank("Confusion matrix", (curves.SIZE[0], 4.9))
    few = len(names) <= MOST_CELLS
    shades = HEAT if few else FIXED_HEAT
    norm, colours = BoundaryNorm([*LEVELS, 100.001], len(HEAT)), ListedColormap(shades)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="answer", ylabel="true class")
    axes.set_aspect("equal")
    axes.tick_params(length=0, labelsize=8)
    if few:
        axes.pcolormesh(share, cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1, clip_on=False)
        for (true, answer), count in np.ndenumerate(counts):
            if count:
                light = np.searchsorted(LEVELS, share[true, answer], side="right") > LIGHT_FROM
                place = {"ha": "center", "va": "center", "fontsize": 7.5}
                axes.text(answer + 0.5, true + 0.5, str(count), color=LIGHT if light else TEXT, **place)
        middle = np.arange(len(names)) + 0.5
        if max(map(len, names)) > 2:
            axes.set_xticks(middle, names, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(middle, names)
        axes.set_yticks(middle, names)
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
    return Picture(name, f"Confusion matrix, {label}", words, figure)


def calibration(name: str, label: str, evaluation: Mapping[str, Any]) -> Picture:
    """Reliability diagram: how often an answer of some confidence is right (Guo et al., 2017)."""
    found = evaluation["calibration"]
    figure, axes = curves.blank(
        f"Calibration: expected calibration error {found['ece_pct']:.2f} %", (curves.SIZE[0], 4.3)
    )
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
    axes.plot([0, 100], [0, 100], color=COLOURS[1], linewidth=1.2, linestyle=curves.DASHED, label="perfect calibration")
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
    axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(0, 100), ylim=(0, 100))
    figure.legend(loc="outside lower left", ncols=2, frameon=False, labelcolor=TEXT, fontsize=9, borderaxespad=0.3)
    words = f"Expected calibration error {found['ece_pct']:.2f} % over {len(found['bins'])} bins that hold images."
    if found["bins"]:
        last = found["bins"][-1]
        words += (
            f" In the surest bin, {last['num_images']:,} images: mean confidence {last['confidence_pct']:.1f}, "
            f"right {last['accuracy_pct']:.1f} %."
        )
    return Picture(name, f"Calibration, {label}", words, figure)


def write(pictures: Sequence[Picture], folder: Path) -> None:
    """Write every picture as PNG and SVG; files of the same name that no report wrote are left alone.

    Raises:
        ValueError: such a file is there. Nothing was written.
    """
    files = {folder / name: content for picture in pictures for name, content in picture.files().items()}
    for path in files:
        require_ours(path)
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)


def require_ours(path: Path) -> None:
    """Refuse to replace what no report wrote.

    Raises:
        ValueError: something else is at ``path``.
    """
    if path.exists() and (path.is_dir() or MARK.encode() not in path.read_bytes()):
        raise UserError(f"{path} was not written by `{MARK}` and is left alone; move it, or give another --out")


def _tall(bars: int) -> tuple[float, float]:
    return curves.SIZE[0], 1.1 + 0.23 * max(bars, 4)


def _compact(body: str, prefix: str) -> str:
    """The same drawing in fewer letters: two decimals, no rotation by nothing, no group of one, no style told often."""
    body = re.sub(r'(?<= )(d|x|y)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), body)
    body = re.sub(r'(?<= d=")[^"]*', lambda match: re.sub(r"\s*([A-Za-z])\s*", r"\1", match[0]), body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", body)
    body = re.sub(r"<g>\s*(<text[^>]*>[^<]*</text>)\s*</g>", r"\1", body)
    body = re.sub(r">\s+<", "><", body)
    often = [style for style, count in Counter(re.findall(r' style="([^"]*)"', body)).items() if count >= OFTEN]
    for number, style in enumerate(often):
        body = body.replace(f' style="{style}"', f' class="{prefix}-{number}"')
    rules = "".join(f".{prefix}-{number}{{{style}}}" for number, style in enumerate(often))
    return (f"<style>{rules}</style>" if rules else "") + body


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
