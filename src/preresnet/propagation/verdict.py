"""A prediction of whether a network will train, from its initial weights and its first few batches.

Three facts are measured, each with a threshold that theory gives:

| fact | measured | threshold |
|---|---|---|
| the straight path is lost | straight part over gradient, first unit | 2^-24: added in float32, it changes no bit |
| weights are overwritten | rate x gradient over weight, largest of all layers | 1: a step is as large as the weights |
| nothing is learned | wrong answers to new batches, against chance | 3 standard errors below chance |

A network that learns nothing, and whose straight path is lost or whose weights are overwritten, will not train. One
that learns with such a fault, or learns nothing without one, will train, but worse. No threshold was fitted to an
outcome, and none knows a name. The paper's "fail" is an error above 20 % after 64,000 steps.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from preresnet.model.network import Network
from preresnet.paper.tables import TABLE_1, TABLE_2
from preresnet.propagation import streams
from preresnet.propagation.probe import Probe, probe
from preresnet.recipe import SGD, Milestones, Optim, Schedule
from preresnet.spec import UserError
from preresnet.train.optim import build_optimizer, set_lr, update

Grade = Literal["will train", "will train, but worse", "will not train"]

STEPS = 48
FLOAT32_ROUNDING = 2.0**-24
SIGMAS = 3.0


@dataclass(frozen=True)
class Verdict:
    """The answer, why, and the evidence.

    Args:
        grade: the prediction.
        because: one sentence.
        straight_share: straight part over the whole gradient at the first unit.
        product: of all shortcut factors (0 for a plain network).
        growth: gradient at the first unit over that at the last sum.
        largest_update: rate x gradient over weight of the layer that a first step changes most.
        overwritten: that layer.
        error_pct: wrong answers during the last half of the steps, each batch before its own update.
        chance_pct: those of guessing.
        sigmas: how many standard errors below chance that is.
        losses: mean of the first and of the last quarter of the steps.
        steps: taken on a copy, at the recipe's first rate.
    """

    grade: Grade
    because: str
    straight_share: float
    product: float
    growth: float
    largest_update: float
    overwritten: str
    error_pct: float
    chance_pct: float
    sigmas: float
    losses: tuple[float, float]
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: None for what is not finite."""
        found = {**asdict(self), "losses": [value if math.isfinite(value) else None for value in self.losses]}
        return {**found, "growth": self.growth if math.isfinite(self.growth) else None}


def judge(
    model: Network,
    batches: Sequence[tuple[Tensor, Tensor]],
    schedule: Schedule | None = None,
    optim: Optim | None = None,
    seed: int = 0,
) -> Verdict:
    """Predict whether a network will train.

    Args:
        model: with initial weights, on its device; left as it is.
        batches: of labelled images, each used once; the first one is probed as well.
        schedule: whose first rate is used; the paper's by default (0.01 in the warm-up).
        optim: the optimiser; the paper's by default.
        seed: of dropout.

    Raises:
        UserError: fewer than 4 batches, or nothing that could be trained.
    """
    if len(batches) < 4:
        raise UserError(f"{len(batches)} batches; a verdict needs 4 or more")
    if not any(one.requires_grad for one in model.parameters()):
        raise UserError("all parameters are frozen; a verdict needs some with requires_grad")
    rate = (schedule or Milestones()).at(0)
    found = probe(model, batches[0], seed=seed)
    losses, wrong = _learn(model, batches, rate, optim or SGD(), seed)
    return decide(found, losses, wrong, rate, len(batches[0][1]), _classes(batches))


