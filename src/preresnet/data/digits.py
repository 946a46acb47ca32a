"""Scikit-learn's handwritten digits as uint8 images, with a fixed split."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preresnet.recipe import DATA_SETS

Labelled = tuple[Tensor, Tensor]


def read(name: str = "digits", root: Path | None = None) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """Classes, training images and test images of the digits inside scikit-learn: 1,437 and 360 of 8x8.

    Source: Alpaydin and Kaynak, 1998 (UCI "Optical Recognition of Handwritten Digits", its test part). The split is
    stratified by class and always the same. No file is read: they come with scikit-learn.

    Returns:
        Names by label; (n, 8, 8, 1) uint8 with (n,) int64, twice.
    """
    del root
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch: Any = datasets.load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(-1)  # ink is 0 to 16
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=DATA_SETS[name].num_test, random_state=0, stratify=labels
    )
    classes = tuple(str(name) for name in bunch.target_names)
    return classes, (pixels[train], labels[train]), (pixels[test], labels[test])
