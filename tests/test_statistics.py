"""What a few seeds say, checked by hand and by enumeration."""

import itertools
import math

import numpy as np
import pytest

from preresnet.paper.claims import Claim
from preresnet.study import statistics
from preresnet.study.manifest import Difference, Statistics
from preresnet.study.statistics import Measured, answer, difference, interval, of_row, p_value

INF = math.inf
LOWER = Claim(text="a beats b", source="", better="a", worse="b", kind="lower error")
FAILS = Claim(text="b fails", source="", better="a", worse="b", kind="fails")


def test_of_a_row() -> None:
    found = of_row(Measured((6.4, 6.2, 6.9, 6.3, 6.5)))
    assert found is not None
    assert (found.n, found.median, found.mean, found.failed) == (5, 6.4, 6.46, 0)
    assert found.std == pytest.approx(np.std([6.4, 6.2, 6.9, 6.3, 6.5], ddof=1), abs=1e-4)
    assert found.interval is not None
    low, high = found.interval
    assert 6.2 <= low < 6.4 < high <= 6.9


def test_few_runs_have_no_interval_and_one_no_deviation() -> None:
    assert of_row(Measured(())) is None
    one, two = of_row(Measured((5.0,))), of_row(Measured((5.0, 6.0)))
    assert one is not None
    assert two is not None
    assert (one.median, one.std, one.interval) == (5.0, None, None)
    assert two.std is not None
    assert two.interval is None


def test_a_run_that_diverged_counts_as_the_worst() -> None:
    found = of_row(Measured((6.0, INF, 7.0)))
    assert found == Statistics(3, (6.0, 7.0), 7.0, None, None, None, diverged=1, failed=1)
    found = of_row(Measured((6.0, INF, INF)))
    assert found is not None
    assert found.median is None


def test_fail_is_counted_only_where_the_paper_defines_it() -> None:
    for errors, limit, diverged, failed in (
        ((19.9, 20.0, 20.1), 20.0, 0, 1),
        ((59.0, INF), 20.0, 1, 2),
        ((59.0, INF), None, 1, None),
        ((90.0,), None, 0, None),
    ):
        found = of_row(Measured(errors, fails_above=limit))
        assert found is not None
        assert (found.diverged, found.failed) == (diverged, failed)


def test_the_interval_of_equal_errors_has_no_width() -> None:
    assert interval([5.0, 5.0, 5.0]) == (5.0, 5.0)
    assert interval([5.0, 5.0, 5.0], [4.0, 4.0, 4.0]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), ([1.0, 3.0, 3.0], [2.0, 3.0, 5.0, 6.0]), ([1.0, INF], [2.0, 3.0, 4.0])],
)
def test_the_test_is_exact_with_ties_and_failures(a: list[float], b: list[float]) -> None:
    """Against every way of giving the errors to the two rows."""

    def u(ours: tuple[float, ...], theirs: list[float]) -> float:
        return sum((x > y) + 0.5 * (x == y) for x in ours for y in theirs)

    pooled, found = a + b, u(tuple(a), b)
    counts = []
    for chosen in itertools.combinations(range(len(pooled)), len(a)):
        rest = [pooled[i] for i in range(len(pooled)) if i not in chosen]
        counts.append(u(tuple(pooled[i] for i in chosen), rest) <= found)
    assert p_value(a, b, "less") == pytest.approx(np.mean(counts))


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> Difference | None:
    return difference({"a": Measured(a), "b": Measured(b)}, "a", "b")


def test_a_difference() -> None:
    found = apart((6.0, 6.1, 6.2), (7.0, 7.1, 7.2))
    assert found is not None
    assert (found.difference, found.n) == (-1.0, (3, 3))
    assert found.p == pytest.approx(0.1)  # the smallest that 3 against 3 can give, two-sided
    assert found.interval is not None
    assert found.interval[1] < 0
    single, endless = apart((6.0,), (7.0,)), apart((INF,), (7.0,))
    assert single is not None
    assert single.p is None
    assert apart((), (7.0,)) is None
    assert endless is not None
    assert endless.difference is None


@pytest.mark.parametrize(
    ("better", "worse", "expected", "words"),
    [
        ((6.0,), (7.0,), "not enough runs", "the paper's direction"),
        ((7.0,), (6.0,), "not enough runs", "not the paper's direction"),
        ((6.0, 6.1), (7.0, 7.1), "not enough runs", "Median 6.05 % of 2"),
        ((6.0, 6.1, 6.2), (7.0, 7.1, 7.2), "yes", "p = 0.050"),
        ((7.0, 7.1, 7.2), (6.0, 6.1, 6.2), "no", "the reverse is significant"),
        ((6.0, 6.1, 7.3), (7.0, 7.1, 7.2), "not enough runs", "within the noise"),
        ((6.0, 6.1, 6.2), (INF, INF, INF), "yes", "inf"),
        ((6.1, 6.2, 6.3, 6.4, 6.5), (6.15, 6.25, 6.35, 6.45, 6.55), "no", "within the noise"),
        ((), (6.0,), "not enough runs", "No run"),
    ],
)
def test_a_claim_about_errors(better: tuple[float, ...], worse: tuple[float, ...], expected: str, words: str) -> None:
    said, evidence = answer(LOWER, Measured(better), Measured(worse))
    assert said == expected
    assert words in evidence


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ((6.0, 6.1, 6.2), (25.0, INF, 8.0), "yes"),
        ((6.0, 6.1, 6.2), (25.0, 9.0, 8.0), "no"),
        ((6.0, 6.1), (25.0, 30.0), "not enough runs"),
        ((26.0, 26.1, 26.2), (35.0, 30.0, 40.0), "not enough runs"),  # where the original fails too
        ((6.0, 6.1, 6.2), (), "not enough runs"),
    ],
)
def test_a_claim_of_failure_is_counted(better: tuple[float, ...], worse: tuple[float, ...], expected: str) -> None:
    assert answer(FAILS, Measured(better), Measured(worse))[0] == expected


def test_a_claim_of_failure_is_not_answered_at_another_length() -> None:
    runs = (Measured((59.0,) * 5, fails_above=None), Measured((88.0,) * 5, fails_above=None))
    said, evidence = answer(FAILS, *runs)
    assert said == "not at this length"
    assert evidence == "Median 88.00 % of 5 against 59.00 % of 5; the limit of 20 % is that of the paper's full length."


def test_claims_about_losses_compare_losses() -> None:
    loss = Claim(text="", source="", better="a", worse="b", kind="lower training loss")
    early = Claim(text="", source="", better="a", worse="b", kind="lower early training loss")
    a = Measured((9.0,) * 3, training_losses=(0.1, 0.11, 0.12), early_losses=(1.5, 1.6, 1.7))
    b = Measured((5.0,) * 3, training_losses=(0.2, 0.21, 0.22), early_losses=(1.2, 1.3, 1.4))
    assert answer(loss, a, b)[0] == "yes"
    assert answer(early, a, b)[0] == "no"
    assert answer(LOWER, a, b)[0] == "no"


def test_a_true_null_is_called_significant_as_often_as_the_level_says() -> None:
    """Five against five seeds of the same normal law: at most 5 % of "yes", and not far fewer."""
    random = np.random.RandomState(0)
    ones = 0
    for _ in range(400):
        a, b = random.normal(size=(2, 5)).tolist()
        ones += statistics.p_value(a, b, "less") <= statistics.LEVEL
    assert 0.02 <= ones / 400 <= 0.07
