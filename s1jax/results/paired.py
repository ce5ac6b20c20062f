"""Paired statistics: two conditions on the same problems -> their difference, its interval and its p-value.

With one answer per problem and condition, the test is McNemar's, exact and two-sided. The interval is Tango's score interval (Statistics in
Medicine 17, 1998), which is not empty if all answers agree.

With several answers, the value of a problem is its share of right answers. The test exchanges the two conditions within random problems;
with one answer per problem it would be McNemar's. The interval is that of a bootstrap over problems. Both are seeded. If all problems
have one difference, the bootstrap sees no spread: the interval then has the width of Tango's for as many problems that agree.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from s1jax.results.metrics import mean_interval

DRAWS = 10_000
"""Random draws of the bootstrap, and of the exchange test."""

_Z = statistics.NormalDist().inv_cdf(0.975)


def mcnemar(num_a: int, num_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    `num_a` problems are right under A alone, and `num_b` under B alone. If A and B are equally good, each of these problems is a fair coin:
    p is twice the binomial tail of the smaller number, at most 1.
    """
    total = num_a + num_b
    ways = tail = 1
    for i in range(min(num_a, num_b)):
        ways = ways * (total - i) // (i + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**total)


def difference_interval(num_a: int, num_b: int, num_problems: int) -> tuple[float, float]:
    """Return Tango's 95% score interval of the difference (num_b - num_a) / num_problems: (low, high).

    It holds each difference that the score test, under the likeliest discordance for that difference, does not reject.
    """
    difference = (num_b - num_a) / num_problems

    def z(delta: float) -> float:
        linear = -num_a - num_b + (2 * num_problems - num_b + num_a) * delta
        root = math.sqrt(max(linear**2 + 8 * num_problems * num_a * delta * (1 - delta), 0.0))
        only_a = (root - linear) / (4 * num_problems)
        variance = num_problems * (2 * only_a + delta * (1 - delta))
        gap = num_problems * (difference - delta)
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)

    return _bisect(lambda delta: z(delta) < _Z, -1.0, difference), _bisect(
        lambda delta: z(delta) < -_Z, difference, 1.0
    )


def _bisect(is_past: Callable[[float], bool], low: float, high: float) -> float:
    """Return where a condition that is false at `low` becomes true; `high` if it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if is_past(middle) else (middle, high)
    return high


def bootstrap_interval(differences: Sequence[float], draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean over problems drawn with replacement: (low, high)."""
    values, rng = np.asarray(differences), np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=(n, len(values)))].mean(1) for n in _portions(draws, len(values))]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def exchange_test(differences: Sequence[float], draws: int = DRAWS, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean difference, from random exchanges of A and B within each problem.

    p = (1 + number of draws whose mean is at least as far from 0) / (1 + draws), so it is never 0.
    """
    values, rng = np.asarray(differences, float), np.random.default_rng(seed)
    sums = [(2 * rng.integers(2, size=(n, len(values))) - 1) @ values for n in _portions(draws, len(values))]
    as_far = np.abs(np.concatenate(sums)) >= abs(values.sum()) - 1e-9 * len(values)
    return (1 + int(as_far.sum())) / (1 + draws)


def _portions(draws: int, num_values: int) -> list[int]:
    """Split draws into portions of about 32 MB."""
    size = max(1, 2**22 // num_values)
    return [min(size, draws - start) for start in range(0, draws, size)]


def compare_answers(
    a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]], draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Compare the verdicts of each problem under A and under B. Both list the same problems, with at least one verdict each.

    Returns, as fractions of 1, `accuracy_a` and `accuracy_b` with their intervals (`_low`, `_high`) and `difference` = B - A with its
    interval; `num_a_better` and `num_b_better`, the problems on which one has the larger share of right answers; `p_value`; and `test`,
    "McNemar" or "exchange" (see above).
    """
    of_a, of_b = ([statistics.fmean(verdicts) for verdicts in side] for side in (a, b))
    differences = [y - x for x, y in zip(of_a, of_b, strict=True)]
    result: dict[str, Any] = {"num_problems": len(differences)}
    for name, side, shares in (("accuracy_a", a, of_a), ("accuracy_b", b, of_b)):
        interval = mean_interval(shares, sum(map(len, side)))
        result |= dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
    num_a, num_b = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    if all(len(verdicts) == 1 for verdicts in (*a, *b)):
        test, p_value = "McNemar", mcnemar(num_a, num_b)
        low, high = difference_interval(num_a, num_b, len(differences))
    else:
        test, p_value = "exchange", exchange_test(differences, draws, seed)
        low, high = bootstrap_interval(differences, draws, seed)
        if len(set(differences)) == 1:
            width = difference_interval(0, 0, len(differences))[1]
            low, high = max(low - width, -1.0), min(high + width, 1.0)
    return result | {
        "difference": statistics.fmean(differences), "difference_low": low, "difference_high": high,
        "num_a_better": num_a, "num_b_better": num_b, "p_value": p_value, "test": test,
    }  # fmt: skip


def explain_test(tests: set[str], draws: int = DRAWS, seed: int = 0) -> list[str]:
    """Return what stands below a table with p-values of these tests."""
    notes = []
    if "McNemar" in tests:
        notes.append("p: McNemar's test, exact and two-sided, if there is one answer per problem")
    if "exchange" in tests:
        notes.append(
            f"p: {draws:,} random exchanges within problems (seed {seed}), if there are several answers per problem"
        )
    return notes
