"""Image files as pixels: every picture format of Pillow, whole, upright, with 8 bits a channel."""

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from preresnet.spec import UserError

if TYPE_CHECKING:  # to look at files needs no torch, which takes seconds to import
    from torch import Tensor

# Formats of pictures. What Pillow knows beside them are documents (PDF, and EPS, which starts another program), films,
# measurements (HDF5, GRIB, FITS) and parts of desktops. HEIF is there where pillow-heif has been registered.
FORMATS = (
    *("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA", "PSD", "PCX"),
    *("SGI", "SUN", "QOI", "ICO"),
)
_ORIENTATION = 0x0112  # the one EXIF tag that is needed
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


SIDEWAYS = (5, 6, 7, 8)
DRAFTS = ("JPEG", "MPO")  # what can be decoded at a fraction of its size


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow decodes."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def extensions() -> frozenset[str]:
    """Ends of file names that stand for a picture that can be read here, in lower case: ``.jpg`` and others."""
    readable = {*_formats(), "MPO"}  # MPO: what some cameras call a JPEG file with a second picture in it
    return frozenset(end for end, name in Image.registered_extensions().items() if name in readable)


@dataclass(frozen=True)
class Stored:
    """How an image lies in its file.

    Args:
        format: Pillow's name of it, ``JPEG`` or another.
        mode: Pillow's name of how pixels are stored, ``RGB`` or another.
        width: as stored, before it is brought upright.
        height: the same.
        orientation: EXIF's, 1 to 8; 1 is upright.
        animated: whether there is more than one picture in the file.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int
    animated: bool

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once it is upright."""
        return (self.height, self.width) if self.orientation in SIDEWAYS else (self.width, self.height)


@dataclass(frozen=True)
class Packed:
    """An image file that is part of another file.

    Args:
        name: for messages.
        data: its bytes.
    """

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


File = Path | Packed
Least = int | Callable[[int, int], int] | None


def open_image(path: File, least: Least = None, mode: str = "RGB") -> Image.Image:
    """One image, whole and upright; of several in a file, the first.

    16 bits a channel become the upper 8 of them. Colours are kept and an alpha channel is left out, as torchvision's
    loader does. 32-bit integers and floating-point numbers are refused: their files do not say which value is white.

    Args:
        path: of the file, or what it holds.
        least: the shorter side that is needed, or what gives it for the upright image's width and height: JPEG files
            are decoded at a fraction of their size that still has it, which saves most of the time that large
            photographs take. None decodes them as they are.
        mode: ``RGB``, or ``L`` for grey.

    Raises:
        ValueError: the file is missing, no regular file, or not a whole image; it is named.
    """
    return inspect(path, least, mode)[0]


def inspect(path: File, least: Least = None, mode: str = "RGB") -> tuple[Image.Image, Stored]:
    """As `open_image`, and how the image lies in its file."""
    try:
        with Image.open(_checked(path), formats=_formats()) as opened:
            stored, size = opened.mode, opened.size
            animated = bool(getattr(opened, "is_animated", False))
            if callable(least):  # EXIF of a JPEG file is read before its pixels, that of a PNG file perhaps behind them
                turn = -1 if _orientation(opened) in SIDEWAYS else 1
                least = least(*size[::turn]) if opened.format in DRAFTS else None
            if least is not None:
                opened.draft(None, (least, least))
            opened.load()
            orientation = _orientation(opened)
            turned = _TURNED.get(orientation)
            image = _eight_bits(opened)
            image.info.pop("transparency", None)
            image = image.convert(mode)
            found = Stored(opened.format or "", stored, *size, orientation if turned else 1, animated)
            return image if turned is None else image.transpose(turned), found
    except Exception as error:  # a damaged file brings almost any kind out of Pillow, MemoryError among them
        raise UserError(f"{path}: cannot be read as an image ({_reason(error)})") from None


def _checked(file: File) -> Path | io.BytesIO:
    """What Pillow opens, where there is something in it."""
    if isinstance(file, Packed):
        if not file.data:
            raise UserError("it is empty")
        return io.BytesIO(file.data)
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for somebody who writes to it
        raise UserError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
    if status.st_size == 0:
        raise UserError("it is empty")
    return file


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8; 1, upright, where the file does not say it in a way that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # the picture is worth more than what is written about it
        return 1
    return value if isinstance(value, int) else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow cuts larger values off at 255 instead of scaling them."""
    sixteen = image.mode == "I" and image.format in ("PNG", "PPM")  # these have no more than 16 bits
    if image.mode.startswith("I;16") or sixteen:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise UserError(f"its pixels are {kind}, of which nothing says which is white; save it with 8 or 16 bits")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is of no known picture format"
    if isinstance(error, MemoryError):
        return "it is too large for the memory"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def read(path: Path, channels: int, size: int) -> "Tensor":
    """Read one image: upright, its central square, resized (bicubic).

    Args:
        path: of the file.
        channels: 1 for grey, 3 for colour.
        size: height and width of the result.

    Returns:
        (size, size, channels) uint8.

    Raises:
        ValueError: the file is missing, or not a whole image; it is named.
    """
    image = open_image(path, mode="L" if channels == 1 else "RGB")
    return pixels(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def pixels(image: Image.Image) -> "Tensor":
    """(h, w, channels) uint8."""
    import torch

    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
