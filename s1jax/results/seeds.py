"""Accuracy of each seed, and how much it differs between seeds. At temperature 0 a seed changes nothing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from s1jax.results.metrics import Point, by_setting
from s1jax.results.samples import SampleRow


def seed_spread(rows: Sequence[SampleRow]) -> list[Point]:
    """Return a point per setting that has several seeds, sorted by setting.

    A point has the columns of `SETTING`, `seeds` (a list of the `seed`, its `accuracy`, `mean_thinking_tokens` and number of answers `n`;
    each is first taken per problem), and over the seeds the `mean`, the standard deviation `deviation` (with n - 1), the `lowest` and
    the `highest` accuracy. Only problems that every seed answered count: `num_problems`; `num_left_out` are the others. Without a common
    problem there is no point. Accuracies are fractions of 1.
    """
    points = []
    for setting, problems in by_setting(rows):
        by_seed: dict[int, dict[str, list[SampleRow]]] = defaultdict(lambda: defaultdict(list))
        for row in (row for group in problems for row in group):
            by_seed[row["seed"]][row["problem_id"]].append(row)
        common = set.intersection(*(set(answered) for answered in by_seed.values()))
        if len(by_seed) < 2 or not common or not setting["temperature"]:
            continue
        seeds = [_of_seed(seed, [by_seed[seed][problem] for problem in sorted(common)]) for seed in sorted(by_seed)]
        accuracies = [seed["accuracy"] for seed in seeds]
        points.append(
            setting
            | {"seeds": seeds, "num_problems": len(common), "num_left_out": len(problems) - len(common)}
            | {"mean": statistics.fmean(accuracies), "deviation": statistics.stdev(accuracies)}
            | {"lowest": min(accuracies), "highest": max(accuracies)}
        )
    return points


def _of_seed(seed: int, problems: Sequence[Sequence[SampleRow]]) -> dict[str, Any]:
    def mean(column: str) -> float:
        return statistics.fmean(statistics.fmean(row[column] for row in group) for group in problems)

    return {
        "seed": seed, "accuracy": mean("correct"), "mean_thinking_tokens": mean("num_thinking_tokens"), "n": sum(map(len, problems))
    }  # fmt: skip
