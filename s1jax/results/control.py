"""How well a method controls the amount of thinking: sample rows -> Control, Scaling and Performance of each curve (paper, section 3.2).

Control needs bounds on the thinking tokens of each run:

- budget forcing and rejection sampling: the budget, and the minimum;
- token-conditional control: the tokens that were asked for;
- step-conditional control: `TOKENS_PER_STEP` for each step that was asked for;
- class-conditional control: short is at most the mean of the same model without a prompt, long at least that mean.

With forcing, the budget bounds the thinking, too; of classes it is the only bound. With these bounds the published points give the
published Control (table 3).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from s1jax.results.metrics import Point, thinking_curve
from s1jax.results.samples import CURVE, SampleRow, answers_at_once, distinct_samples, pick

TOKENS_PER_STEP = 100
"""Thinking tokens that a step may have. With this number the published points give the published Control."""

Bounds = tuple[float, float]
"""Lowest and highest number of thinking tokens, both inclusive."""


def control(thinking_tokens: Sequence[float], bounds: Sequence[Bounds]) -> float:
    """Return the share of runs whose thinking tokens lie within the run's bounds (equation 1)."""
    return statistics.fmean(low <= t <= high for t, (low, high) in zip(thinking_tokens, bounds, strict=True))


def scaling(
    thinking_tokens: Sequence[float], accuracies: Sequence[float], per: Literal["doubling", "token"] = "doubling"
) -> float | None:
    """Return the mean slope over all pairs of points with different token counts (equation 2). None if no two counts differ.

    The unit is accuracy per doubling of the tokens, as in the paper's tables, or per token. Points without thinking have no logarithm, so
    they are left out of the slope per doubling.
    """
    points = list(zip(thinking_tokens, accuracies, strict=True))
    if per == "doubling":
        points = [(math.log2(tokens), accuracy) for tokens, accuracy in points if tokens > 0]
    pairs = itertools.combinations(points, 2)
    slopes = [(second[1] - first[1]) / (second[0] - first[0]) for first, second in pairs if first[0] != second[0]]
    return statistics.fmean(slopes) if slopes else None


def thinking_bounds(setting: Any, unprompted: float | None = None) -> Bounds | None:
    """Return the bounds on the thinking of a row or point. None without thinking, and for class-conditional control without `unprompted`.

    `unprompted` is the mean number of thinking tokens of the same model without a prompt.
    """
    if answers_at_once(setting):
        return None
    method, requested = setting["method"], setting["requested"]
    low, high = setting["min_thinking_tokens"], setting["max_thinking_tokens"]
    if method == "class_conditional":
        if unprompted is None:
            return None
        return (0, unprompted) if requested == "short" else (unprompted, math.inf)
    if method == "token_conditional":
        return 0, int(requested)
    if method == "step_conditional":
        return 0, TOKENS_PER_STEP * int(requested)
    if method == "step_conditional_forced":
        high = min(high, TOKENS_PER_STEP * int(requested))
    return low, high


def summarise_curves(rows: Sequence[SampleRow]) -> list[dict[str, Any]]:
    """Return the figures of merit (equations 1 to 3) of each curve, in the order of `thinking_curve`.

    `control` is the share of points whose mean thinking tokens keep to their bounds, as in the paper, `control_per_sample` that of samples.
    Both are None for class-conditional control if `rows` lack the same model without a prompt, over the same problems and with a budget
    that is not smaller. There is no `scaling` (it is None) across
    points over different problems.
    """
    rows, summaries = distinct_samples(rows), []
    every_point = thinking_curve(rows)
    for curve, group in itertools.groupby(every_point, key=lambda point: pick(point, CURVE)):
        points = list(group)
        samples = [row for row in rows if pick(row, CURVE) == curve]
        tokens, accuracies = [p["mean_thinking_tokens"] for p in points], [p["accuracy"] for p in points]
        unprompted = _unprompted_mean(points, every_point)
        is_comparable = len({p["problem_set"] for p in points}) == 1
        summary = {
            "control": _control(tokens, [thinking_bounds(p, unprompted) for p in points]),
            "control_per_sample": _control(
                [r["num_thinking_tokens"] for r in samples], [thinking_bounds(r, unprompted) for r in samples]
            ),
            "scaling_per_doubling": scaling(tokens, accuracies) if is_comparable else None,
            "scaling_per_token": scaling(tokens, accuracies, per="token") if is_comparable else None,
            "performance": max(accuracies),
        }
        summaries.append(summary)
    return summaries


def _control(thinking_tokens: Sequence[float], bounds: Sequence[Bounds | None]) -> float | None:
    known = [bound for bound in bounds if bound is not None]
    return control(thinking_tokens, known) if len(known) == len(bounds) else None


def _unprompted_mean(curve: Sequence[Point], points: Sequence[Point]) -> float | None:
    """Return the mean thinking tokens of the same model without a prompt, over the same problems. None if no point tells it."""
    alike = [name for name in CURVE if name not in ("method", "max_tries")]
    problem_sets = {p["problem_set"] for p in curve}
    budget = max(p["max_thinking_tokens"] for p in curve)
    plain = [
        p
        for p in points
        if p["method"] == "budget_forcing"
        and pick(p, alike) == pick(curve[0], alike)
        and {p["problem_set"]} == problem_sets
        and p["max_thinking_tokens"] >= budget
        and not p["num_ignore"]
        and not p["min_thinking_tokens"]
    ]
    return min(plain, key=lambda p: p["max_thinking_tokens"])["mean_thinking_tokens"] if plain else None
