"""Folders of small pictures, whose classes are colours, for the tests of recipes for photographs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from preresnet.train import checkpoint

CLASSES = ("ant", "bee", "cow")
COLOURS = {"ant": (220, 60, 50), "bee": (60, 200, 70), "cow": (70, 80, 220)}
SMALL = ["train", "images/resnet8-preact", "--workers", "0", "--device", "cpu"]


def picture(name: str, number: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Soft patches around the colour of a class, different ones for every number."""
    chance = np.random.default_rng([number, *name.encode()])
    small = np.array(COLOURS[name]) + chance.integers(-50, 51, (5, 7, 3))
    image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
    return image.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def fill(root: Path, counts: dict[str, int], first: int = 0) -> Path:
    """So many pictures of each class, in folders."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            picture(name, number).save(root / name / f"{number}.jpg", quality=92)
    return root


def result(out: Path) -> dict[str, Any]:
    """Of a run."""
    return json.loads((out / "result.json").read_text())


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Inside, a run dies right after its checkpoint of a step, as it has to."""

    class StopError(Exception):
        pass

    def save_and_stop(*arguments: Any) -> None:
        save(*arguments)
        if arguments[3]["step"] == step:
            raise StopError

    save = checkpoint.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(StopError):
            yield
