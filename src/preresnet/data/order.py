"""The order in which training images are seen, and the random generators that a run's chance comes from."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, stream: str, index: int) -> torch.Generator:
    """An independent CPU generator for one purpose at one point of a run.

    Because it depends on nothing but its arguments, a run can be resumed, or one batch replayed, from the step alone.
    """
    words = np.random.SeedSequence([seed, *stream.encode(), index]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


class ImageOrder:
    """Which images make up the batch of a step, as a pure function of it.

    Epochs follow each other without a gap: the permutations of all epochs form one stream, and step k takes its images
    k * batch to (k + 1) * batch, so that every image is seen equally often (the paper counts steps, not epochs).

    Args:
        num_images: in the training set.
        batch: images a step.
        seed: of the run.
    """

    def __init__(self, num_images: int, batch: int, seed: int) -> None:
        self.num_images, self.batch, self.seed = num_images, batch, seed
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> Tensor:
        return torch.randperm(self.num_images, generator=generator(self.seed, "order", epoch))

    def indices(self, step: int) -> Tensor:
        """Which images step ``step`` (counted from 0) trains on: (batch,) int64."""
        start, parts, missing = step * self.batch, [], self.batch
        while missing:
            epoch, offset = divmod(start, self.num_images)
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return torch.cat(parts)
