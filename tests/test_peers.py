"""Networks of other libraries, and of this package, with the same weights: the same outputs and gradients."""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preresnet.model.network import Network, build
from preresnet.paper import peers
from preresnet.spec import NetSpec

FLOAT32, FLOAT64 = 1e-5, 1e-10  # relative


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def sensible(name: str, like: Tensor, source: torch.Generator) -> Tensor:
    """Random values for a tensor of a network: gammas of both signs, statistics as training could leave them."""
    values = torch.randn(like.shape, generator=source, dtype=torch.float64)
    if like.ndim > 1:
        return values * (2 / like[0].numel()) ** 0.5
    if name.endswith("running_var"):
        return 0.5 + values.abs()
    return values.sign() * (0.5 + values.abs() / 2) if name.endswith("weight") else values / 3


def randomise(model: nn.Module) -> None:
    source = torch.Generator().manual_seed(7)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(sensible(name, tensor, source))


def images(n: int, height: int, width: int) -> Tensor:
    source = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, height, width, generator=source, dtype=torch.float64)


def assert_equal(ours: Network, peer: nn.Module, x: Tensor, peer_in_float32: nn.Module | None = None) -> None:
    """Logits in both modes and, in training mode, the gradient of the images, as far as the type can tell."""
    x = x.contiguous(memory_format=torch.channels_last)  # as fused operations read it
    with torch.no_grad():
        single = copy.deepcopy(ours).eval().float()(x.float())
        assert apart(single, (peer_in_float32 or copy.deepcopy(peer).float()).eval()(x.float())) < FLOAT32
        assert apart(ours.eval()(x), peer.eval()(x)) < FLOAT64
    gradients, outputs = [], []
    for model in (ours.train(), peer.train()):
        own = x.clone().requires_grad_()
        output = model(own)
        weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view(output.shape)
        gradients.append(torch.autograd.grad((output * weights).sum(), own)[0])
        outputs.append(output.detach())
    assert apart(*outputs) < FLOAT64
    assert apart(*gradients) < FLOAT64


# --- Keras' example for CIFAR, written out in PyTorch -------------------------------------------------------------


class Same(nn.Module):
    """``Conv2D(padding="same")``: TensorFlow's documentation says how many zeros go where."""

    def __init__(self, in_width: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, kernel, stride)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            outputs = (x.shape[dim] + self.stride - 1) // self.stride
            zeros = max((outputs - 1) * self.stride + self.kernel - x.shape[dim], 0)
            before, after = zeros // 2, zeros - zeros // 2
            shape = list(x.shape)
            shape[dim] = before
            first = x.new_zeros(shape)
            shape[dim] = after
            x = torch.cat([first, x, x.new_zeros(shape)], dim)
        return self.conv(x)


class KerasBottlenecks(nn.Module):
    """``resnet_v2`` of ``cifar10_resnet.py``, whose stride is in a 1x1 or in the 3x3."""

    def __init__(self, units: int, base: int, in_3x3: bool) -> None:
        super().__init__()
        self.stem = Same(3, base, 3, 1)
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        self.plan: list[SimpleNamespace] = []

        def norm(width: int) -> nn.Module:
            self.norms.append(nn.BatchNorm2d(width, eps=1e-3, momentum=0.01))
            return self.norms[-1]

        def conv(*args: int) -> nn.Module:
            self.convs.append(Same(*args))
            return self.convs[-1]

        norm(base)
        width, inner = base, base
        for stage in range(3):
            out = inner * (4 if stage == 0 else 2)
            for unit in range(units):
                stride = 2 if stage > 0 and unit == 0 else 1
                self.plan.append(
                    SimpleNamespace(
                        norm1=norm(width) if stage or unit else None,
                        conv1=conv(width, inner, 1, 1 if in_3x3 else stride),
                        norm2=norm(inner),
                        conv2=conv(inner, inner, 3, stride if in_3x3 else 1),
                        norm3=norm(inner),
                        conv3=conv(inner, out, 1, 1),
                        projection=conv(width, out, 1, stride) if unit == 0 else None,
                    )
                )
                width = out
            inner = out
        norm(width)
        self.dense = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.stem(x)))
        for unit in self.plan:
            y = x if unit.norm1 is None else F.relu(unit.norm1(x))
            y = F.relu(unit.norm2(unit.conv1(y)))
            y = F.relu(unit.norm3(unit.conv2(y)))
            y = unit.conv3(y)
            x = y + (x if unit.projection is None else unit.projection(x))
        return self.dense(F.relu(self.norms[-1](x)).mean((2, 3)))


