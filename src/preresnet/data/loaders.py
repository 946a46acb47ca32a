"""Which images make up the batch of a given step, and how is a whole set passed through once?"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preresnet.data.augment import Normalisation, apply, draw
from preresnet.data.sets import Images
from preresnet.recipe import DataSpec


def generator(seed: int, stream: str, index: int) -> torch.Generator:
    """An independent CPU generator for one purpose at one point of a run.

    Because it depends on nothing but its arguments, a run can be resumed, or one batch replayed, from the step alone.
    """
    words = np.random.SeedSequence([seed, *stream.encode(), index]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


class TrainingBatches:
    """Augmented batches as a pure function of the step.

    Epochs follow each other without a gap: the permutations of all epochs form one stream, and step k takes its images
    k * batch to (k + 1) * batch, so that every image is seen equally often (the paper counts steps, not epochs).

    Args:
        images: training images, on the device that trains.
        spec: augmentation.
        normalisation: of the training set, on the same device.
        batch: images a step.
        seed: of the run.
        small_steps: how many first steps get images of ``spec.small_size``.
    """

    def __init__(
        self,
        images: Images,
        spec: DataSpec,
        normalisation: Normalisation,
        batch: int,
        seed: int,
        small_steps: int = 0,
    ) -> None:
        self.images = images
        self.spec = spec
        self.normalisation = normalisation
        self.batch = batch
        self.seed = seed
        self.small_steps = small_steps
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.images), generator=generator(self.seed, "order", epoch))

    def indices(self, step: int) -> Tensor:
        """Which images step ``step`` (counted from 0) trains on: (batch,) int64."""
        start, parts, missing = step * self.batch, [], self.batch
        while missing:
            epoch, offset = divmod(start, len(self.images))
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return torch.cat(parts)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step.

        Returns:
            (batch, c, h, w) float32 in channels_last, smaller in the first ``small_steps``; (batch,) int64 labels.
        """
        taken = self.images.take(self.indices(step).to(self.images.pixels.device, non_blocking=True))
        x = self.normalisation(taken.pixels)
        if self.spec.pad or self.spec.flip:
            choices = draw(self.batch, self.spec, generator(self.seed, "augment", step))
            x = apply(x, choices, self.spec.pad)
        x = x.permute(0, 3, 1, 2)
        if step < self.small_steps:
            x = F.interpolate(x, size=(self.spec.small_size,) * 2, mode="bilinear", antialias=True)
        return x, taken.labels


def evaluation_batches(
    images: Images, normalisation: Normalisation, batch: int = 500
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, without augmentation; the last batch may be smaller."""
    for start in range(0, len(images), batch):
        pixels = images.pixels[start : start + batch]
        yield normalisation(pixels).permute(0, 3, 1, 2), images.labels[start : start + batch]
