"""Our networks in timm: after ``import preresnet.exchange.timm``, ``timm.create_model("preresnet164_cifar10")``."""

from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from preresnet import trained
from preresnet.model import preactivation, weights
from preresnet.model.network import Network, initialise
from preresnet.paper.networks import network, network_names
from preresnet.recipe import DATA_SETS
from preresnet.spec import UserError

try:
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import feature_take_indices
except ImportError as error:
    raise ImportError(f"{error}; pip install 'preresnet[timm]'") from None

SMALL, LARGE = ("cifar10", "cifar100"), ("imagenet",)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TimmNetwork(Network):
    """A `Network` with what timm asks of a model.

    Args:
        network_name: for example ``resnet164-preact``; `preresnet.list_models` has all.
        num_classes: outputs; 0 leaves the classifier out.
        in_chans: channels of an image.
        global_pool: ``avg``, the paper's.

    Raises:
        ValueError: another pooling, or a number out of range.
    """

    def __init__(self, network_name: str, num_classes: int = 10, in_chans: int = 3, global_pool: str = "avg") -> None:
        _check_pooling(global_pool)
        super().__init__(network(network_name, num_classes=num_classes or 1, in_channels=in_chans))
        initialise(self, torch.Generator().manual_seed(int(torch.randint(2**62, ()).item())))
        self.num_classes = self.spec.num_classes
        self.num_features = self.head_hidden_size = self.spec.stages[-1].width
        self.feature_info: list[dict[str, Any]] = []
        reduction = self.spec.stem.reduction
        for index, stage in enumerate(self.spec.stages):
            reduction *= stage.stride
            self.feature_info.append({"num_chs": stage.width, "reduction": reduction, "module": f"stages.{index}"})
        if num_classes == 0:
            self.reset_classifier(0)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Take a new classifier, of PyTorch's initial weights; none for 0 classes."""
        _check_pooling(global_pool or "avg")
        old = next(self.parameters())
        new = nn.Linear(self.num_features, num_classes, device=old.device, dtype=old.dtype) if num_classes else None
        self.num_classes, self.head.linear = num_classes, new or nn.Identity()  # type: ignore[assignment]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(n, c, h, w) of `forward_features` -> (n, num_classes), or before the classifier (n, c)."""
        return x.mean((2, 3)) if pre_logits else self.head.classify(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """What leaves each stage: sums, of which ``norm`` activates the last as the head does.

        Args:
            x: (n, in_chans, h, w).
            indices: which stages; a number for so many of the last; None for all.
            norm: whether the last stage's sum is activated.
            stop_early: compute nothing behind the last of them.
            output_fmt: ``NCHW``.
            intermediates_only: leave out the result of `forward_features`.

        Returns:
            That result and a list with (n, c, h, w) for each index, or the list alone.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt={output_fmt!r}; these networks give NCHW")
        if stop_early and not intermediates_only:
            raise UserError("stop_early=True leaves no last feature map; give intermediates_only=True with it")
        taken, last = feature_take_indices(
            len(self.stages), list(indices) if isinstance(indices, Sequence) else indices
        )
        self._check(x)
        x, found = self.stem(x), list[Tensor]()
        for index, stage in enumerate(self.stages):
            if stop_early and index > last:
                return found
            x = stage(x)
            is_normed = norm and index == len(self.stages) - 1
            if index in taken:
                found.append(preactivation.apply(self.head.norm, x, None) if is_normed else x)
        return found if intermediates_only else (preactivation.apply(self.head.norm, x, None), found)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameters' names by depth, for rates that fall with it."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.units\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether units are computed again in the backward pass, each from its input."""
        for stage in self.stages:
            stage.segment = int(enable)  # type: ignore[assignment]


def _check_pooling(name: str) -> None:
    if name != "avg":
        raise UserError(f"global_pool={name!r}; these networks take 'avg'")


def timm_name(name: str, data: str) -> str:
    """What timm calls a network for a data set: ``preresnet164_cifar10`` is ``resnet164-preact`` for ``cifar10``."""
    words = name.split("-")
    if "preact" in words:
        words.remove("preact")
        words[0] = f"pre{words[0]}"
    return "_".join([*words, data]).replace(".", "p")


def _configuration(name: str, data: str) -> dict[str, Any]:
    """What timm keeps of a network's images; and of its weights, where they come with the package.

    timm subtracts a mean a channel. Of a network that was trained with a mean image, it is that image's mean.
    """
    known, packaged = DATA_SETS[data], f"{data}/{name}"
    size = known.size or 224
    found: dict[str, Any] = {
        "num_classes": known.classes,
        "input_size": (known.channels, size, size),
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if known.size else 0.875,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "stem.conv",
        "classifier": "head.linear",
        "license": "apache-2.0",
        "paper_name": "Identity Mappings in Deep Residual Networks",
        "paper_ids": "arXiv:1603.05027",
    }
    if packaged in weights.packaged():
        with resources.as_file(weights.file_of(packaged)) as file:
            found["file"] = str(file)
            opened = trained.open_weights(file)
        found["mean"] = tuple(opened.normalisation.mean.mean((0, 1)).tolist())
        found["std"] = tuple(opened.normalisation.std.tolist())
        found["label_names"] = opened.classes
    return found


def _entry(name: str, data: str) -> Callable[..., nn.Module]:
    variant = timm_name(name, data)
    stages = len(network(name).stages)

    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        features = {"out_indices": tuple(range(stages)), "feature_cls": "getter", "norm": True}
        return build_model_with_cfg(
            TimmNetwork, variant, pretrained, feature_cfg=features, network_name=name, **arguments
        )

    create.__name__ = create.__qualname__ = variant
    create.__module__ = __name__
    create.__doc__ = f"``{name}`` of the paper for {data}."
    return create


def _names() -> list[tuple[str, str]]:
    return [(name, data) for name in network_names() for data in (LARGE if network(name).stem.pooled else SMALL)]


default_cfgs = generate_default_cfgs({timm_name(name, data): _configuration(name, data) for name, data in _names()})
__all__ = ["TimmNetwork", "timm_name"]
for _name, _data in _names():
    register_model(_entry(_name, _data))
