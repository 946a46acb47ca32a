"""The pictures of a report: what each shows, told in words too; as files and as part of a page."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preresnet.pictures import answers, curves, heatmaps
from preresnet.pictures.answers import HEAT, LIGHT
from preresnet.pictures.canvas import COLOURS, FAINT, PAPER, TEXT, encoded
from preresnet.pictures.curves import Curve
from preresnet.report.content import RowContent, RunContent
from preresnet.spec import UserError
from preresnet.train.checkpoint import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "preresnet report"  # in every file that a report writes, so that the next one knows what it may replace
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
        png = encoded(self.figure, "png", dpi=200, metadata={"Software": MARK})
        return {f"{self.name}.svg": f"{self._svg()}<!-- {MARK} -->\n".encode(), f"{self.name}.png": png}

    def inline(self) -> str:
        """The drawing as part of a page: its colours are the page's, its ids are its own, its words are in it."""
        svg = self._svg()
        svg = svg[svg.index("<svg") :]
        box = re.search(r'viewBox="([^"]*)"', svg)
        assert box
        size = " ".join(f"{float(value):.0f}" for value in box.group(1).split())
        body = re.sub(r"<(defs>\s*<style).*?</defs>", "", svg[svg.index(">") + 1 :], count=1, flags=re.DOTALL)
        own = f"f{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        body = _compact(_in_tags(lambda tag: _owned(tag, own, set(re.findall(r"#([\w-]+)", svg))), body), own)
        ids = f"{self.name}-title", f"{self.name}-words"
        return (
            f'<svg viewBox="{size}" role="img" aria-labelledby="{ids[0]} {ids[1]}">'
            f'<title id="{ids[0]}">{escape(self.caption)}</title><desc id="{ids[1]}">{escape(self.words)}</desc>'
            f"{body}"
        )

    def _svg(self) -> str:
        settings = {"svg.hashsalt": self.name, "svg.fonttype": "none"}
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        return encoded(self.figure, "svg", settings, metadata=nothing).decode()


def training(name: str, row: RowContent, beside: RowContent | None) -> Picture:
    """Curves of a row, and of the row beside it, as in Figures 1, 3 and 6."""
    rows = [one for one in (row, beside) if one is not None]
    lines = [_curve(one) for one in rows]
    caption = "Training curves" + (
        f", {row.entry.label}, beside {beside.entry.label}" if beside else f", {row.entry.label}"
    )
    words = " ".join(_curve_words(one) for one in lines)
    return Picture(name, caption, words, curves.draw_curves(lines, row.entry.label, row.split))


def _curve(row: RowContent) -> Curve:
    done = tuple(curves.measured(run.lines) for run in row.runs if run.entry.status == "done" and run.lines)
    others = tuple(curves.measured(run.lines) for run in row.runs if run.entry.status != "done" and run.lines)
    return Curve(row.entry.label, done, others)


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


def signal(name: str, label: str, run: RunContent, others: Sequence[RunContent]) -> Picture:
    """Signal and gradient of a run along depth and training, in the colours of ``others`` too."""
    first, last = run.probes[0], run.probes[-1]
    words = f"{len(first['x_rms'])} units, {len(run.probes)} probes."
    for key, what in (("x_rms", "Signal x"), ("gradient", "Gradient at x")):
        told = [f"{line[key][0]:.3g} to {line[key][-1]:.3g} at step {line['step']:,}" for line in (first, last)]
        words += f" {what}, first unit to the end: {', '.join(dict.fromkeys(told))}."
    figure = heatmaps.draw_heatmaps({label: run.probes}, [one.probes for one in others])
    return Picture(name, f"Signal and gradient, {label}", words, figure)


def of_answers(name: str, label: str, evaluation: Mapping[str, Any]) -> dict[str, Picture]:
    """How a network answers: errors by class, confusion matrix, calibration.

    Args:
        name: of the files, in front of what each shows.
        label: of the network.
        evaluation: `preresnet.inference.full_report`, with its ``split``.
    """
    drawn = {
        "classes": ("Error by class", answers.draw_classes(evaluation)),
        "confusion": ("Confusion matrix", answers.draw_confusion(evaluation)),
        "calibration": ("Calibration", answers.draw_calibration(evaluation)),
    }
    return {
        kind: Picture(f"{name}-{kind}", f"{caption}, {label}", words, figure)
        for kind, (caption, (figure, words)) in drawn.items()
    }


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
        write_atomically(path, lambda partial, content=content: partial.write_bytes(content))


def require_ours(path: Path) -> None:
    """Refuse to replace what no report wrote.

    Raises:
        ValueError: something else is at ``path``.
    """
    if path.exists() and (path.is_dir() or MARK.encode() not in path.read_bytes()):
        raise UserError(f"{path} was not written by `{MARK}` and is left alone; move it, or give another --out")


def _in_tags(edit: Callable[[str], str], svg: str) -> str:
    """A drawing with its tags edited; what stands between them, which may be anybody's name, stays as it is."""
    return re.sub("<[^>]*>", lambda tag: edit(tag[0]), svg)


def _owned(tag: str, own: str, used: set[str]) -> str:
    """A tag with the page's colours, and with ids that no other picture has; those that nothing refers to go."""
    tag = re.sub(r"font-family: [^;\"]*; ?", "", tag)  # a page may hold a hundred pictures: its style says that once
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{own}-{found[1]}"' if found[1] in used else "", tag)
    tag = tag.replace("url(#", f"url(#{own}-").replace('xlink:href="#', f'href="#{own}-')
    for colour, variable in THEME.items():
        tag = tag.replace(colour, f"var({variable})")
    # two decimals, no rotation by nothing
    tag = re.sub(r'(?<= )(d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), tag)
    tag = re.sub(r'(?<= d=")[^"]*', lambda found: re.sub(r"\s*([A-Za-z])\s*", r"\1", found[0]), tag)
    return re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)


def _compact(body: str, own: str) -> str:
    """The same drawing in fewer letters: no group of one, no style told often."""
    body = re.sub(r"<g>\s*(<text[^>]*>[^<]*</text>)\s*</g>", r"\1", body)
    body = re.sub(r">\s+<", "><", body)
    told = Counter(re.findall(r' style="([^"]*)"', " ".join(re.findall("<[^>]*>", body))))
    names = {style: f"{own}-{number}" for number, style in enumerate(style for style in told if told[style] >= OFTEN)}

    def named(tag: str) -> str:
        return re.sub(
            r' style="([^"]*)"', lambda found: f' class="{names[found[1]]}"' if found[1] in names else found[0], tag
        )

    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return (f"<style>{rules}</style>" if rules else "") + _in_tags(named, body)
