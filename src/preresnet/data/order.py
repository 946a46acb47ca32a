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


def slice_of(rank: int, world_size: int, batch: int) -> slice:
    """The places in a batch that are one process's: neighbours, as many as every other's."""
    share = batch // world_size
    return slice(rank * share, (rank + 1) * share)


class ImageOrder:
    """Which images make up the batch of a step, as a pure function of it.

    Epochs follow each other without a gap: the permutations of all epochs form one stream, and step k takes its images
    k * batch to (k + 1) * batch, so that every image is seen equally often (the paper counts steps, not epochs).

    With ``repeats`` an epoch is longer: each image is in it as often as its number says, rounded up or down by chance.

    Args:
        num_images: in the training set.
        batch: images a step.
        seed: of the run.
        repeats: (num_images,) times that each image is in an epoch, at least 1; None: once.

    Attributes:
        epoch: images of an epoch.
    """

    def __init__(self, num_images: int, batch: int, seed: int, repeats: Tensor | None = None) -> None:
        self.num_images, self.batch, self.seed = num_images, batch, seed
        self._repeats = None if repeats is None else repeats.double()
        self.epoch = num_images if repeats is None else round(float(repeats.double().sum()))
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> Tensor:
        chance = generator(self.seed, "order", epoch)
        if self._repeats is None:
            return torch.randperm(self.num_images, generator=chance)
        whole = self._repeats.floor()
        images = torch.arange(self.num_images).repeat_interleave(whole.long())
        if more := self.epoch - len(images):
            # so many with the largest keys: drawn without replacement, in proportion to what is left of a repeat
            keys = torch.rand(self.num_images, generator=chance, dtype=torch.float64).log() / (self._repeats - whole)
            images = torch.cat([images, keys.topk(more).indices])
        return images[torch.randperm(len(images), generator=chance)]

    def indices(self, step: int) -> Tensor:
        """Which images step ``step`` (counted from 0) trains on: (batch,) int64."""
        start, parts, missing = step * self.batch, [], self.batch
        while missing:
            epoch, offset = divmod(start, self.epoch)
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return torch.cat(parts)
