"""`paired.py`: tests and intervals of paired answers, against scipy and brute force."""

import itertools
import random
import statistics

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest

from s1jax.results.paired import bootstrap_interval, compare_answers, difference_interval, exchange_test, mcnemar


def test_mcnemar_equals_scipys_exact_binomial_test():
    for a, b in itertools.product((0, 1, 2, 3, 7, 8, 15, 40, 350), repeat=2):
        expected = binomtest(a, a + b).pvalue if a + b else 1.0
        assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9), (a, b)
    assert mcnemar(9000, 11000) == pytest.approx(binomtest(9000, 20000).pvalue, rel=1e-6)


def test_mcnemar_equals_the_enumeration_of_every_coin():
    for a, b in itertools.product(range(5), repeat=2):
        n = a + b
        outcomes = [abs(2 * sum(coins) - n) >= abs(a - b) for coins in itertools.product((0, 1), repeat=n)]
        assert mcnemar(a, b) == pytest.approx(statistics.fmean(outcomes))


def score(only_a, only_b, n, delta):
    """The score statistic with the likeliest discordance found by a search, not by the formula."""
    low = max(0.0, -delta)
    high = (1 - delta) / 2

    def minus_log_likelihood(q):
        parts = ((only_b, q + delta), (only_a, q), (n - only_a - only_b, 1 - 2 * q - delta))
        return -sum(count * np.log(max(p, 1e-300)) for count, p in parts if count)

    found = minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return (only_b - only_a - n * delta) / np.sqrt(n * (2 * found.x + delta - delta**2))


@pytest.mark.parametrize(("a", "b", "n"), [(3, 8, 30), (1, 1, 30), (40, 90, 500), (0, 4, 30), (12, 2, 44)])
def test_the_interval_of_a_difference_is_where_the_score_test_accepts(a, b, n):
    d, edge = (b - a) / n, 1e-6
    low = brentq(lambda delta: score(a, b, n, delta) - 1.959964, -1 + edge, d - edge)
    high = brentq(lambda delta: score(a, b, n, delta) + 1.959964, d + edge, 1 - edge)
    assert difference_interval(a, b, n) == pytest.approx((low, high), abs=2e-4)
    assert difference_interval(b, a, n) == pytest.approx((-high, -low), abs=2e-4)


def test_the_interval_is_not_empty_if_all_answers_agree_and_stays_within_one():
    low, high = difference_interval(0, 0, 30)
    z2 = 1.959964**2
    assert (low, high) == pytest.approx((-z2 / (30 + z2), z2 / (30 + z2)), abs=1e-6)
    assert difference_interval(0, 7, 7)[1] == pytest.approx(1) and difference_interval(0, 7, 7)[0] > 0


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_both_intervals_cover_the_truth_about_95_times_in_100(shift):
    rng, num, covered = np.random.default_rng(0), 40, [0, 0]
    for trial in range(300):
        chance = rng.beta(2, 2, size=num) * (1 - shift)
        single = rng.random((2, num)) < np.stack([chance, chance + shift])
        only_a, only_b = (int(x) for x in ((single[0] & ~single[1]).sum(), (single[1] & ~single[0]).sum()))
        low, high = difference_interval(only_a, only_b, num)
        covered[0] += low <= shift <= high
        several = [rng.binomial(8, p) / 8 for p in (chance, chance + shift)]
        low, high = bootstrap_interval((several[1] - several[0]).tolist(), 500, seed=trial)
        covered[1] += low <= shift <= high
    assert all(0.91 <= count / 300 <= 0.99 for count in covered), covered


def test_the_exchange_test_equals_every_exchange_and_with_one_answer_mcnemar():
    rng = random.Random(3)
    for trial in range(5):
        values = [rng.choice([-0.5, -0.25, 0.0, 0.25, 0.5, 1.0]) for _ in range(9)]
        signs = itertools.product((-1, 1), repeat=9)
        far = [abs(sum(s * v for s, v in zip(sign, values, strict=True))) >= abs(sum(values)) - 1e-12 for sign in signs]
        assert exchange_test(values, 40_000, seed=trial) == pytest.approx(statistics.fmean(far), abs=0.015), trial
    single = [1.0] * 9 + [-1.0] * 2 + [0.0] * 20
    assert exchange_test(single, 40_000) == pytest.approx(mcnemar(2, 9), abs=0.01)
    assert exchange_test([0.0] * 4) == 1 and exchange_test([1.0] * 30) == 1 / 10_001


def test_a_comparison_counts_by_problem_and_draws_by_its_seed():
    one = compare_answers([[True], [True], [False]], [[True], [False], [False]])
    assert (one["accuracy_a"], one["accuracy_b"], one["difference"]) == pytest.approx((2 / 3, 1 / 3, -1 / 3))
    assert (one["num_a_better"], one["num_b_better"], one["test"], one["p_value"]) == (1, 0, "McNemar", 1)
    rng = random.Random(0)
    a, b = ([[rng.random() < p for _ in range(4)] for _ in range(20)] for p in (0.3, 0.7))
    several = compare_answers(a, b, 2000, seed=1)
    assert several["test"] == "exchange" and several["p_value"] < 0.01
    assert several["difference_low"] < several["difference"] < several["difference_high"]
    assert several == compare_answers(a, b, 2000, seed=1) != compare_answers(a, b, 2000, seed=2)
    flipped = compare_answers(b, a, 2000, seed=1)
    assert flipped["difference"] == pytest.approx(-several["difference"])
    assert (flipped["num_a_better"], flipped["p_value"]) == (several["num_b_better"], several["p_value"])


@pytest.mark.parametrize(
    ("a", "b", "difference"), [((True, False), (False, True), 0.0), ((False, False), (True, True), 1.0)]
)
def test_the_interval_is_not_empty_if_all_problems_have_one_difference(a, b, difference):
    result = compare_answers([a] * 30, [b] * 30, draws=200)
    width = difference_interval(0, 0, 30)[1]
    assert result["difference"] == difference and 0.05 < width < 0.2
    assert (result["difference_low"], result["difference_high"]) == (difference - width, min(difference + width, 1.0))
