"""What one pass through the residual additions of a network leaves behind."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Addition:
    """One residual addition as it was computed: y_l = h(x_l) + F(x_l).

    Args:
        name: of its unit.
        x: x_l, what enters shortcut and residual (behind a shared pre-activation).
        shortcut: h(x_l), as it was added.
        residual: F(x_l), as it was added.
        sum: y_l.
        factor: lambda where the shortcut is exactly lambda * x_l: a number (1 for an identity), or a tensor of as many
            dimensions as x_l; None for any other shortcut.
        reference: what ``shortcut`` is a multiple of, where that is not x_l itself (x_l brought to another shape).
    """

    name: str
    x: Tensor
    shortcut: Tensor
    residual: Tensor
    sum: Tensor
    factor: float | Tensor | None
    reference: Tensor | None = None


@dataclass
class Pass:
    """What one pass leaves behind.

    Args:
        cut: whether every residual is added without its gradient, so that the backward pass knows shortcuts alone.

    Attributes:
        additions: in the order of execution.
        active: for each ReLU, by name, which of its channels were above zero anywhere: (c,) bool.
    """

    cut: bool = False
    additions: list[Addition] = field(default_factory=list)
    active: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self,
        name: str,
        x: Tensor,
        shortcut: Tensor,
        residual: Tensor,
        factor: float | Tensor | None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Add shortcut and residual, and take note."""
        # what is cut stays a variable, so that a last sum without a shortcut has a gradient too
        total = shortcut + (residual.detach().requires_grad_() if self.cut else residual)
        self.additions.append(Addition(name, x, shortcut, residual, total, factor, reference))
        return total

    def relu(self, name: str, y: Tensor) -> None:
        """Take note of which channels (dimension 1; the last one of a sequence) a ReLU lets through."""
        if self.cut or y.ndim < 2:
            return
        channel = 1 if y.ndim in (2, 4, 5) else y.ndim - 1
        self.active[name] = (y.detach() > 0).transpose(0, channel).flatten(1).any(1)


class Stream(Protocol):
    """A network whose residual additions are known.

    Attributes:
        parameters: by the names that the network gives them; those of a copy, which share its values.
        doubts: units of which it is uncertain what the shortcut is: ``unit``, ``shortcut``, ``residual``, ``why``.
    """

    parameters: dict[str, Tensor]

    @property
    def doubts(self) -> list[dict[str, str]]:
        """As above; some are known after a pass only."""
        ...

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], taken: Pass) -> Any:
        """One forward pass; ``taken`` is filled. Returns what the network returns."""
        ...
