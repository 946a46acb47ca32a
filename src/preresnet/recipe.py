"""How a network is trained, as plain data: data set, optimiser, schedule, precision, evaluation."""

import math
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

from preresnet.fields import STRICT, UserError, require

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, config=STRICT)
class DataSet:
    """What is known of a data set before a file is read, so that wrong input is found first.

    Args:
        reader: module of ``preresnet.data`` that reads it.
        classes: how many; None: as many as there are folders.
        channels: of an image.
        size: height and width of its images, which lie in memory; None: image files of any size, read while training.
        num_train: training images; None: counted in the folder.
        num_test: test images; None: counted in the folder.
    """

    reader: str
    classes: int | None = None
    channels: int = 3
    size: int | None = None
    num_train: int | None = None
    num_test: int | None = None


DATA_SETS: dict[str, DataSet] = {
    "digits": DataSet("digits", classes=10, channels=1, size=8, num_train=1_437, num_test=360),
    "cifar10": DataSet("cifar", classes=10, size=32, num_train=50_000, num_test=10_000),
    "cifar100": DataSet("cifar", classes=100, size=32, num_train=50_000, num_test=10_000),
    "imagenet": DataSet("files", classes=1_000, num_train=1_281_167, num_test=50_000),  # ILSVRC 2012
    "folder": DataSet("files"),
    "images": DataSet("files"),
}
PHOTOGRAPHS = "images"  # what our own recipes for photographs call their data

if TYPE_CHECKING:
    DataName = NameInMemory = NameOfFiles = str
else:
    DataName = Literal[tuple(DATA_SETS)]
    NameInMemory = Literal[tuple(name for name, found in DATA_SETS.items() if found.size is not None)]
    NameOfFiles = Literal["imagenet", "folder"]


@dataclass(frozen=True, config=STRICT)
class ImagesInMemory:
    """A data set that lies in memory, how it is normalised and how it is augmented."""

    name: NameInMemory
    """Data set. For image files (imagenet, folder) there are other options: see the help of a recipe that has them."""
    image_size: int = 32
    """Height and width of the network's input in training; smaller images are padded with zeros to it."""
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
        _check_images(self.image_size, self.holdout)
        require(self.pad >= 0, f"pad={self.pad}; it must be 0 or more")
        require(
            0 <= self.small_size <= self.image_size,
            f"small_size={self.small_size}; it must be 0 (off) or at most image_size={self.image_size}",
        )
        require(0 <= self.small_share <= 1, f"small_share={self.small_share}; it must be between 0 and 1")


@dataclass(frozen=True, config=STRICT)
class ImagesInFiles:
    """Photographs in files, and which crops of them are tested; how they are divided and augmented, each kind says.

    They are normalised with the numbers of ImageNet, a mean and a deviation a channel: the paper's mean image has one
    size, and the paper tests on larger crops than it trains on.
    """

    name: str
    """Data set."""
    image_size: int = 224
    """Height and width of a training crop."""
    test_crops: tuple[int, ...] = (320, 224)
    """Sizes of the centre crops that are tested. The first gives the error; the others are measured at the last
    step."""
    test_sides: tuple[int, ...] = (320, 256)
    """For each test crop, the shorter side that images are resized to before it is cut."""
    flip: bool = True
    """Mirror half of the training images (2015 paper, Section 3.4)."""
    holdout: int = 0
    """Training images kept out of training; with more than 0, evaluation uses them and never the test set."""

    def __post_init__(self) -> None:
        _check_images(self.image_size, self.holdout)
        require(
            bool(self.test_crops) and len(set(self.test_crops)) == len(self.test_crops) == len(self.test_sides),
            f"test_crops={self.test_crops}, test_sides={self.test_sides}; give one or more crops, and a side for each",
        )
        require(
            all(1 <= crop <= side for crop, side in zip(self.test_crops, self.test_sides, strict=True)),
            f"test_crops={self.test_crops} do not fit test_sides={self.test_sides}",
        )


