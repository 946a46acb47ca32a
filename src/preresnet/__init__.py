"""Identity mappings in deep residual networks: the paper's networks, training, reproduction and analysis."""

from pathlib import Path

from preresnet.model import weights as _weights
from preresnet.model.network import Network as Network
from preresnet.model.network import build as build
from preresnet.paper.networks import network as _network
from preresnet.paper.networks import network_names as list_models
from preresnet.paper.recipes import recipe as recipe
from preresnet.paper.recipes import recipe_names as list_recipes
from preresnet.recipe import Recipe as Recipe
from preresnet.spec import NetSpec as NetSpec

__version__ = "0.1.0"

__all__ = ["NetSpec", "Network", "Recipe", "build", "create_model", "list_models", "list_recipes", "load", "recipe"]


def create_model(
    name: str, num_classes: int | None = None, in_channels: int = 3, seed: int | None = None
) -> Network:
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
    return build(_network(name, num_classes=num_classes, in_channels=in_channels), seed)


def load(path: str | Path) -> Network:
    """A trained network.

    Args:
        path: a run folder, or a ``.safetensors`` file that this package wrote.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        ValueError: nothing usable there; the message says what was found.
    """
    return _weights.load(Path(path))[0]
