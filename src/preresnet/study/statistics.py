"""What do the errors of a few seeds say: about a row, about the difference of two, about a claim?

The rule, argued in docs/guide/reproduce.md: a claim of the paper has a direction, so its test is one-sided, and exact,
for there are few seeds. "Not enough runs" is said where even a complete separation of the seeds would not reach 5 %.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from preresnet.paper.claims import Claim
from preresnet.paper.tables import FAIL_PCT

LEVEL = 0.05 + 1e-9  # 3 against 3 seeds reach 1/20, which is to count
PAPERS_RUNS = 5  # "median of 5 runs"
RESAMPLES = 9_999
FEWEST_FOR_INTERVAL = 3


@dataclass(frozen=True)
class Measured:
    """What was measured in the runs of a row; lists hold one number a run.

    Args:
        errors: at the last step, per cent; infinite for a run whose loss was not finite.
        training_losses: at the end of training.
        early_losses: mean training loss of the first tenth.
        fails_above: error above which the paper says "fail"; None where it does not (CIFAR-100, other studies).
    """

    errors: tuple[float, ...]
    training_losses: tuple[float, ...] = ()
    early_losses: tuple[float, ...] = ()
    fails_above: float | None = FAIL_PCT

    @property
    def failed(self) -> int:
        """Runs with an error above the limit, or whose loss was not finite."""
        limit = math.inf if self.fails_above is None else self.fails_above
        return sum(error > limit or math.isinf(error) for error in self.errors)


def of_row(measured: Measured) -> dict[str, Any] | None:
    """Statistics of the errors of a row.

    Returns:
        None without runs; else ``n`` (runs, with those whose loss was not finite), ``errors`` (of the others),
        ``median`` (None if it is such a run), ``mean``, ``std`` (n - 1 below; both None if a loss was not finite),
        ``interval`` (bootstrap, 95 %, of the median, from 3 runs on), ``failed``.
    """
    errors = measured.errors
    if not errors:
        return None
    finite = [error for error in errors if math.isfinite(error)]
    whole = len(finite) == len(errors)
    median = float(np.median(errors))
    return {
        "n": len(errors),
        "errors": finite,
        "median": _number(median),
        "mean": _number(float(np.mean(finite))) if whole else None,
        "std": _number(float(np.std(finite, ddof=1))) if whole and len(finite) > 1 else None,
        "interval": interval(errors) if whole else None,
        "failed": measured.failed,
    }


def interval(a: Sequence[float], b: Sequence[float] | None = None) -> list[float] | None:
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
    return [round(float(found.low), 4), round(float(found.high), 4)]


def p_value(a: Sequence[float], b: Sequence[float], alternative: str = "two-sided") -> float:
    """Exact permutation test of the rank sum (Mann-Whitney with ties); ``less``: a lies below b."""
    # not the method "exact", which wants no ties: errors on 10,000 images have them
    method: Any = stats.PermutationMethod(n_resamples=99_999, rng=np.random.default_rng(0))
    return float(stats.mannwhitneyu(a, b, alternative=alternative, method=method).pvalue)


def least_p(num_a: int, num_b: int) -> float:
    """The smallest one-sided p that so many runs can give: all of one side below all of the other."""
    return 1 / math.comb(num_a + num_b, num_a)


def difference(a: Measured, b: Measured) -> dict[str, Any] | None:
    """How two rows differ: ``difference`` of medians (a - b), its ``interval``, two-sided ``p``, ``n``.

    None without runs; ``p`` is None where no difference could reach 5 % one-sided (10 % two-sided).
    """
    if not a.errors or not b.errors:
        return None
    apart = float(np.median(a.errors)) - float(np.median(b.errors))
    counts = [len(a.errors), len(b.errors)]
    return {
        "difference": _number(apart),
        "interval": interval(a.errors, b.errors),
        "p": p_value(a.errors, b.errors) if least_p(*counts) <= LEVEL else None,
        "n": counts,
    }


def answer(claim: Claim, better: Measured, worse: Measured) -> dict[str, str]:
    """Does a claim of the paper hold in these runs?

    Returns:
        ``answer``: ``yes``, ``no`` or ``not enough runs``; ``evidence``: one sentence with the numbers.
    """
    if claim.kind == "fails":
        return _answer_fails(better, worse)
    unit, digits, (low, high) = _compared(claim, better, worse)
    if not low or not high:
        return {"answer": "not enough runs", "evidence": "No run of one of the two rows is finished."}
    medians = float(np.median(low)), float(np.median(high))
    words = f"Median {medians[0]:.{digits}f}{unit} of {len(low)} against {medians[1]:.{digits}f}{unit} of {len(high)}"
    direction = "the paper's direction" if medians[0] < medians[1] else "not the paper's direction"
    if least_p(len(low), len(high)) > LEVEL:
        return {"answer": "not enough runs", "evidence": f"{words}: {direction}."}
    p, reverse = p_value(low, high, "less"), p_value(low, high, "greater")
    evidence = f"{words}; one-sided exact p = {p:.3f}"
    if p <= LEVEL:
        return {"answer": "yes", "evidence": f"{evidence}."}
    if reverse <= LEVEL:
        return {"answer": "no", "evidence": f"{evidence}; the reverse is significant (p = {reverse:.3f})."}
    if min(len(low), len(high)) >= PAPERS_RUNS:
        return {"answer": "no", "evidence": f"{evidence}: within the noise of the seeds ({direction})."}
    return {"answer": "not enough runs", "evidence": f"{evidence}: within the noise of the seeds ({direction})."}


def _answer_fails(better: Measured, worse: Measured) -> dict[str, str]:
    counts = f"{worse.failed} of {len(worse.errors)} runs fail, {better.failed} of {len(better.errors)} of the original"
    if not worse.errors or not better.errors:
        return {"answer": "not enough runs", "evidence": "No run of one of the two rows is finished."}
    if 2 * better.failed > len(better.errors):
        # the length is too short for the limit to say anything
        return {"answer": "not enough runs", "evidence": f"{counts}: at this length the limit of 20 % tells nothing."}
    if min(len(worse.errors), len(better.errors)) < FEWEST_FOR_INTERVAL:
        return {"answer": "not enough runs", "evidence": f"{counts}."}
    return {"answer": "yes" if 2 * worse.failed > len(worse.errors) else "no", "evidence": f"{counts}."}


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
