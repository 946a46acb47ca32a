"""Pictures that look alike: hashes that find candidates among many, and small pictures that confirm them."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

VERSION = "1"
SIDE = 32  # of the picture that hashes are made of
THUMB = 16  # height and width of the picture that candidates are compared by
LOW = 8  # frequencies of each direction that the hash keeps
MOST_BITS = 10  # of 64, in which the hashes of two copies may differ; among 2,300 photographs, no others had below 26
SAME = 0.955  # how like two copies are at least; of 2,300 photographs, the copies were 0.978, the others at most 0.934
FLAT = 2.0  # standard deviation of brightness, of 255, below which a picture shows nothing to compare


def describe(image: Image.Image) -> tuple[bytes | None, bytes | None]:
    """Hash and small picture of an upright RGB image; None for both where it is all of one brightness."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    grey = np.asarray(small.convert("L"), dtype=np.float32)
    if grey.std() < FLAT:
        return None, None
    thumb = np.asarray(small.resize((THUMB, THUMB), Image.Resampling.BOX))
    return _hash(grey), thumb.tobytes()


def _hash(grey: np.ndarray) -> bytes:
    """Signs of low frequencies around their median (Zauner, 2010, "pHash"): 8 bytes."""
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    return np.packbits(low > np.median(low)).tobytes()


_PLACES = (np.arange(SIDE) + 0.5) * np.pi / SIDE
_COSINES = np.cos(np.arange(1, LOW + 1)[:, None] * _PLACES).astype(np.float32)  # without the mean of rows and columns


def bands(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of the bits of (n,) uint64 hashes: copies agree in at least one of them, other pictures hardly ever.

    Each is (n,), as wide as n asks for: of a million hashes, few share one. Bits are put together in several ways,
    because six may differ between a picture and a copy of half its size.
    """
    width = int(np.clip(np.ceil(np.log2(max(1, len(hashes)))) - 4, 8, 16))
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
    for order in _ORDERS:
        mixed = np.packbits(bits[:, order]).view(np.uint64)
        for band in range(64 // width):
            yield ((mixed >> np.uint64(width * band)) & np.uint64((1 << width) - 1)).astype(np.uint16)


def bits_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In how many bits hashes differ: (n,) uint64 twice -> (n,)."""
    return _COUNTS[(a ^ b).view(np.uint16)].reshape(-1, 4).sum(1)


def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How like small pictures are, whatever their brightness and contrast: (n, bytes) uint8 twice -> (n,), at most 1.

    It is the correlation of what is left of each channel without its mean.
    """
    one, other = (_centred(x) for x in (a, b))
    product = (one * other).sum((1, 2))
    return product / np.sqrt((one * one).sum((1, 2)) * (other * other).sum((1, 2)) + 1e-9)


def _centred(x: np.ndarray) -> np.ndarray:
    channels = x.reshape(len(x), THUMB * THUMB, 3).astype(np.float32)
    return channels - channels.mean(1, keepdims=True)


_ORDERS = [np.random.default_rng(number).permutation(64) for number in range(4)]
_COUNTS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1)
