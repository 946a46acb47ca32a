"""How does an image file become pixels?"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from preresnet.spec import UserError


def open_image(path: Path, least: int | None = None, mode: str = "RGB") -> Image.Image:
    """One image of any format that Pillow knows, whole and upright.

    Args:
        path: of the file.
        least: the shorter side that is needed: JPEG files are decoded at a fraction of their size that still has it,
            which saves most of the time that large photographs take. None decodes them as they are.
        mode: ``RGB``, or ``L`` for grey.

    Raises:
        ValueError: the file is missing, or not a whole image; it is named.
    """
    try:
        with Image.open(path) as opened:
            if least is not None:
                opened.draft(None, (least, least))
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a pixel: Pillow would clip, not scale
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            return image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read as an image ({reason})") from None


def read(path: Path, channels: int, size: int) -> Tensor:
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


def pixels(image: Image.Image) -> Tensor:
    """(h, w, channels) uint8."""
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
