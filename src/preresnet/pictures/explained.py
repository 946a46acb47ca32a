"""Where in an image an answer comes from, drawn over the image."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from preresnet.pictures.canvas import FAINT, PAPER, SIZE, TEXT, plain, wrapped

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

NAME_LETTERS = 40  # of a class's name
COLOURS, PALE, SHARE = "RdBu_r", 128, 0.55  # for (red) and against (blue); of the grey picture beneath; of the colours
THUMBNAIL = 96  # pixels


def draw_explained(
    title: str, pixels: "np.ndarray", contributions: "np.ndarray", name: str, top: Sequence[Mapping[str, Any]]
) -> "Figure":
    """An image as the network saw it, and beside it what each place contributes to a class.

    Args:
        title: the image's name.
        pixels: (h, w, 1 or 3) uint8.
        contributions: (h', w'), to the class's logit.
        name: of the class.
        top: the likeliest classes, ``{"class", "probability"}`` each.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * SIZE[0], SIZE[1] + 1.1), layout="constrained", facecolor=PAPER)
    figure.suptitle(wrapped(title, 90), fontsize=10.5, color=TEXT, x=0.02, ha="left")
    seen, over = figure.subplots(1, 2)
    height, width, channels = pixels.shape
    grey = pixels.reshape(height, width, channels).mean(2)
    seen.imshow(pixels if channels == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
    over.imshow(grey, cmap="gray", vmin=-PALE, vmax=255)  # pale, so that the colours stand out
    limit = max(float(abs(contributions).max()), 1e-6)
    colours = over.imshow(
        contributions,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        cmap=COLOURS,
        vmin=-limit,
        vmax=limit,
        alpha=SHARE,
        interpolation="bilinear",
    )
    answers = [f"{_short(one['class'])}: {100 * one['probability']:.1f} %" for one in top]
    seen.set_xlabel("\n".join(map(plain, ["what the network saw; its answers:", *answers])), fontsize=9, color=TEXT)
    over.set_xlabel(plain(f"for (red) and against (blue) {_short(name)}"), fontsize=9, color=TEXT)
    for axes in (seen, over):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(colours, ax=over, shrink=0.8, label="share of the logit, before the mean over places")
    bar.outline.set_edgecolor(FAINT)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, colors=TEXT)
    bar.ax.yaxis.label.set(fontsize=8, color=TEXT)
    return figure


def thumbnails(pixels: "np.ndarray", contributions: "np.ndarray") -> tuple[bytes, bytes]:
    """A small picture of an image, and one of where its answer comes from, as JPEG.

    Args:
        pixels: (h, w, 1 or 3) uint8.
        contributions: (h', w'), to the answer's logit.
    """
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    size = min(THUMBNAIL, pixels.shape[0])
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).convert("RGB").resize((size, size))
    limit = max(float(abs(contributions).max()), 1e-6)
    places = Image.fromarray((contributions / limit).astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    colours = colormaps[COLOURS](np.asarray(places) / 2 + 0.5)[..., :3]
    grey = (np.asarray(image.convert("L"), dtype=np.float32)[..., None] + PALE) / (255 + PALE)
    over = Image.fromarray((255 * (SHARE * colours + (1 - SHARE) * grey)).round().astype(np.uint8))
    return _jpeg(image), _jpeg(over)


def _jpeg(image: "Image.Image") -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 1] + "…"