@dataclass(frozen=True, config=STRICT)
class PaperPhotographs(ImagesInFiles):
    """Photographs in train/CLASS/ and val/CLASS/, cropped as for ImageNet in the paper."""

    name: NameOfFiles
    """imagenet (1,000 classes) or folder (any). For sets in memory there are other options: see the help of a recipe
    that has them."""
    augment: Literal["scale", "aspect"] = "scale"
    """How a training crop is taken. scale: the shorter side at random in ``shorter_side``, then a random crop and
    AlexNet's colour noise (paper, appendix); aspect: 8 to 100 % of the area at 3/4 to 4/3, then brightness, contrast,
    saturation and colour noise (fb.resnet.torch; Table 5, dagger)."""
    shorter_side: tuple[int, int] = (256, 480)
    """Lowest and highest shorter side of augment=scale (2015 paper, Section 3.4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.shorter_side
        require(
            self.augment != "scale" or self.image_size <= low <= high,
            f"shorter_side={self.shorter_side}; it must rise, and hold a crop of image_size={self.image_size}",
        )


@dataclass(frozen=True, config=STRICT)
class Photographs(ImagesInFiles):
    """Somebody's own photographs in CLASS/, or in train/CLASS/ and val/CLASS/. Not the paper's recipe."""

    name: Literal["images"]
    """images. Other data sets have other options: see the help of a recipe that has them."""
    image_size: int = 128
    """Height and width of a training crop."""
    test_crops: tuple[int, ...] = (128,)
    """Sizes of the centre crops that are tested. The first gives the error; the others are measured at the last
    step."""
    test_sides: tuple[int, ...] = (128,)
    """For each test crop, the shorter side that images are resized to before it is cut."""
    share: float = 0.2
    """Without val/, the share of each class's images that are kept for validation. Copies stay on one side."""
    split_seed: int = 0
    """Another seed, another division."""
    group_by: str = ""
    """A regular expression on paths such as CLASS/film7-001.jpg. Images for which it finds the same text (of its
    groups, where it has some) stay on one side: frames of a film, photographs of a patient."""
    area: tuple[float, float] = (0.35, 1.0)
    """Least and greatest share of an image's area that a training crop shows, at an aspect ratio of 3/4 to 4/3."""
    policy: Literal["trivial", "none"] = "trivial"
    """trivial: one change of colour or shape, of random strength, for each training crop (TrivialAugment)."""
    erasing: float = 0.1
    """Share of the training crops of which a rectangle is erased (Zhong et al., 2020)."""
    mixed: float = 0.0
    """Share of the batches whose images are mixed in pairs, with their labels: half by mixup, half by cutmix."""
    mixup: float = 0.2
    """How evenly mixup adds two images: alpha of its beta distribution (Zhang et al., 2018)."""
    cutmix: float = 1.0
    """How large a piece cutmix takes from another image: alpha of its beta distribution (Yun et al., 2019)."""
    smoothing: float = 0.1
    """Of the labels: the share that is spread over all classes (Szegedy et al., 2016)."""
    balance: Literal["auto", "sampling", "weights", "none"] = "auto"
    """What is done for rare classes. sampling: their images are seen more often; weights: they count more; each so that
    a class counts as the square root of its images. auto: sampling where the largest class has more than twice as many
    images as the smallest, none elsewhere; the run says which, and why."""

    broken: Literal["error", "skip"] = "error"
    """What is done with a file or record that is no whole image. error: the run ends; skip: another image takes its
    place, and the run names it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.area
        require(0 < low <= high <= 1, f"area={self.area}; it must rise, above 0 and at most 1")
        require(0 < self.share < 1, f"share={self.share}; it must be above 0 and below 1")
        require(self.split_seed >= 0, f"split_seed={self.split_seed}; it must be 0 or more")
        for name in ("erasing", "mixed"):
            require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)}; it must be between 0 and 1")
        require(0 <= self.smoothing < 1, f"smoothing={self.smoothing}; it must be at least 0 and below 1")
        for name in ("mixup", "cutmix"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)}; it must be above 0 (mixed=0 for neither)")
        try:
            re.compile(self.group_by)
        except re.error as error:
            raise UserError(f"group_by={self.group_by!r} is no regular expression ({error})") from None


def _check_images(image_size: int, holdout: int) -> None:
    require(image_size >= 1, f"image_size={image_size}; it must be 1 or more")
    require(holdout >= 0, f"holdout={holdout}; it must be 0 (none) or more")


@dataclass(frozen=True, config=STRICT)
class SGD:
    """Stochastic gradient descent: v = momentum * v + g + weight_decay * w; w = w - lr * v."""

    momentum: float = 0.9
    """2015 paper, Section 4.2."""
    nesterov: bool = False
    """The paper does not mention it; fb.resnet.torch uses it."""
    weight_decay: float = 1e-4
    """2015 paper, Section 4.2."""
    decay_all: bool = True
    """Decay biases and batch-norm parameters too, as fb.resnet.torch does; the paper does not say."""
    kind: Literal["sgd"] = "sgd"
    """sgd, or muon, which has one option more."""

    def __post_init__(self) -> None:
        _check_sgd(self.momentum, self.nesterov, self.weight_decay)


@dataclass(frozen=True, config=STRICT)
class Muon:
    """Orthogonalised momentum for convolutions, at constant norm, and `SGD` for all else.

    Source: Muon (Jordan et al., 2024). Not the paper's; for short runs.
    """

    momentum: float = 0.9
    """Of both."""
    nesterov: bool = False
    """Of what stays on SGD; the convolutions always look ahead."""
    weight_decay: float = 1e-4
    """Of what stays on SGD."""
    decay_all: bool = True
    """Decay biases and batch-norm parameters too."""
    orthogonal_scale: float = 0.15
    """A convolution's step is this times the learning rate."""
    kind: Literal["muon"] = "muon"
    """muon, or sgd."""

    def __post_init__(self) -> None:
        _check_sgd(self.momentum, self.nesterov, self.weight_decay)
        require(
            self.orthogonal_scale > 0, f"orthogonal_scale={self.orthogonal_scale}; it must be above 0 (or use kind=sgd)"
        )


