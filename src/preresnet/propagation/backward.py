"""The gradient at x_l in two parts: what came straight through the shortcuts, and what came through weight layers.

Eq. 5 with g_l the gradient at x_l and m_l that at y_l: m_l is g_{l+1} through whatever stands between, and

    g_l = h'(x_l)^T m_l + F'(x_l)^T m_l.

The straight part S follows h' alone, from the last addition down: S_l = h'^T (S at y_l). The rest T is all else:
T_l = h'^T (T at y_l) + F'^T m_l. Unrolled, with h the identity, T_l is the sum of the Jacobian products of all
residuals.

Two ways give both: this recursion, in which no whole backward pass takes part; and autograd, once as it is (S + T) and
once through a second forward pass whose residuals were cut from the graph (S). They agree to rounding, or one is wrong.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from preresnet.propagation.additions import Addition
from preresnet.spec import UserError

CANCELLED = 0.1  # a sum this small beside what both parts measure counts as nearly cancelled


@dataclass(frozen=True)
class Parts:
    """Sums over the samples of one batch.

    Args:
        positions: at each x_l, then at the last sum: squares of the lengths of ``gradient``, ``straight`` and ``rest``,
            sums of what `preresnet.propagation.probe.Probe` describes, and in how many samples each is defined.
        agreement: the largest relative differences between both ways.
        parameters: gradient of the summed loss.
    """

    positions: list[dict[str, float]]
    agreement: dict[str, float]
    parameters: list[Tensor | None]


def split(
    additions: list[Addition], loss: Tensor, cut: list[Addition], cut_loss: Tensor, parameters: list[Tensor]
) -> Parts:
    """Both parts at every x_l, both ways.

    Args:
        additions: of a forward pass.
        loss: its summed loss.
        cut: of the same pass with residuals cut.
        cut_loss: its summed loss, equal in value.
        parameters: whose gradients are wanted too.

    Raises:
        UserError: no gradient reaches the additions.
    """
    signals = [one.x for one in additions] + [additions[-1].sum]
    fixed = [position for position, signal in enumerate(signals) if not signal.requires_grad]
    if fixed:
        raise UserError(
            f"x of unit {additions[fixed[0]].name!r} has no gradient: its inputs are no floating-point numbers and "
            "what stands before it is frozen; set requires_grad on a parameter before it"
        )
    if not loss.requires_grad:
        raise UserError("no gradient reaches the residual additions; check that the loss depends on the output")
    found = torch.autograd.grad(loss, [*signals, *parameters], retain_graph=True, allow_unused=True)
    whole = [_or_zeros(value, signal) for value, signal in zip(found, signals, strict=False)]
    straight = _cut(cut, cut_loss)

    positions: list[dict[str, float]] = [{}] * len(signals)
    agreement = {"gradient": 0.0, "straight": 0.0, "rest": 0.0}

    def note(position: int, s: Tensor, t: Tensor) -> None:
        positions[position] = _statistics(s, t)
        total, other = whole[position], straight[position]
        scale = float(max(total.norm(), other.norm()))
        for name, one, two in (("gradient", s + t, total), ("straight", s, other), ("rest", t, total - other)):
            if scale > 0:
                agreement[name] = max(agreement[name], float((one - two).norm()) / scale)

    (s,) = torch.autograd.grad(loss, additions[-1].sum, retain_graph=True)
    t = torch.zeros_like(s)
    note(len(additions), s, t)
    for unit in reversed(range(len(additions))):
        one = additions[unit]
        branch = _product(one.residual, one.x, s + t)
        s, t = _product(one.shortcut, one.x, s), _product(one.shortcut, one.x, t) + branch
        note(unit, s, t)
        if unit:
            before = additions[unit - 1].sum
            s, t = _product(one.x, before, s), _product(one.x, before, t)
    return Parts(positions, agreement, list(found[len(signals) :]))


def _cut(additions: list[Addition], loss: Tensor) -> list[Tensor]:
    signals = [one.x for one in additions] + [additions[-1].sum]
    wanted = [signal for signal in signals if signal.requires_grad]
    if not loss.requires_grad or not wanted:
        return [torch.zeros_like(signal) for signal in signals]
    found = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
    return [_or_zeros(next(found), signal) if signal.requires_grad else torch.zeros_like(signal) for signal in signals]


def _product(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v^T dy/dx, in the shape of x."""
    if y is x:
        return v
    if not y.requires_grad:
        return torch.zeros_like(x)
    return _or_zeros(torch.autograd.grad(y, x, v, retain_graph=True, allow_unused=True)[0], x)


def _or_zeros(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value


@torch.no_grad()
def _statistics(straight: Tensor, rest: Tensor) -> dict[str, float]:
    s, t = straight.flatten(1).double(), rest.flatten(1).double()
    ss, tt, st = (s * s).sum(1), (t * t).sum(1), (s * t).sum(1)
    whole = (s + t).square().sum(1)
    sizes = ss.sqrt() + tt.sqrt()
    both = (ss > 0) & (tt > 0)
    found = {
        "gradient_squares": whole.sum(),
        "straight_squares": ss.sum(),
        "rest_squares": tt.sum(),
        "cosine": (st / (ss * tt).sqrt())[both].sum(),
        "cosine_samples": both.sum(),
        "cancelled_share": (whole.sqrt() < CANCELLED * sizes)[both].sum(),
        "cancelled_share_samples": both.sum(),
        "rest_along_straight": (st / ss)[both].sum(),
        "rest_along_straight_samples": both.sum(),
    }
    return {name: float(value) for name, value in found.items()}
