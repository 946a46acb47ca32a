"""The specifications of networks as other libraries build them: what differs from the paper, as data.

Weights of these libraries fit the networks that are built from here, tensor by tensor, and give the same outputs
(``tests/test_peers.py``).
"""

from dataclasses import replace

from preresnet.paper.networks import IMAGENET_UNITS, network
from preresnet.spec import Dialect, NetSpec, StageSpec, StemSpec, require

# timm/models/resnetv2.py
TIMM = Dialect(
    dimension_change="projection",
    shared_preactivation="channel_change",
    stride_position="spatial",
)
# keras/src/applications/resnet.py; Keras' momentum of 0.99 is the weight of the old statistics
KERAS = Dialect(
    dimension_change="projection",
    shared_preactivation="channel_change",
    stride_position="spatial",
    strided_unit="last",
    conv_bias=("stem", "shortcut", "residual_last"),
    norm_eps=1.001e-5,
    norm_momentum=0.01,
)
# keras-team/keras, examples/cifar10_resnet.py
KERAS_CIFAR = Dialect(
    dimension_change="projection",
    projection_norm="never",
    shared_preactivation="network_first",
    conv_padding="same",
    conv_bias=("stem", "shortcut", "residual_inner", "residual_last"),
    norm_eps=1e-3,
    norm_momentum=0.01,
)
RAW_STEM = StemSpec(width=64, kernel=7, stride=2, pool=True)


def timm_resnetv2(depth: int) -> NetSpec:
    """``resnetv2_18`` of timm (34, 50, 101, 152), those without letters behind the depth.

    Args:
        depth: layers.

    Raises:
        ValueError: no such depth.
    """
    return replace(_imagenet(depth), stem=RAW_STEM, dialect=TIMM)


def keras_resnet_v2(depth: int) -> NetSpec:
    """``ResNet50V2`` of Keras (101, 152). The last unit of a stage strides, so the strides of stages move by one.

    Args:
        depth: layers.

    Raises:
        ValueError: no such depth.
    """
    spec = _imagenet(depth)
    require(spec.unit.kind == "bottleneck", f"no ResNet{depth}V2 in Keras; there are 50, 101 and 152")
    stages = tuple(replace(stage, stride=stride) for stage, stride in zip(spec.stages, (2, 2, 2, 1), strict=True))
    return replace(spec, stem=replace(RAW_STEM, pool_padding="zero"), stages=stages, dialect=KERAS)


def keras_cifar(depth: int, version: int) -> NetSpec:
    """``resnet_v1`` or ``resnet_v2`` of Keras' ``cifar10_resnet.py``.

    Args:
        depth: 6n+2 layers for version 1, 9n+2 for version 2.
        version: 1 for the original order with basic units, 2 for pre-activated bottlenecks.

    Raises:
        ValueError: no such depth or version.
    """
    require(version in (1, 2), f"version={version}; cifar10_resnet.py has 1 and 2")
    if version == 1:
        return replace(network(f"resnet{depth}-original-basic"), dialect=KERAS_CIFAR)
    spec = network(f"resnet{depth}-preact-bottleneck")
    stages = tuple(
        StageSpec(num_units=stage.num_units, width=width, stride=stage.stride, bottleneck_ratio=ratio)
        for stage, width, ratio in zip(spec.stages, (64, 128, 256), (4, 2, 2), strict=True)
    )
    return replace(spec, stages=stages, dialect=KERAS_CIFAR)


def _imagenet(depth: int) -> NetSpec:
    depths = [layers for layers in IMAGENET_UNITS if layers != 200]
    require(depth in depths, f"no ImageNet network of {depth} layers here; there are {', '.join(map(str, depths))}")
    return network(f"resnet{depth}-preact")
