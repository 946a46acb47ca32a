"""Identity mappings in deep residual networks: the paper's networks, training, reproduction and analysis.

torch is imported when a network is first built or loaded, not before: networks and recipes are plain data.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from preresnet.paper.networks import network as _network
from preresnet.paper.networks import network_names as list_models
from preresnet.paper.recipes import recipe as recipe
from preresnet.paper.recipes import recipe_names as list_recipes
from preresnet.recipe import Recipe as Recipe
from preresnet.spec import NetSpec as NetSpec

if TYPE_CHECKING:
    from preresnet.model.network import Network as Network
    from preresnet.model.network import build as build
    from preresnet.propagation.probe import probe as probe

__version__ = "0.1.0"

__all__ = [
    "NetSpec",
    "Network",
    "Recipe",
    "build",
    "create_model",
    "list_models",
    "list_recipes",
    "load",
    "probe",
    "recipe",
]


def __getattr__(name: str) -> Any:
    if name in ("Network", "build"):
        from preresnet.model import network

        return getattr(network, name)
    if name == "probe":
        from preresnet.propagation.probe import probe

        return probe
    raise AttributeError(f"module 'preresnet' has no attribute {name!r}")


def create_model(name: str, num_classes: int | None = None, in_channels: int = 3, seed: int | None = None) -> "Network":
    """A network of the paper by name, with initial weights.

    Args:
        name: for example ``resnet164-preact``; `list_models` has all.
        num_classes: outputs; when not given, 1,000 for an ImageNet network and 10 otherwise.
        in_channels: channels of an input image.
        seed: of the weights; without one, PyTorch's default generator decides.

    Returns:
        The network on the CPU in float32, in training mode; its specification is ``.spec``.

    Raises:
        ValueError: no such name (the nearest are suggested), or a number out of range.
    """
    from preresnet.model.network import build

    return build(_network(name, num_classes=num_classes, in_channels=in_channels), seed)


def load(path: str | Path) -> "Network":
    """A trained network.

    Args:
        path: a run folder, a ``.safetensors`` file that this package wrote, or the name of a network that comes with
            it: ``cifar10/resnet20-preact``.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        ValueError: nothing usable there; the message says what was found.
    """
    from preresnet.model import weights

    return weights.load(Path(path))[0]
