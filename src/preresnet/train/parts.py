"""Parts of a network by name: which of them stay as they are, and at which rate the others learn."""

from torch import nn

from preresnet.fields import UserError


def frozen(model: nn.Module, freeze: str) -> list[nn.Module]:
    """The parts that a recipe freezes.

    Args:
        model: the network.
        freeze: their names, as ``stem,stages.0``.

    Raises:
        UserError: it has no such part, or all of it would be frozen.
    """
    found = []
    for name in filter(None, (part.strip() for part in freeze.split(","))):
        try:
            found.append(model.get_submodule(name))
        except AttributeError:
            raise UserError(
                f"freeze={freeze}: the network has no part {name!r}; there are {', '.join(_names(model))}, "
                "and parts of these such as stages.0.units.1"
            ) from None
    kept = {id(p) for part in found for p in part.parameters()}
    if all(id(p) in kept for p in model.parameters()):
        raise UserError(f"freeze={freeze} leaves nothing to train; freeze less")
    return found


def freeze_parameters(model: nn.Module, freeze: str) -> None:
    """Let the parts that a recipe freezes have no gradients."""
    for part in frozen(model, freeze):
        part.requires_grad_(False)


def keep_frozen(model: nn.Module, freeze: str) -> None:
    """Put the norms of frozen parts, after ``model.train()``, back to the statistics that they have."""
    for part in frozen(model, freeze):
        part.eval()


def by_depth(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters that learn, by depth: of the stem, of each stage, of the head."""
    found: dict[str, list[nn.Parameter]] = {name: [] for name in _names(model)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[next(part for part in found if name.startswith(f"{part}."))].append(parameter)
    return list(found.values())


def _names(model: nn.Module) -> list[str]:
    """Of the stem, of each stage, of the head."""
    found = []
    for name, child in model.named_children():
        inside = [f"{name}.{number}" for number in range(len(child))] if isinstance(child, nn.Sequential) else [name]
        found += inside
    return found