def _check_sgd(momentum: float, nesterov: bool, weight_decay: float) -> None:
    require(0 <= momentum < 1, f"momentum={momentum}; it must be at least 0 and below 1")
    require(weight_decay >= 0, f"weight_decay={weight_decay}; it must be 0 or more")
    require(not nesterov or momentum > 0, "nesterov needs a momentum above 0")


@dataclass(frozen=True, config=STRICT)
class Milestones:
    """A learning rate that is divided by 10 at each milestone, after a warm-up at a lower one."""

    steps: int = 64_000
    """Weight updates in all (2015 paper, Section 4.2). Changed alone, milestones and warm-up keep their shares."""
    lr: float = 0.1
    """Highest learning rate (appendix)."""
    milestones: tuple[int, ...] = (32_000, 48_000)
    """Steps at which the rate is divided by 10 (appendix), counted from the start of training."""
    warmup_steps: int = 400
    """Steps of warm-up, which comes first (appendix)."""
    warmup_lr: float = 0.01
    """Rate during the warm-up (appendix)."""
    shape: Literal["milestones"] = "milestones"
    """milestones, or one_cycle or cosine, which have no milestones."""

    def __post_init__(self) -> None:
        _check_schedule(self.steps, self.lr, self.warmup_steps)
        require(self.warmup_lr > 0, f"warmup_lr={self.warmup_lr}; it must be above 0")
        rising = all(before < after for before, after in pairwise((0, *self.milestones)))
        require(rising, f"milestones={self.milestones}; they must rise, from 1 or more")

    def at(self, step: int) -> float:
        """The learning rate of update number ``step``, counted from 0. Paper: appendix."""
        if step < self.warmup_steps:
            return self.warmup_lr
        return self.lr / 10 ** sum(step >= milestone for milestone in self.milestones)


@dataclass(frozen=True, config=STRICT)
class OneCycle:
    """A learning rate that rises linearly during the warm-up, then falls linearly to 0 at the last step.

    Not the paper's; for short runs.
    """

    steps: int = 64_000
    """Weight updates in all. Changed alone, the warm-up keeps its share."""
    lr: float = 0.1
    """Highest learning rate."""
    warmup_steps: int = 400
    """Steps that the rate rises for."""
    shape: Literal["one_cycle"] = "one_cycle"
    """one_cycle, cosine or milestones."""

    def __post_init__(self) -> None:
        _check_schedule(self.steps, self.lr, self.warmup_steps)

    def at(self, step: int) -> float:
        """The learning rate of update number ``step``, counted from 0."""
        rise = (step + 1) / max(1, self.warmup_steps)
        fall = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return self.lr * min(1.0, rise, fall)