class KerasBasics(nn.Module):
    """``resnet_v1`` of ``cifar10_resnet.py``."""

    def __init__(self, units: int, base: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.plan: list[SimpleNamespace] = []

        def conv(*args: int, norm: bool = True) -> nn.Sequential:
            after = nn.BatchNorm2d(args[1], eps=1e-3, momentum=0.01) if norm else nn.Identity()
            self.layers.append(nn.Sequential(Same(*args), after))
            return self.layers[-1]  # type: ignore[return-value]

        conv(3, base, 3, 1)
        width = base
        for stage in range(3):
            for unit in range(units):
                stride, out = (2 if stage > 0 and unit == 0 else 1), base * 2**stage
                first, second = conv(width, out, 3, stride), conv(out, out, 3, 1)
                projection = conv(width, out, 1, stride, norm=False) if stride > 1 else nn.Identity()
                self.plan.append(SimpleNamespace(first=first, second=second, projection=projection))
                width = out
        self.dense = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        for unit in self.plan:
            x = F.relu(unit.projection(x) + unit.second(F.relu(unit.first(x))))
        return self.dense(x.mean((2, 3)))


def in_order(ours: Network, peer: nn.Module) -> None:
    """Take over the weights of a network whose layers are defined in the same order, kind by kind."""
    mine, theirs = ours.state_dict(), peer.state_dict()

    def prefixes(state: dict[str, Tensor], ndim: int) -> list[str]:
        return [name.removesuffix("weight") for name in state if name.endswith("weight") and state[name].ndim == ndim]

    pairs = {a: b for n in (1, 2, 4) for a, b in zip(prefixes(mine, n), prefixes(theirs, n), strict=True)}
    ours.load_state_dict({name: theirs[pairs[re.sub("[^.]*$", "", name)] + name.split(".")[-1]] for name in mine})


def narrow(spec: NetSpec, factor: int) -> NetSpec:
    stages = tuple(replace(stage, width=stage.width // factor) for stage in spec.stages)
    return replace(spec, stem=replace(spec.stem, width=spec.stem.width // factor), stages=stages)


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (18, 13), (1, 2)])
@pytest.mark.parametrize("in_3x3", [False, True])
def test_same_convolutions_ratios_by_stage_and_one_shared_unit(size: tuple[int, int], in_3x3: bool) -> None:
    spec = narrow(peers.keras_cifar(20, version=2), 4)
    assert [shape.inner_width for _, _, shape in spec.units()] == [4, 4, 16, 16, 32, 32]
    spec = replace(spec, dialect=replace(spec.dialect, stride_position="spatial" if in_3x3 else "first"))
    peer = KerasBottlenecks(2, 4, in_3x3).double()
    randomise(peer)
    ours = build(spec, 0).double()
    in_order(ours, peer)
    assert_equal(ours, peer, images(4, *size))


@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_same_convolutions_of_basic_units(size: tuple[int, int]) -> None:
    spec = narrow(peers.keras_cifar(14, version=1), 4)
    peer = KerasBasics(2, 4).double()
    randomise(peer)
    ours = build(spec, 0).double()
    in_order(ours, peer)
    assert_equal(ours, peer, images(4, *size))


# --- the libraries themselves -------------------------------------------------------------------------------------

foreign = [pytest.mark.foreign, pytest.mark.filterwarnings("ignore")]
IMAGES = images(3, 64, 75)

# Names of layers: those of the library, and ours.
TIMM = [
    (r"^norm\.", "head.norm."),
    (r"^head\.fc\.", "head.linear."),
    (r"\.blocks\.(\d+)\.conv", r".units.\1.residual.conv"),
    (r"\.blocks\.(\d+)\.norm1", r".units.\1.pre"),
    (r"\.blocks\.(\d+)\.norm2", r".units.\1.residual.norm1"),
    (r"\.blocks\.(\d+)\.norm3", r".units.\1.residual.norm2"),
    (r"\.blocks\.(\d+)\.downsample\.conv", r".units.\1.join.shortcut.conv"),
]
KERAS = [
    (r"^conv1_conv", "stem.conv"),
    (r"^post_bn", "head.norm"),
    (r"^predictions", "head.linear"),
    (r"^conv(\d)_block(\d+)", lambda m: f"stages.{int(m[1]) - 2}.units.{int(m[2]) - 1}"),
    (r"_preact_bn", ".pre"),
    (r"_0_conv", ".join.shortcut.conv"),
    (r"_(\d)_bn", r".residual.norm\1"),
    (r"_(\d)_conv", r".residual.conv\1"),
    (r"/(kernel|gamma)$", ".weight"),
    (r"/(bias|beta)$", ".bias"),
    (r"/moving_mean$", ".running_mean"),
    (r"/moving_variance$", ".running_var"),
]


def renamed(name: str, table: list[tuple[str, Any]]) -> str:
    for theirs, ours in table:
        name = re.sub(theirs, ours, name)
    return name


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
class TestTimm:
    pytestmark = foreign

    def test_resnetv2(self, depth: int) -> None:
        timm = pytest.importorskip("timm")
        peer = timm.create_model(f"resnetv2_{depth}", num_classes=11).double()
        randomise(peer)
        ours = build(replace(peers.timm_resnetv2(depth), num_classes=11), 0).double()
        weights = {renamed(name, TIMM): tensor for name, tensor in peer.state_dict().items()}
        weights["head.linear.weight"] = weights["head.linear.weight"].flatten(1)  # a 1x1 convolution there
        ours.load_state_dict(weights)
        assert_equal(ours, peer, IMAGES)


class InPyTorch(nn.Module):
    """A Keras model on the torch backend, with weights by our names and images as PyTorch has them."""

    def __init__(self, model: Any, table: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.model, self.table = model, table

    def randomise(self) -> None:
        source = torch.Generator().manual_seed(7)
        for variable in self.model.weights:
            values = sensible(renamed(variable.path, self.table), turned(variable.value), source)
            back = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[values.ndim]
            variable.assign(values.permute(back))

    def weights(self) -> dict[str, Tensor]:
        return {renamed(one.path, self.table): turned(one.value) for one in self.model.weights}

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.permute(0, 2, 3, 1), training=self.training)


def turned(value: Tensor) -> Tensor:
    """A kernel (h, w, in, out) or (in, out) as PyTorch has it."""
    return value.detach().permute({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim])


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Keras on the torch backend, where it computes in float64 if asked to."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip(f"Keras runs on {keras.backend.backend()}; this test needs its torch backend")
    from keras.src.backend.common import dtypes  # pyright: ignore[reportMissingImports]

    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")  # float32 but under TensorFlow
    yield keras
    use(keras, "float32")  # its default


def use(keras: Any, dtype: str) -> None:
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def assert_equals_keras(keras: Any, build_peer: Callable[[], Any], spec: NetSpec, table: list[tuple[str, Any]]) -> None:
    peer: dict[str, InPyTorch] = {}
    for dtype in ("float64", "float32"):
        use(keras, dtype)
        peer[dtype] = InPyTorch(build_peer(), table)
        peer[dtype].randomise()
    ours = build(spec, 0).double()
    missing, unexpected = ours.load_state_dict(peer["float64"].weights(), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = IMAGES if spec.stem.pooled else images(3, 16, 15)
    assert_equal(ours, peer["float64"], x, peer_in_float32=peer["float32"])


def keras_cifar(keras: Any, units: int, version: int) -> Any:
    """The networks of ``cifar10_resnet.py``, with layers named as ours are."""
    layers = keras.layers

    def conv(x: Any, name: str, width: int, kernel: int, stride: int = 1) -> Any:
        return layers.Conv2D(width, kernel, strides=stride, padding="same", name=name.replace(".", "_"))(x)

    def norm(x: Any, name: str, relu: bool = True) -> Any:
        x = layers.BatchNormalization(name=name.replace(".", "_"))(x)
        return layers.Activation("relu")(x) if relu else x

    image = layers.Input((None, None, 3))
    x = conv(image, "stem.conv", 16, 3)
    x = norm(x, "stages.0.units.0.pre" if version == 2 else "stem.norm")
    for stage in range(3):
        for unit in range(units):
            name = f"stages.{stage}.units.{unit}"
            stride = 2 if stage > 0 and unit == 0 else 1
            if version == 1:
                out = 16 * 2**stage
                y = norm(conv(x, f"{name}.residual.conv1", out, 3, stride), f"{name}.residual.norm1")
                y = norm(conv(y, f"{name}.residual.conv2", out, 3), f"{name}.residual.norm2", relu=False)
                x = conv(x, f"{name}.join.shortcut.conv", out, 1, stride) if stride > 1 else x
                x = layers.Activation("relu")(layers.add([x, y]))
            else:
                inner, out = (16, 64, 128)[stage], (64, 128, 256)[stage]
                y = x if stage == unit == 0 else norm(x, f"{name}.pre")
                y = norm(conv(y, f"{name}.residual.conv1", inner, 1, stride), f"{name}.residual.norm1")
                y = norm(conv(y, f"{name}.residual.conv2", inner, 3), f"{name}.residual.norm2")
                y = conv(y, f"{name}.residual.conv3", out, 1)
                x = conv(x, f"{name}.join.shortcut.conv", out, 1, stride) if unit == 0 else x
                x = layers.add([x, y])
    x = norm(x, "head.norm") if version == 2 else x
    return keras.Model(image, layers.Dense(10, name="head_linear")(layers.GlobalAveragePooling2D()(x)))


class TestKeras:
    pytestmark = foreign

    @pytest.mark.parametrize("depth", [50, 101])
    def test_resnet_v2(self, keras: Any, depth: int) -> None:
        def build_peer() -> Any:
            make = getattr(keras.applications, f"ResNet{depth}V2")
            return make(weights=None, input_shape=(64, 75, 3), classes=11, classifier_activation=None)

        assert_equals_keras(keras, build_peer, replace(peers.keras_resnet_v2(depth), num_classes=11), KERAS)

    @pytest.mark.parametrize("version", [1, 2])
    def test_cifar10_resnet(self, keras: Any, version: int) -> None:
        spec = peers.keras_cifar(14 if version == 1 else 20, version)
        table = [(r"_(?=\d|[a-z]+\d?/|units|residual|join|shortcut)", "."), *KERAS]
        assert_equals_keras(keras, lambda: keras_cifar(keras, 2, version), spec, table)
