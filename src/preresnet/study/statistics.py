"""What the errors of a few seeds say: about a row, about the difference of two, about a claim.

The rule, argued in docs/guide/reproduce.md: a claim of the paper has a direction, so its test is one-sided, and exact,
for there are few seeds. "Not enough runs" is said where even a complete separation of the seeds would not reach 5 %.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from preresnet.paper.claims import Claim
from preresnet.paper.tables import FAIL_PCT
from preresnet.study.manifest import AnswerWord, Difference, Statistics

LEVEL = 0.05 + 1e-9  # 3 against 3 seeds reach 1/20, which is to count
PAPERS_RUNS = 5  # "median of 5 runs"
RESAMPLES = 9_999
FEWEST_FOR_INTERVAL = 3


@dataclass(frozen=True)
class Measured:
    """What was measured in the runs of a row; lists hold one number for each run.

    Args:
        errors: at the last step, per cent; infinite for a run whose loss was not finite.
        training_losses: at the end of training.
        early_losses: mean training loss of the first tenth.
        fails_above: error above which the paper says "fail"; None where its rule says nothing: shortened runs,
            CIFAR-100, sweeps.
    """

    errors: tuple[float, ...]
    training_losses: tuple[float, ...] = ()
    early_losses: tuple[float, ...] = ()
    fails_above: float | None = FAIL_PCT

    @property
    def diverged(self) -> int:
        """Runs whose loss was not finite."""
        return sum(math.isinf(error) for error in self.errors)

    @property
    def failed(self) -> int | None:
        """Runs with an error above the limit, or whose loss was not finite; None without a limit."""
        return None if self.fails_above is None else sum(error > self.fails_above for error in self.errors)


def of_row(measured: Measured) -> Statistics | None:
    """Statistics of the errors of a row; None without runs."""
    errors = measured.errors
    if not errors:
        return None
    finite = [error for error in errors if math.isfinite(error)]
    whole = len(finite) == len(errors)
    return Statistics(
        n=len(errors),
        errors=tuple(finite),
        median=_number(float(np.median(errors))),
        mean=_number(float(np.mean(finite))) if whole else None,
        std=_number(float(np.std(finite, ddof=1))) if whole and len(finite) > 1 else None,
        interval=interval(errors) if whole else None,
        diverged=measured.diverged,
        failed=measured.failed,
    )


def interval(a: Sequence[float], b: Sequence[float] | None = None) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of a median, or of the difference of two; None below 3 runs."""
    samples = [np.asarray(sample, dtype=float) for sample in (a, b) if sample is not None]
    if min(map(len, samples)) < FEWEST_FOR_INTERVAL or not all(np.isfinite(sample).all() for sample in samples):
        return None

    def statistic(*parts: np.ndarray, axis: int) -> np.ndarray:
        medians = [np.median(part, axis=axis) for part in parts]
        return medians[0] if len(medians) == 1 else medians[0] - medians[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # equal errors: an interval of no width
        found = stats.bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return round(float(found.low), 4), round(float(found.high), 4)


def p_value(a: Sequence[float], b: Sequence[float], alternative: str = "two-sided") -> float:
    """Exact permutation test of the rank sum (Mann-Whitney with ties); ``less``: a lies below b."""
    # not the method "exact", which wants no ties: errors on 10,000 images have them
    method: Any = stats.PermutationMethod(n_resamples=99_999, rng=np.random.default_rng(0))
    return float(stats.mannwhitneyu(a, b, alternative=alternative, method=method).pvalue)


def least_p(num_a: int, num_b: int) -> float:
    """The smallest one-sided p that so many runs can give: all of one side below all of the other."""
    return 1 / math.comb(num_a + num_b, num_a)


def difference(measured: Mapping[str, Measured], a: str, b: str) -> Difference | None:
    """How two rows differ; None without runs of both.

    Args:
        measured: by the names of rows.
        a: name of the first row.
        b: name of the second.
    """
    first, second = measured[a].errors, measured[b].errors
    if not first or not second:
        return None
    return Difference(
        a,
        b,
        _number(float(np.median(first)) - float(np.median(second))),
        (len(first), len(second)),
        interval(first, second),
        # no difference of so few could reach 5 % one-sided (10 % two-sided)
        p_value(first, second) if least_p(len(first), len(second)) <= LEVEL else None,
    )


def answer(claim: Claim, better: Measured, worse: Measured) -> tuple[AnswerWord, str]:
    """Whether a claim of the paper holds in these runs, and one sentence with the numbers."""
    if claim.kind == "fails":
        return _answer_fails(better, worse)
    unit, digits, (low, high) = _compared(claim, better, worse)
    if not low or not high:
        return "not enough runs", "No run of one of the two rows is finished."
    medians = float(np.median(low)), float(np.median(high))
    words = f"Median {medians[0]:.{digits}f}{unit} of {len(low)} against {medians[1]:.{digits}f}{unit} of {len(high)}"
    direction = "the paper's direction" if medians[0] < medians[1] else "not the paper's direction"
    if least_p(len(low), len(high)) > LEVEL:
        return "not enough runs", f"{words}: {direction}."
    p, reverse = p_value(low, high, "less"), p_value(low, high, "greater")
    evidence = f"{words}; one-sided exact p = {p:.3f}"
    if p <= LEVEL:
        return "yes", f"{evidence}."
    if reverse <= LEVEL:
        return "no", f"{evidence}; the reverse is significant (p = {reverse:.3f})."
    decided = min(len(low), len(high)) >= PAPERS_RUNS
    return "no" if decided else "not enough runs", f"{evidence}: within the noise of the seeds ({direction})."


def _answer_fails(better: Measured, worse: Measured) -> tuple[AnswerWord, str]:
    if not worse.errors or not better.errors:
        return "not enough runs", "No run of one of the two rows is finished."
    failed, originals = worse.failed, better.failed
    if failed is None or originals is None:
        medians = (f"{float(np.median(one.errors)):.2f} % of {len(one.errors)}" for one in (worse, better))
        return (
            "not at this length",
            f"Median {' against '.join(medians)}; the limit of 20 % is that of the paper's full length.",
        )
    counts = f"{failed} of {len(worse.errors)} runs fail, {originals} of {len(better.errors)} of the original"
    if 2 * originals > len(better.errors):
        return "not enough runs", f"{counts}: where the original fails too, the limit of 20 % tells nothing."
    if min(len(worse.errors), len(better.errors)) < FEWEST_FOR_INTERVAL:
        return "not enough runs", f"{counts}."
    return "yes" if 2 * failed > len(worse.errors) else "no", f"{counts}."


def _compared(
    claim: Claim, better: Measured, worse: Measured
) -> tuple[str, int, tuple[tuple[float, ...], tuple[float, ...]]]:
    if claim.kind == "lower error":
        return " %", 2, (better.errors, worse.errors)
    if claim.kind == "lower training loss":
        return "", 4, (better.training_losses, worse.training_losses)
    return "", 4, (better.early_losses, worse.early_losses)


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None  # JSON has no infinity
