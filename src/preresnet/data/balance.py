"""What is done for rare classes in training: their images are seen more often, or count more."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preresnet.recipe import Photographs

UNEVEN = 2  # times the images of the smallest class, above which `auto` does something
MOST = 8.0  # times that an image is seen in an epoch


@dataclass(frozen=True)
class Balance:
    """How often images are seen and how much they count.

    Args:
        repeats: (n,) float32, times that each training image is seen in an epoch, at least 1; None: once each.
        weights: (num_classes,) float32, how much an image of a class counts, 1 on average over the training images;
            None: alike.
        words: what was chosen, and why.
    """

    repeats: Tensor | None
    weights: Tensor | None
    words: str


def choose(spec: Photographs, labels: Tensor, classes: Sequence[str]) -> Balance:
    """What a recipe does for the rare classes of a training set.

    Sampling repeats an image sqrt(n_most / n_class) times (the repeat factor of Gupta et al., 2019, with the largest
    class as the one that is not rare), `MOST` times at most. Weights are as 1 / sqrt(n_class).

    Args:
        spec: says what to do.
        labels: (n,) int64, of the training images.
        classes: names by label.
    """
    counts = torch.bincount(labels, minlength=len(classes))
    there = counts[counts > 0]
    least, most = int(there.min()), int(there.max())
    rarest = classes[int(torch.where(counts > 0, counts, most + 1).argmin())]
    uneven = most > UNEVEN * least
    sizes = f"classes have {least:,} ({rarest}) to {most:,} images" if most > least else f"classes have {most:,} images"
    kind = ("sampling" if uneven else "none") if spec.balance == "auto" else spec.balance
    why = f"{sizes}: balance {kind}" + (", chosen by auto" if spec.balance == "auto" else "")
    if kind == "none":
        return Balance(None, None, why)
    factors = (most / counts.clamp(min=1)).float().sqrt()
    if kind == "sampling":
        factors = factors.clamp(max=MOST)
        repeats = factors[labels]
        return Balance(repeats, None, f"{why}; images of {rarest} are seen {repeats.max():.1f} times an epoch")
    weights = factors / factors[labels].mean()
    return Balance(None, weights, f"{why}; images of {rarest} count {weights[counts > 0].max():.1f} times")
