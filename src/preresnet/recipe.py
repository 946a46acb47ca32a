"""How is a network trained, as plain data: data set, optimiser, schedule, precision, evaluation?"""

from itertools import pairwise
from typing import Literal

from pydantic.dataclasses import dataclass

from preresnet.spec import STRICT, require

DataName = Literal["digits", "cifar10", "cifar100", "imagenet", "folder"]
STREAMED = ("imagenet", "folder")  # read from image files while training; the others lie in memory
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, config=STRICT)
class DataSpec:
    """Images, how they are normalised and how they are augmented."""

    name: DataName
    """Data set. imagenet and folder are image files in train/CLASS/ and val/CLASS/; imagenet has 1,000 classes."""
    image_size: int = 32
    """Height and width of the network's input in training; smaller images are padded with zeros to it."""
    normalise: Literal["per_pixel_mean", "channel_mean_std"] = "per_pixel_mean"
    """per_pixel_mean subtracts the training set's mean image (2015 paper, Section 4.2); channel_mean_std subtracts a
    mean and divides by a standard deviation a channel (fb.resnet.torch). The first batch norm removes the difference
    in scale. Image files take the second, with the numbers of ImageNet: a mean image has one size, and the paper tests
    on larger crops than it trains on."""
    augment: Literal["pad", "scale", "aspect"] = "pad"
    """How a crop is taken: pad, around the image (sets in memory). For image files: scale, the shorter side at random
    in ``shorter_side``, then a random crop and AlexNet's colour noise (paper, appendix); aspect, 8 to 100 % of the
    area at 3/4 to 4/3, then brightness, contrast, saturation and colour noise (fb.resnet.torch; Table 5, dagger)."""
    shorter_side: tuple[int, int] = (256, 480)
    """Lowest and highest shorter side; ``augment`` scale only (2015 paper, Section 3.4)."""
    test_crops: tuple[int, ...] = ()
    """Sizes of the centre crops that image files are tested on. The first gives the error; the others are measured at
    the last step."""
    test_sides: tuple[int, ...] = ()
    """For each test crop, the shorter side that images are resized to before it is cut."""
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
        (self._check_files if self.name in STREAMED else self._check_resident)()

    def _check_resident(self) -> None:
        words = f"is for image files ({' and '.join(STREAMED)}), not for {self.name}"
        require(self.augment == "pad", f"augment={self.augment} {words}; use pad")
        require(not self.test_crops and not self.test_sides, f"test_crops={self.test_crops} {words}; leave them out")

    def _check_files(self) -> None:
        require(self.augment != "pad", f"augment=pad is for sets in memory, not for {self.name}; use scale or aspect")
        require(self.pad == 0, f"pad={self.pad}; image files are cropped, not padded: it must be 0")
        require(self.normalise == "channel_mean_std", f"normalise={self.normalise}; image files take channel_mean_std")
        require(self.small_size == 0, f"small_size={self.small_size}; image files take 0")
        low, high = self.shorter_side
        require(
            self.augment != "scale" or self.image_size <= low <= high,
            f"shorter_side={self.shorter_side}; it must rise, and hold a crop of image_size={self.image_size}",
        )
        require(
            bool(self.test_crops) and len(set(self.test_crops)) == len(self.test_crops) == len(self.test_sides),
            f"test_crops={self.test_crops}, test_sides={self.test_sides}; give one or more crops, and a side for each",
        )
        require(
            all(1 <= crop <= side for crop, side in zip(self.test_crops, self.test_sides, strict=True)),
            f"test_crops={self.test_crops} do not fit test_sides={self.test_sides}",
        )


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