@dataclass(frozen=True, config=STRICT)
class Cosine:
    """A learning rate that rises linearly during the warm-up, then falls to 0 at the last step like a half cosine.

    Source: Loshchilov and Hutter, 2017, without restarts. Not the paper's.
    """

    steps: int = 64_000
    """Weight updates in all. Changed alone, the warm-up keeps its share."""
    lr: float = 0.1
    """Highest learning rate."""
    warmup_steps: int = 400
    """Steps that the rate rises for."""
    shape: Literal["cosine"] = "cosine"
    """cosine, one_cycle or milestones."""

    def __post_init__(self) -> None:
        _check_schedule(self.steps, self.lr, self.warmup_steps)

    def at(self, step: int) -> float:
        """The learning rate of update number ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (1 + math.cos(math.pi * min(1.0, done))) / 2


def _check_schedule(steps: int, lr: float, warmup_steps: int) -> None:
    require(steps >= 1, f"steps={steps}; it must be 1 or more")
    require(lr > 0, f"lr={lr}; it must be above 0")
    require(warmup_steps >= 0, f"warmup_steps={warmup_steps}; it must be 0 or more")


def _upgraded(content: Any) -> Any:
    """Data, optimiser or schedule as an earlier version stored it, which wrote the fields of all kinds, as stored now.

    A field of another kind is left out where it says nothing; anything else stays, to be refused by name.
    """
    if not isinstance(content, dict):
        return content
    empty: dict[str, Any] = {}
    if content.get("name") in DATA_SETS and DATA_SETS[content["name"]].size is None:
        empty = {"normalise": "channel_mean_std", "pad": 0, "small_size": 0, "small_share": 0.0}
    elif "name" in content:
        empty = {"augment": "pad", "shorter_side": [256, 480], "test_crops": [], "test_sides": []}
    elif "momentum" in content and "kind" not in content:
        scale = content.get("orthogonal_scale", 0.0)
        empty, content = {"orthogonal_scale": 0.0}, {**content, "kind": "muon" if scale else "sgd"}
    elif content.get("shape") == "one_cycle" and {"milestones", "warmup_lr"} <= content.keys():
        empty = {name: content[name] for name in ("milestones", "warmup_lr")}
    kept = {name: value for name, value in content.items() if name not in empty or value != empty[name]}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}


_EARLIER = pydantic.BeforeValidator(_upgraded)
DataSpec = Annotated[ImagesInMemory | PaperPhotographs | Photographs, pydantic.Field(discriminator="name"), _EARLIER]
Optim = Annotated[SGD | Muon, pydantic.Field(discriminator="kind"), _EARLIER]
Schedule = Annotated[Milestones | OneCycle | Cosine, pydantic.Field(discriminator="shape"), _EARLIER]


def images_of(name: str) -> DataSpec:
    """A data set as the paper prepares one of its kind; somebody's own photographs as our own recipes do."""
    if name == PHOTOGRAPHS:
        return Photographs(name="images")
    return PaperPhotographs(name=name) if DATA_SETS[name].size is None else ImagesInMemory(name=name)


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """All that decides a result, beside the seed."""

    network: str
    """A network by name, or the path of a NetSpec as JSON (``preresnet describe NAME --json`` holds one)."""
    data: DataSpec
    optim: Optim = SGD()
    schedule: Schedule = Milestones()
    global_batch: int = 128
    """Images a weight update sees, over all devices (appendix)."""
    norm_batch: int | None = None
    """Images a batch norm sees at once; less than a device's share means several passes an update, after which the
    running statistics move once, by the mean of the parts. None: all of a device's share. The paper used 128 over two
    GPUs and does not say whether norms saw 64 or 128."""
    precision: Precision = "auto"
    """auto: bfloat16 autocast where the hardware computes in it, float32 otherwise. Weights, batch-norm statistics and
    the loss are float32 in either."""
    log_every: int = 50
    """Updates between two lines of the training loss."""
    eval_every: int = 2_000
    """Updates between two evaluations; the last step is always evaluated."""
    save_every: int = 1_000
    """Updates between two checkpoints; the last step is always saved."""
    average: float = 0.0
    """Above 0: what is evaluated and kept is an exponential average of the weights, with norm statistics of its own; it
    reaches back this share of the steps (its decay is 1 - 1 / (average * steps)). Not the paper's."""
    freeze: str = ""
    """Parts of the network that stay as they are, their norms too, as ``stem,stages.0``. For fine-tuning."""
    stage_rate: float = 1.0
    """Learning rate of a stage, as a share of the rate of what comes behind it (1: the same everywhere). The stem comes
    before the first stage, the head has the full rate. For fine-tuning."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "log_every", "eval_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}; it must be 1 or more")
        require(0 <= self.average < 1, f"average={self.average}; it must be at least 0 and below 1")
        require(0 < self.stage_rate <= 1, f"stage_rate={self.stage_rate}; it must be above 0 and at most 1")
        if self.norm_batch is not None:
            require(
                1 <= self.norm_batch <= self.global_batch and self.global_batch % self.norm_batch == 0,
                f"norm_batch={self.norm_batch}; it must divide global_batch={self.global_batch}",
            )

    @property
    def small_steps(self) -> int:
        """How many first steps train on small images."""
        data = self.data
        return (
            int(data.small_share * self.schedule.steps) if isinstance(data, ImagesInMemory) and data.small_size else 0
        )
