"""Sequential x parallel scaling: sample rows -> accuracy of every setting under every number of votes, against the tokens that it takes.

Thinking can be cut (smaller budgets), extended (ignored stops) and repeated (votes). `scaling_grid` has all combinations that the rows
hold. `at_equal_tokens` compares the three ways where they take the same number of tokens.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from s1jax.results.metrics import Point, by_setting, count_problems, with_interval
from s1jax.results.samples import CURVE, SETTING, SampleRow, pick
from s1jax.results.tables import groups
from s1jax.results.votes import count_votes, maj_at_k


def scaling_grid(rows: Sequence[SampleRow]) -> list[Point]:
    """Return a point per setting and number of votes k = 1, 2, 4, ... up to the samples that each problem has, sorted by setting and k.

    A point has `accuracy` (maj@k) with its interval, `num_problems` and `problem_set` (a hash of their ids), and two means over problems:
    `thinking_tokens`, the thinking tokens of k traces, and `tokens`, which adds their answers and the rejected tries of rejection sampling.
    `is_on_front` says whether the point is on the Pareto front of its curve: no other point over the same problems is as accurate with
    fewer tokens, or more accurate with as many.
    """
    points: list[Point] = []
    for setting, problems in by_setting(rows):
        votes = [count_votes([row["extracted"] for row in g], [row["correct"] for row in g]) for g in problems]
        thinking = statistics.fmean(statistics.fmean(row["num_thinking_tokens"] for row in g) for g in problems)
        tokens = statistics.fmean(statistics.fmean(map(num_tokens, g)) for g in problems)
        for k in doublings(min(map(len, problems))):
            point = setting | {"k": k, **count_problems(problems)}
            num_draws = sum(len(group) // k for group in problems)
            point |= with_interval("accuracy", [maj_at_k(v, k) for v in votes], num_draws)
            points.append(point | {"thinking_tokens": k * thinking, "tokens": k * tokens})
    for point in points:
        rivals = (p for p in points if pick(p, (*CURVE, "problem_set")) == pick(point, (*CURVE, "problem_set")))
        point["is_on_front"] = not any(_dominates(p, point) for p in rivals)
    return points


def to_compare(grid: Sequence[Point]) -> list[Point]:
    """Return the points that a figure of accuracy against all tokens shows; empty if it would show nothing new.

    These are the points of each benchmark with at least two lines: a curve has one line of its budgets and ignored stops, and one of its
    votes. A point without a token, which has no place on a log axis, is left out.
    """
    shown: list[Point] = []
    for benchmark in groups([p for p in grid if p["tokens"]], "benchmark"):
        lines = [line for curve in groups(benchmark, *CURVE, "problem_set") for line in _lines(curve)]
        if sum(len({p["tokens"] for p in line}) > 1 for line in lines) > 1:
            shown += benchmark
    return shown


def _lines(curve: Sequence[Point]) -> Iterator[list[Point]]:
    yield [p for p in curve if p["k"] == 1]
    voting = {pick(p, SETTING) for p in curve if p["k"] > 1}
    yield [p for p in curve if pick(p, SETTING) in voting]


def num_tokens(row: SampleRow) -> int:
    """Return the tokens that a sample took: thinking, answer, and rejected tries."""
    return row["num_thinking_tokens"] + row["num_answer_tokens"] + (row["num_rejected_tokens"] or 0)


def doublings(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`."""
    return [2**i for i in range(most.bit_length())]


def _dominates(point: Point, other: Point) -> bool:
    no_worse = point["tokens"] <= other["tokens"] and point["accuracy"] >= other["accuracy"]
    return no_worse and (point["tokens"], point["accuracy"]) != (other["tokens"], other["accuracy"])


def at_equal_tokens(curve: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the accuracies of cutting, extending and voting at equal tokens, for the points of one curve of `scaling_grid`.

    The ways start from the same traces: those under the largest budget, without ignored stops and minimum. `cutting` lowers the budget,
    `extending` ignores stops under the largest budget, and `voting` takes k such traces. The levels are the tokens of these traces and
    their halves and doubles, as far as a way reaches: `share` is the level in traces, `tokens` in tokens. Between two points of a way its
    accuracy is linear in the logarithm of the tokens. A way that does not reach a level has None. Several ignore texts have a key each:
    `extending` and the text. The list is empty where there is nothing to compare: fewer than two ways have two points.
    """
    plain = [p for p in curve if not p["min_thinking_tokens"] and not p["num_ignore"] and not p["requested"]]
    if not plain or curve[0]["method"] != "budget_forcing":
        return []
    largest = max(p["max_thinking_tokens"] for p in plain)
    (whole,) = (p for p in plain if p["max_thinking_tokens"] == largest and p["k"] == 1)
    single = [p for p in curve if p["k"] == 1 and p["problem_set"] == whole["problem_set"]]
    ways = {"cutting": [p for p in single if p in plain]}
    extended = [p for p in single if p["num_ignore"] and not p["min_thinking_tokens"]]
    extended = [p for p in extended if p["max_thinking_tokens"] == largest]
    for text in dict.fromkeys(p["ignore_text"] for p in extended):
        ways[f"extending {text}".strip()] = [whole, *(p for p in extended if p["ignore_text"] == text)]
    ways["voting"] = [p for p in plain if p["max_thinking_tokens"] == largest]
    ways = {way: points for way, points in ways.items() if len({p["tokens"] for p in points}) > 1}
    if len(ways) < 2 or not whole["tokens"]:
        return []
    reached = [p["tokens"] / whole["tokens"] for points in ways.values() for p in points if p["tokens"]]
    levels = range(math.ceil(math.log2(min(reached))), math.floor(math.log2(max(reached))) + 1)
    return [
        {"share": 2.0**level, "tokens": 2.0**level * whole["tokens"]}
        | {way: _accuracy_at(points, 2.0**level * whole["tokens"]) for way, points in ways.items()}
        for level in levels
    ]


def _accuracy_at(points: Sequence[Point], tokens: float) -> float | None:
    """Return the accuracy of a way at a number of tokens, None outside of its points. Points with equal tokens count as their mean."""
    groups = itertools.groupby(sorted(points, key=lambda p: p["tokens"]), key=lambda p: p["tokens"])
    line = [(x, statistics.fmean(p["accuracy"] for p in group)) for x, group in groups if x]
    for (x, y), (next_x, next_y) in itertools.pairwise(line):
        if x <= tokens <= next_x:
            return y + (next_y - y) * math.log(tokens / x) / math.log(next_x / x)
    return None
