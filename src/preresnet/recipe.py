"""How is a network trained, as plain data: data set, optimiser, schedule, precision, evaluation?"""

from itertools import pairwise
from typing import Literal

from pydantic.dataclasses import dataclass

from preresnet.spec import STRICT, require

DataName = Literal["digits", "cifar10", "cifar100"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, config=STRICT)
class DataSpec:
    """Images, how they are normalised and how they are augmented."""

    name: DataName
    """Data set."""
    image_size: int = 32
    """Height and width of the network's input; smaller images are padded with zeros to it."""
    normalise: Literal["per_pixel_mean", "channel_mean_std"] = "per_pixel_mean"
    """per_pixel_mean subtracts the training set's mean image (2015 paper, Section 4.2); channel_mean_std subtracts a
    mean and divides by a standard deviation a channel (fb.resnet.torch). The first batch norm removes the difference
    in scale."""
    pad: int = 4
    """Zeros added on each side, after normalisation, before the random crop (2015 paper, Section 4.2); 0: no crop."""
    flip: bool = True
    """Mirror half of the training images (2015 paper, Section 4.2)."""
    small_size: int = 0
    """Above 0: the first ``small_share`` of the steps trains on images shrunk to this size. Not the paper's; for short
    runs."""
    small_share: float = 0.0
    """Share of the steps that trains on small images."""
    holdout: int = 0
    """Training images kept out of training; with more than 0, evaluation uses them and never the test set."""

    def __post_init__(self) -> None:
        require(self.image_size >= 1, f"image_size={self.image_size}; it must be 1 or more")
        require(self.pad >= 0, f"pad={self.pad}; it must be 0 or more")
        require(
            0 <= self.small_size <= self.image_size,
            f"small_size={self.small_size}; it must be 0 (off) or at most image_size={self.image_size}",
        )
        require(0 <= self.small_share <= 1, f"small_share={self.small_share}; it must be between 0 and 1")
        require(self.holdout >= 0, f"holdout={self.holdout}; it must be 0 (none) or more")


@dataclass(frozen=True, config=STRICT)
class Optim:
    """Stochastic gradient descent: v = momentum * v + g + weight_decay * w; w = w - lr * v."""

    momentum: float = 0.9
    """2015 paper, Section 4.2."""
    nesterov: bool = False
    """The paper does not mention it; fb.resnet.torch uses it."""
    weight_decay: float = 1e-4
    """2015 paper, Section 4.2."""
    decay_all: bool = True
    """Decay biases and batch-norm parameters too, as fb.resnet.torch does; the paper does not say."""
    orthogonal_scale: float = 0.0
    """Above 0: convolutions take orthogonalised momentum steps of this times the learning rate, at constant norm
    (Muon, Jordan et al. 2024), and all else stays on SGD. Not the paper's; for short runs."""

    def __post_init__(self) -> None:
        require(0 <= self.momentum < 1, f"momentum={self.momentum}; it must be at least 0 and below 1")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay}; it must be 0 or more")
        require(self.orthogonal_scale >= 0, f"orthogonal_scale={self.orthogonal_scale}; it must be 0 (off) or more")
        require(not self.nesterov or self.momentum > 0, "nesterov needs a momentum above 0")


@dataclass(frozen=True, config=STRICT)
class Schedule:
    """Learning rate as a pure function of the step."""

    steps: int = 64_000
    """Weight updates in all (2015 paper, Section 4.2)."""
    lr: float = 0.1
    """Highest learning rate (appendix)."""
    shape: Literal["milestones", "one_cycle"] = "milestones"
    """milestones divides the rate by 10 at each of them; one_cycle rises linearly during the warm-up, then falls
    linearly to 0 at the last step."""
    milestones: tuple[int, ...] = (32_000, 48_000)
    """Steps at which the rate is divided by 10 (appendix); milestones only."""
    warmup_steps: int = 400
    """Steps of warm-up (appendix)."""
    warmup_lr: float = 0.01
    """Rate during the warm-up (appendix); milestones only."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps={self.steps}; it must be 1 or more")
        require(self.lr > 0, f"lr={self.lr}; it must be above 0")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps}; it must be 0 or more")
        rising = all(before < after for before, after in pairwise(self.milestones))
        require(rising, f"milestones={self.milestones}; they must rise")

    def at(self, step: int) -> float:
        """The learning rate of update number ``step``, counted from 0.

        Paper: appendix. The warm-up of 400 updates at 0.01 comes first; milestones count from the start of training.
        """
        if self.shape == "one_cycle":
            rise = (step + 1) / max(1, self.warmup_steps)
            fall = (self.steps - step) / max(1, self.steps - self.warmup_steps)
            return self.lr * min(1.0, rise, fall)
        if step < self.warmup_steps:
            return self.warmup_lr
        return self.lr / 10 ** sum(step >= milestone for milestone in self.milestones)


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """All that decides a result, beside the seed."""

    network: str
    """A network by name, or the path of a NetSpec as JSON (``preresnet describe NAME --json`` holds one)."""
    data: DataSpec
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    global_batch: int = 128
    """Images a weight update sees, over all devices (appendix)."""
    norm_batch: int | None = None
    """Images a batch norm sees at once; less than a device's share means several passes an update. None: all of a
    device's share. The paper used 128 over two GPUs and does not say whether norms saw 64 or 128."""
    precision: Precision = "auto"
    """auto: bfloat16 autocast where the hardware computes in it, float32 otherwise. Weights, batch-norm statistics and
    the loss are float32 in either."""
    log_every: int = 50
    """Updates between two lines of the training loss."""
    eval_every: int = 2_000
    """Updates between two evaluations; the last step is always evaluated."""
    save_every: int = 1_000
    """Updates between two checkpoints; the last step is always saved."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "log_every", "eval_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}; it must be 1 or more")
        if self.norm_batch is not None:
            require(
                1 <= self.norm_batch <= self.global_batch and self.global_batch % self.norm_batch == 0,
                f"norm_batch={self.norm_batch}; it must divide global_batch={self.global_batch}",
            )
