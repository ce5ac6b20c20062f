"""Metrics: sample rows -> points of the scaling curves, as fractions of 1. `control.py` sums up whole curves.

Invariants: a statistic is first taken per problem, then averaged over problems. Intervals are over problems, as if the problems had been
drawn at random. Rows that differ in any column of `SETTING` are never pooled. Copies of a sample count once (`distinct_samples`).
`votes.py` says how samples vote.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from s1jax.data.control_methods import count_steps
from s1jax.results.samples import SETTING, SampleRow, distinct_samples, is_forced, pick
from s1jax.results.votes import count_votes, maj_at_k, pass_at_k

Point = dict[str, Any]
"""A point of a curve: the columns of `SETTING` and the statistics that `thinking_curve` or `voting_curve` lists."""

_Z = statistics.NormalDist().inv_cdf(0.975)


def mean_interval(values: Sequence[float], max_draws: float) -> tuple[float, float, float]:
    """Return the mean over problems of a statistic in [0, 1], with its 95% interval: (mean, low, high).

    `max_draws` is an upper bound on the number of independent draws behind the values, at least one per problem. The interval is Wilson's
    at the effective number of draws, mean (1 - mean) / (variance / problems), which is Kish's design effect. Unlike a bootstrap interval it
    is not empty at 0% or 100%.
    """
    count, mean = len(values), statistics.fmean(values)
    binomial = mean * (1 - mean)
    variance = statistics.fmean([(value - mean) ** 2 for value in values])
    draws = count if binomial == 0 else min(count * binomial / variance, max_draws) if variance else max_draws
    centre = (mean + _Z**2 / (2 * draws)) / (1 + _Z**2 / draws)
    half = _Z * math.sqrt(binomial / draws + _Z**2 / (4 * draws**2)) / (1 + _Z**2 / draws)
    # Rounding may push a bound past the mean, or out of [0, 1], by one unit in the last place.
    return mean, min(max(centre - half, 0.0), mean), max(min(centre + half, 1.0), mean)


# ---- curves ----


def by_setting(rows: Sequence[SampleRow]) -> Iterator[tuple[dict[str, Any], list[list[SampleRow]]]]:
    """Yield (columns of `SETTING`, rows of each problem) of distinct samples, sorted by setting."""
    settings: dict[tuple[Any, ...], dict[str, list[SampleRow]]] = {}
    for row in distinct_samples(rows):
        problems = settings.setdefault(pick(row, SETTING), {})
        problems.setdefault(row["problem_id"], []).append(row)
    for key in sorted(settings, key=lambda key: [(value is not None, _order(value)) for value in key]):
        yield dict(zip(SETTING, key, strict=True)), list(settings[key].values())


def _order(value: Any) -> Any:
    """Return what sorts the values of a column: numbers that are written as text, such as an amount of thinking, sort as numbers."""
    return (len(value) if value.isdecimal() else 0, value) if isinstance(value, str) else value


def count_problems(problems: Sequence[list[SampleRow]]) -> dict[str, Any]:
    """Return `num_problems`, and `problem_set`, a hash of the problems' ids, for the rows of each problem."""
    ids = json.dumps(sorted(group[0]["problem_id"] for group in problems))
    return {"num_problems": len(problems), "problem_set": hashlib.sha256(ids.encode()).hexdigest()[:12]}


def with_interval(name: str, values: Sequence[float], max_draws: float) -> dict[str, float]:
    """Return the mean of a statistic as `name`, and its 95% interval as `name`_low and `name`_high (`mean_interval`)."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(values, max_draws), strict=True))


def thinking_curve(rows: Sequence[SampleRow]) -> list[Point]:
    """Return one point of the sequential curve per setting, sorted by setting.

    A point has `n` samples of `num_problems` problems (`problem_set` is a hash of their ids), `accuracy` with its interval
    (`accuracy_low`, `accuracy_high`), `mean_thinking_tokens`, and numbers of samples: those whose thinking reached the budget
    (`num_budget_ended`) or went past it (`num_over_budget`), whose answer was cut by its limit (`num_cut`), whose
    answer could not be found in its text (`num_not_found`), and whose comparison with the gold answer took too long (`num_timed_out`).

    Rejection sampling adds `mean_tries`, `mean_rejected_tokens` and `num_rejected`, the samples of which every trace was too long.
    Step-conditional control adds `mean_steps`, `num_steps_over` (samples with more steps than were asked for) and `num_without_steps`.
    """
    points = []
    for setting, problems in by_setting(rows):
        samples = [row for group in problems for row in group]
        budget = setting["max_thinking_tokens"]
        solved = [statistics.fmean(row["correct"] for row in group) for group in problems]
        tokens = [statistics.fmean(row["num_thinking_tokens"] for row in group) for group in problems]
        point = setting | {"n": len(samples), **count_problems(problems)}
        point |= with_interval("accuracy", solved, len(samples))
        point["mean_thinking_tokens"] = statistics.fmean(tokens)
        point["num_budget_ended"] = sum(map(is_forced, samples))
        point["num_over_budget"] = sum(is_forced(row) and row["num_thinking_tokens"] > budget for row in samples)
        point["num_cut"] = sum(row["finish_reason"] == "length" for row in samples)
        answered = [row for row in samples if row["finish_reason"] != "rejected"]
        point["num_not_found"] = sum(row["extracted"] is None for row in answered)
        point["num_timed_out"] = sum(row["verdict"] == "timed_out" for row in samples)
        if setting["method"] == "rejection_sampling":
            point["mean_tries"] = statistics.fmean(row["num_tries"] for row in samples)
            point["mean_rejected_tokens"] = statistics.fmean(row["num_rejected_tokens"] for row in samples)
            point["num_rejected"] = sum(row["finish_reason"] == "rejected" for row in samples)
        if setting["method"].startswith("step_conditional"):
            steps = [count_steps(row["thinking"]) for row in samples]
            point["mean_steps"] = statistics.fmean(steps)
            point["num_steps_over"] = sum(num > int(setting["requested"]) for num in steps)
            point["num_without_steps"] = steps.count(0)
        points.append(point)
    return points


def voting_curve(rows: Sequence[SampleRow]) -> list[Point]:
    """Return the points of the parallel curves, for k = 1, 2, 4, ... up to `num_samples`, the samples that each problem has.

    A setting with one sample of some problem has no points. A point has `maj_at_k` and `pass_at_k` over `num_problems` problems, each with
    its interval.
    """
    points = []
    for setting, problems in by_setting(rows):
        num_samples = min(len(group) for group in problems)
        if num_samples < 2:
            continue
        votes = [count_votes([row["extracted"] for row in g], [row["correct"] for row in g]) for g in problems]
        for k in (2**i for i in range(num_samples.bit_length())):
            num_draws = sum(len(group) // k for group in problems)
            solved = [pass_at_k(len(group), right, k) for group, (right, _, _) in zip(problems, votes, strict=True)]
            point = setting | {"k": k, "num_problems": len(problems), "num_samples": num_samples}
            point |= with_interval("maj_at_k", [maj_at_k(v, k) for v in votes], num_draws)
            points.append(point | with_interval("pass_at_k", solved, num_draws))
    return points