def decide(
    found: Probe, losses: Sequence[float], wrong: Sequence[int], rate: float, batch: int, classes: int
) -> Verdict:
    """The rule of this module, on what was measured.

    Args:
        found: of the initial weights.
        losses: of each new batch, before its update.
        wrong: answers of each new batch, before its update.
        rate: learning rate of the steps.
        batch: images in a batch.
        classes: that labels have.
    """
    back = found.backward
    gradient, straight = back["gradient"], back["straight"]
    assert gradient[0] is not None
    assert gradient[-1] is not None
    assert straight[0] is not None
    share = straight[0] / gradient[0] if gradient[0] else 0.0
    growth = gradient[0] / gradient[-1] if gradient[-1] else math.inf
    layer, update_size = max(
        ((name, rate * one["ratio"]) for name, one in found.weights.items()), key=lambda pair: pair[1]
    )
    half = len(wrong) // 2
    count = batch * (len(wrong) - half)
    error, chance = sum(wrong[half:]) / count, 1 - 1 / classes
    sigmas = (chance - error) / math.sqrt(chance * (1 - chance) / count)
    quarter = max(1, len(losses) // 4)
    ends = (sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter)

    finite = all(map(math.isfinite, losses))
    lost, overwritten, learned = share < FLOAT32_ROUNDING, update_size > 1, finite and sigmas > SIGMAS
    if not finite or (not learned and (lost or overwritten)):
        grade: Grade = "will not train"
    elif lost or overwritten or not learned:
        grade = "will train, but worse"
    else:
        grade = "will train"
    product = found.joins["product"][0]
    assert product is not None
    verdict = Verdict(
        grade=grade,
        because="",
        straight_share=share,
        product=product,
        growth=growth,
        largest_update=update_size,
        overwritten=layer,
        error_pct=100 * error,
        chance_pct=100 * chance,
        sigmas=sigmas,
        losses=ends,
        steps=len(losses),
    )
    return Verdict(**{**asdict(verdict), "losses": ends, "because": _sentence(verdict, found, finite)})


def score(grades: Mapping[str, Grade]) -> dict[str, Any]:
    """Verdicts against Tables 1 and 2, where "fail" is an error above 20 %.

    Args:
        grades: by network.

    Returns:
        ``rows`` (table, network, what the paper printed, the verdict, hit or miss), and for each table ``hits`` of
        ``networks``, and of ``settings``: rows as printed, of which one in Table 1 has the six gates from 0 to -5 and
        counts with the share of its hits.
    """
    found: dict[str, Any] = {"rows": []}
    for name, rows in (("table1", TABLE_1), ("table2", TABLE_2)):
        known = [row for row in rows if row.network in grades]
        hits = 0
        for row in known:
            hit = (grades[row.network] == "will not train") == (row.error_pct is None)
            hits += hit
            printed = "fail" if row.error_pct is None else row.error_pct
            found["rows"].append(
                {
                    "table": row.table,
                    "network": row.network,
                    "paper": printed,
                    "verdict": grades[row.network],
                    "hit": hit,
                }
            )
        printed_rows: dict[str, list[bool]] = {}
        for row in found["rows"]:
            if f"table{row['table']}" == name:
                gates = row["paper"] == "fail" and "-exclusive-gate-" in row["network"]
                printed_rows.setdefault("gates" if gates else row["network"], []).append(row["hit"])
        shares = [sum(one) / len(one) for one in printed_rows.values()]
        found[name] = {
            "hits": hits,
            "networks": len(known),
            "settings_hit": round(sum(shares), 2),
            "settings": len(shares),
        }
    return found


def _sentence(verdict: Verdict, found: Probe, finite: bool) -> str:
    factors = [factor for factor in found.joins["factor"] if factor is not None]
    mean = sum(factors) / len(factors) if factors else 1.0
    if not finite:
        return f"the loss is not finite within {verdict.steps} steps"
    parts = []
    if factors and all(factor == 0 for factor in factors):
        parts.append(f"no shortcut passes anything through {len(found.units)} units")
    elif verdict.straight_share < FLOAT32_ROUNDING <= verdict.product:  # lost in norms, masks or convolutions
        parts.append(
            f"shortcuts carry {verdict.straight_share:.1e} of the first unit's gradient, which float32 rounds away"
        )
    elif verdict.straight_share < FLOAT32_ROUNDING:
        parts.append(f"{len(factors)} shortcuts of {mean:.3g} leave {verdict.product:.1e} of the signal")
    else:
        parts.append(
            f"shortcuts carry {verdict.straight_share:.1e} of the first unit's gradient, more than float32 rounds away"
        )
    if verdict.largest_update > 1:
        parts.append(
            f"the gradient grows {verdict.growth:.1e} times on its way down, so that one step changes "
            f"{verdict.overwritten} by {verdict.largest_update:.1e} times its size"
        )
    chance = f"{verdict.error_pct:.1f} % wrong in the first {verdict.steps} steps, {verdict.chance_pct:.1f} % by chance"
    if verdict.sigmas > SIGMAS:
        parts.append(f"it has begun to learn ({chance})")
    elif verdict.grade == "will not train":
        parts.append(f"the residual branches do not make up for it ({chance})")
    else:
        parts.append(f"it has not begun to learn yet ({chance})")
    return "; ".join(parts)


def _learn(
    model: Network, batches: Sequence[tuple[Tensor, Tensor]], rate: float, optim: Optim, seed: int
) -> tuple[list[float], list[int]]:
    """Loss and wrong answers of each batch before its update, on a copy."""
    other = copy.deepcopy(model).train()
    optimizer = build_optimizer(other, optim)
    set_lr(optimizer, rate)
    losses, wrong = [], []
    with streams.same_randomness(seed, batches[0][0].device), torch.enable_grad():
        for x, y in batches:
            loss, missed = update(other, optimizer, x, y, None, "float32")
            losses.append(float(loss))
            wrong.append(int(missed))
            if not math.isfinite(losses[-1]):
                break
    return losses, wrong


def _classes(batches: Sequence[tuple[Tensor, Tensor]]) -> int:
    return max(2, len(torch.cat([y for _, y in batches]).unique()))
