"""How does an image file become the input of a trained network?"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def read(path: Path, channels: int, size: int) -> Tensor:
    """Read one image of any format that Pillow knows: upright, its central square, resized (bicubic).

    Args:
        path: of the file.
        channels: 1 for grey, 3 for colour.
        size: height and width of the result.

    Returns:
        (size, size, channels) uint8.

    Raises:
        ValueError: the file is missing, or not a whole image; it is named.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a pixel: Pillow would clip, not scale
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB")
            fitted = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as an image ({reason})") from None
    return torch.from_numpy(np.array(fitted)).view(size, size, channels)
