"""Eq. 4 and 7 for every pair of units: how far x_L is from the scaled x_l plus the scaled residuals between.

Units whose shortcuts are constant multiples of x_l, of one shape, form a run. The error of one of its units is
e_l = x_{l+1} - lambda_l x_l - F(x_l); that of a pair is a sum of scaled e_l, so that inner products of the e_l, summed
over all batches, give the deviations of all pairs. Where a lambda is a vector, there are inner products for each of its
elements.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preresnet.propagation.additions import Addition

MOST_FACTORS = 4096  # different numbers in one lambda, of which pairs are followed


@dataclass
class Run:
    """Neighbouring units whose shortcuts are constant multiples of x_l.

    Args:
        units: their positions.
        factors: of each unit, (k,) float64, k = 1 where all are numbers.
        shape: of a factor, with as many dimensions as x_l.
        products: sums of inner products of the units' errors: (k, units, units) float64.
    """

    units: list[int]
    factors: list[Tensor]
    shape: tuple[int, ...]
    products: Tensor


def factor(one: Addition) -> float | Tensor | None:
    """Lambda where pairs can be followed; None where the shortcut is no constant multiple of x_l, or of too many."""
    if one.shortcut.shape != one.x.shape:
        return None
    return None if isinstance(one.factor, Tensor) and one.factor.numel() > MOST_FACTORS else one.factor


def runs(additions: Sequence[Addition]) -> list[Run]:
    """Neighbours with lambda x of one shape: there Eq. 4 and 7 speak of every pair."""
    found: list[list[int]] = []
    for unit, one in enumerate(additions):
        if factor(one) is None:
            continue
        follows = found and found[-1][-1] == unit - 1 and additions[unit - 1].sum.shape == one.x.shape
        if follows:
            found[-1].append(unit)
        else:
            found.append([unit])
    return [_run(additions, units) for units in found]


def _run(additions: Sequence[Addition], units: list[int]) -> Run:
    values = [factor(additions[unit]) for unit in units]
    shape = torch.broadcast_shapes(*(one.shape for one in values if isinstance(one, Tensor)))
    flat = [torch.as_tensor(value, dtype=torch.float64, device="cpu").expand(shape).reshape(-1) for value in values]
    return Run(units, flat, shape, torch.zeros(math.prod(shape), len(units), len(units), dtype=torch.float64))


@torch.no_grad()
def add(run: Run, additions: Sequence[Addition]) -> None:
    """Take note of one more batch."""
    errors = torch.stack([_error(additions, unit, last=unit == run.units[-1]) for unit in run.units])
    many = [at + 1 for at, size in enumerate(run.shape) if size > 1]  # dimensions in which factors differ
    errors = errors.movedim([*many, 0], [*range(len(many)), len(many)])
    errors = errors.reshape(len(run.products), len(run.units), -1)  # (k, units, the rest)
    for part in errors.split(max(1, 2**18 // len(errors)), dim=2):
        run.products += (part.double() @ part.double().mT).cpu()


def _error(additions: Sequence[Addition], unit: int, *, last: bool) -> Tensor:
    """x_{l+1} - lambda x_l - F(x_l); in the last unit of a run the sum stands for x_{l+1}."""
    one = additions[unit]
    after = one.sum if last else additions[unit + 1].x
    assert one.factor is not None
    unscaled = isinstance(one.factor, float) and one.factor == 1
    return after - (one.x if unscaled else one.factor * one.x) - one.residual


def deviations(run: Run, squares: Sequence[float]) -> list[list[float | None]]:
    """Of every pair, relative to x_L.

    Args:
        run: of all batches.
        squares: of the lengths of what follows each unit: x_{l+1}, or the last sum.

    Returns:
        A row for each l, with an entry for each L from 0 to the number of units; None where L is not after l.
    """
    size = len(run.units)
    rows: list[list[float | None]] = [[None] * (size + 1) for _ in range(size)]
    for end in range(1, size + 1):
        scale = torch.zeros(len(run.products), size, dtype=torch.float64)
        for start in reversed(range(end)):
            scale[:, start] = 1.0 if start == end - 1 else scale[:, start + 1] * run.factors[start + 1]
            square = max(0.0, float(torch.einsum("ki,kij,kj->", scale, run.products, scale)))
            rows[start][end] = (square / squares[end - 1]) ** 0.5 if squares[end - 1] else None
    return rows
