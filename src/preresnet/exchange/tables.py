"""The layers of other libraries' networks beside ours: one table a format, read in both directions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from preresnet.paper import peers
from preresnet.spec import Dialect, StemSpec


@dataclass(frozen=True)
class Table:
    """How a library names the layers of a network, and what it builds that shapes do not tell.

    Args:
        title: of the networks, for messages.
        layers: a layer of ours and theirs; ``{s}``, ``{u}`` and ``{i}`` count stages, units and layers of a unit, and
            ``{s+1}`` counts them otherwise. The first that fits a name is meant.
        order: of `preresnet.paper.networks.ORDERS`.
        dialect: what shapes do not tell of it.
        stems: by the kernel size of the stem, what shapes do not tell of it.
        unseen: what could be otherwise in a bottleneck network without a trace in its tensors.
        spatial_depths: layers of bottleneck networks that certainly stride in their 3x3 convolutions.
        linear_is_conv: the classifier is a 1x1 convolution.
        ordinal: their layers have numbers instead of places: each kind is counted in the order of definition.
    """

    title: str
    layers: tuple[tuple[str, str], ...]
    order: str
    dialect: Dialect
    stems: dict[int, StemSpec] = field(default_factory=dict)
    unseen: str = ""
    spatial_depths: tuple[int, ...] = ()
    linear_is_conv: bool = False
    ordinal: bool = False

    @cached_property
    def _readers(self) -> list[tuple[re.Pattern[str], str, re.Pattern[str], str]]:
        return [(_pattern(ours), ours, _pattern(theirs), theirs) for ours, theirs in self.layers]

    def theirs(self, layer: str) -> str | None:
        """Their name of a layer of ours; None where they have no such layer."""
        return next((_filled(b, found) for a, _, _, b in self._readers if (found := _places(a, layer))), None)

    def ours(self, layer: str) -> str | None:
        """Our name of a layer of theirs; None where we have no such layer."""
        return next((_filled(a, found) for _, a, b, _ in self._readers if (found := _places(b, layer))), None)


_PLACE = re.compile(r"\\\{([a-z])(?:\\\+(\d))?\\\}")


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(_PLACE.sub(lambda m: f"(?P<{m[1]}{m[2] or 0}>\\d+)", re.escape(template)))


def _places(pattern: re.Pattern[str], name: str) -> dict[str, int] | None:
    """Where a name is that of a layer, which: places counted from 0, layers of a unit from 1."""
    if (match := pattern.fullmatch(name)) is None:
        return None
    found = {place[0]: int(value) - int(place[1:]) for place, value in match.groupdict().items()}
    fits = all(value >= (place == "i") for place, value in found.items())
    return found | {"": 0} if fits else None


def _filled(template: str, places: Mapping[str, int]) -> str:
    return re.sub(r"\{([a-z])(?:\+(\d))?\}", lambda m: str(places[m[1]] + int(m[2] or 0)), template)


UNIT, LINEAR = "stages.{s}.units.{u}", "head.linear"


def _units(**theirs: str) -> tuple[tuple[str, str], ...]:
    """The layers of a unit, in ours and in theirs."""
    ours = {
        "pre": ".pre",
        "shortcut": ".join.shortcut.conv",
        "shortcut_norm": ".join.shortcut.norm",
        "norm": ".residual.norm{i}",
        "conv": ".residual.conv{i}",
    }
    return tuple((UNIT + ours[name], layer) for name, layer in theirs.items())


IMAGENET_STEM = {7: StemSpec(width=64, kernel=7, stride=2, activated=True)}
CIFAR_STEM = {3: StemSpec(width=16, kernel=3)}
TORCHVISION = Table(
    "resnet of torchvision and timm",
    (
        ("stem.conv", "conv1"),
        ("stem.norm", "bn1"),
        *_units(
            shortcut="layer{s+1}.{u}.downsample.0",
            shortcut_norm="layer{s+1}.{u}.downsample.1",
            norm="layer{s+1}.{u}.bn{i}",
            conv="layer{s+1}.{u}.conv{i}",
        ),
        (LINEAR, "fc"),
    ),
    "original",
    Dialect(dimension_change="projection", stride_position="spatial"),
    IMAGENET_STEM,
)
TIMM = Table(
    "resnetv2 of timm",
    (
        ("stem.conv", "stem.conv"),
        *_units(
            pre="stages.{s}.blocks.{u}.norm1",
            shortcut="stages.{s}.blocks.{u}.downsample.conv",
            norm="stages.{s}.blocks.{u}.norm{i+1}",
            conv="stages.{s}.blocks.{u}.conv{i}",
        ),
        ("head.norm", "norm"),
        (LINEAR, "head.fc"),
    ),
    "preact",
    peers.TIMM,
    {7: peers.RAW_STEM},
    linear_is_conv=True,
)
_PYTORCHCV_UNIT = "features.stage{s+1}.unit{u+1}"
_PYTORCHCV_ORIGINAL = _units(
    shortcut=f"{_PYTORCHCV_UNIT}.identity_conv.conv",
    shortcut_norm=f"{_PYTORCHCV_UNIT}.identity_conv.bn",
    norm=f"{_PYTORCHCV_UNIT}.body.conv{{i}}.bn",
    conv=f"{_PYTORCHCV_UNIT}.body.conv{{i}}.conv",
)
_PYTORCHCV_PREACT = _units(
    pre=f"{_PYTORCHCV_UNIT}.body.conv1.bn",
    shortcut=f"{_PYTORCHCV_UNIT}.identity_conv",
    norm=f"{_PYTORCHCV_UNIT}.body.conv{{i+1}}.bn",
    conv=f"{_PYTORCHCV_UNIT}.body.conv{{i}}.conv",
)
_PYTORCHCV = Dialect(dimension_change="projection", shared_preactivation="channel_change", stride_position="spatial")
_PYTORCHCV_FIRST = replace(_PYTORCHCV, stride_position="first")
_UNSEEN = "bottlenecks stride in their first 1x1 convolution, as in {} (those of {}b stride in the 3x3)"
_ONLY_B = (14, 26, 38, 269)
PYTORCHCV = (
    Table(
        "resnet of pytorchcv for ImageNet",
        (
            ("stem.conv", "features.init_block.conv.conv"),
            ("stem.norm", "features.init_block.conv.bn"),
            *_PYTORCHCV_ORIGINAL,
            (LINEAR, "output"),
        ),
        "original",
        _PYTORCHCV_FIRST,
        IMAGENET_STEM,
        _UNSEEN.format("resnet50", "resnet50"),
        _ONLY_B,
    ),
    Table(
        "preresnet of pytorchcv for ImageNet",
        (
            ("stem.conv", "features.init_block.conv"),
            ("stem.norm", "features.init_block.bn"),
            *_PYTORCHCV_PREACT,
            ("head.norm", "features.post_activ.bn"),
            (LINEAR, "output"),
        ),
        "preact",
        _PYTORCHCV_FIRST,
        {7: StemSpec(width=64, kernel=7, stride=2, activated=True, first_preactivated=True)},
        _UNSEEN.format("preresnet50", "preresnet50"),
        _ONLY_B,
    ),
    Table(
        "resnet of pytorchcv for CIFAR",
        (
            ("stem.conv", "features.init_block.conv"),
            ("stem.norm", "features.init_block.bn"),
            *_PYTORCHCV_ORIGINAL,
            (LINEAR, "output"),
        ),
        "original",
        _PYTORCHCV,
        CIFAR_STEM,
    ),
    Table(
        "preresnet of pytorchcv for CIFAR",
        (
            ("stem.conv", "features.init_block"),
            *_PYTORCHCV_PREACT,
            ("head.norm", "features.post_activ.bn"),
            (LINEAR, "output"),
        ),
        "preact",
        _PYTORCHCV,
        CIFAR_STEM,
    ),
)
KERAS = (
    Table(
        "ResNetV2 of Keras",
        (
            ("stem.conv", "conv1_conv"),
            *_units(
                pre="conv{s+2}_block{u+1}_preact_bn",
                shortcut="conv{s+2}_block{u+1}_0_conv",
                norm="conv{s+2}_block{u+1}_{i}_bn",
                conv="conv{s+2}_block{u+1}_{i}_conv",
            ),
            ("head.norm", "post_bn"),
            (LINEAR, "predictions"),
        ),
        "preact",
        peers.KERAS,
        {7: replace(peers.RAW_STEM, pool_padding="zero")},
    ),
    *(
        Table(
            f"cifar10_resnet.py of Keras, version {version}",
            (),
            order,
            peers.KERAS_CIFAR,
            CIFAR_STEM,
            ordinal=True,
        )
        for version, order in ((1, "original"), (2, "preact"))
    ),
)
TABLES: dict[str, tuple[Table, ...]] = {
    "timm": (TIMM, TORCHVISION),
    "torchvision": (TORCHVISION,),
    "pytorchcv": PYTORCHCV,
    "keras": KERAS,
}
