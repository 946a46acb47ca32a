"""What all pictures share: colours, an empty figure, names as they are, legends, and the bytes of a file.

Figures are made without pyplot, so that no picture changes the backend or the settings of the program that asks for it.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preresnet.spec import UserError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

TEXT, FAINT, PAPER = "#1f1f1f", "#c4c7c5", "#ffffff"
COLOURS = ("#0b57d0", "#5f6368")  # the first thing shown, and what stands beside it
SIZE = 4.2, 3.4  # inches; at 72 points an inch it is as wide as a phone shows, so letters keep their size there
DASHED = (0, (4, 2))
LETTERS = 46  # of a title's line at `SIZE`
FORMATS = (".png", ".svg")

_UNSHOWN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]"
)  # no file of XML or UTF-8 can hold these


def plain(text: str) -> str:
    r"""A name for matplotlib, which shows it as it is: dollars start no formula.

    What no file can hold, such as the half of a character that a file name in another encoding becomes, is written as
    Python writes it (``\udce9``).
    """
    shown = _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown.replace("$", r"\$")


def wrapped(text: str, letters: int = LETTERS) -> str:
    """A title in lines of so many letters, as `plain` text."""
    return "\n".join(plain(line) for part in text.split("\n") for line in textwrap.wrap(part, letters) or [""])


def blank(title: str, size: tuple[float, float] = SIZE) -> "tuple[Figure, Axes]":
    """A figure with one pair of axes, in the colours of all our pictures.

    Args:
        title: above it, from the left edge; empty for none.
        size: width and height, inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot(facecolor="none")
    if title:
        figure.suptitle(wrapped(title), fontsize=10.5, color=TEXT, x=0.02, ha="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=TEXT, length=3, labelsize=9)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    return figure, axes


def legend(owner: "Figure | Axes", keys: "Mapping[str, Artist]", **options: Any) -> "Legend":
    """A legend whose words are names, also those that matplotlib would leave out: they begin with an underscore.

    Args:
        owner: figure or axes.
        keys: what is drawn beside each name.
        options: of matplotlib's legend.
    """
    found = owner.legend(list(keys.values()), [str(number) for number in range(len(keys))], **options)
    for text, name in zip(found.get_texts(), keys, strict=True):
        text.set_text(wrapped(name, LETTERS))
    return found


def encoded(figure: "Figure", kind: str, settings: Any = None, **options: Any) -> bytes:
    """The bytes of a file.

    Args:
        figure: to be written.
        kind: ``png`` or ``svg``.
        settings: of matplotlib, for this file alone.
        options: of ``savefig``.
    """
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # a letter that the font lacks is an empty box in a PNG; nothing that anybody could do about it here
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format=kind, **options)
    return file.getvalue()


def save(figure: "Figure", path: Path, dpi: int = 100) -> None:
    """Write a picture.

    Raises:
        UserError: the suffix is none of `FORMATS`.
    """
    require_format(path)
    path.write_bytes(encoded(figure, path.suffix[1:], dpi=dpi))


def require_format(path: Path) -> None:
    """Refuse a picture of another kind.

    Raises:
        UserError: the suffix is none of `FORMATS`.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: a picture is {' or '.join(FORMATS)}")


def columns(words: Sequence[str], size: float = SIZE[0], most: int = 2) -> int:
    """Columns of a legend below a picture of a width in inches, so that none is cut: 9 points a letter, and its key."""
    for count in range(most, 1, -1):
        if max(map(len, words)) * 0.068 + 0.55 <= size / count:
            return count
    return 1
