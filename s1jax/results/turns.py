"""What one more ignored stop does to an answer: right -> wrong, wrong -> right, or nothing.

Up to its (k + 1)-th attempt to end, a trace is the same whether k or k + 1 attempts are ignored. So two answers of one trace (same setting,
problem, seed and sample) differ only by the last "Wait". Its effect is tested on pairs (`paired.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from s1jax.results.metrics import Point, by_setting
from s1jax.results.paired import compare_answers
from s1jax.results.samples import SETTING, SampleRow, pick

_ALIKE = tuple(name for name in SETTING if name not in ("num_ignore", "ignore_text"))


def turns(rows: Sequence[SampleRow]) -> list[Point]:
    """Return a point for each setting with ignored stops for which the rows also have a smaller number of them, sorted by setting.

    A point has the columns of `SETTING`, and `num_ignore_before`, the next smaller number of ignored stops. It counts pairs of answers of
    one trace: all of them (`n`), those whose trace had a further stop to ignore (`num_longer`), and those that turned (`num_to_right`,
    `num_to_wrong`). The rest is the result of `compare_answers`, in which A is the smaller number.
    """
    curves: dict[tuple[Any, ...], dict[int, tuple[dict[str, Any], list[list[SampleRow]]]]] = {}
    for setting, problems in by_setting(rows):
        texts = [setting["ignore_text"]]
        if (
            not setting["num_ignore"] and not setting["min_thinking_tokens"]
        ):  # then the text has no effect, and all texts start here
            texts = list({row["ignore_text"] for row in rows if row["num_ignore"]})
        for text in texts:
            curves.setdefault((*pick(setting, _ALIKE), text), {})[setting["num_ignore"]] = setting, problems
    points = []
    for by_number in curves.values():
        for before, after in itertools.pairwise(sorted(by_number)):
            pairs = _pairs(by_number[before][1], by_number[after][1])
            if not pairs:
                continue
            every = [pair for group in pairs for pair in group]
            a, b = ([[pair[i]["correct"] for pair in group] for group in pairs] for i in (0, 1))
            points.append(
                by_number[after][0]
                | {"num_ignore_before": before, "n": len(every)}
                | {"num_longer": sum(y["num_ignored"] > x["num_ignored"] for x, y in every)}
                | {"num_to_right": sum(y["correct"] and not x["correct"] for x, y in every)}
                | {"num_to_wrong": sum(x["correct"] and not y["correct"] for x, y in every)}
                | compare_answers(a, b)
            )
    order = {pick(setting, SETTING): i for i, (setting, _) in enumerate(by_setting(rows))}
    return sorted(points, key=lambda point: order[pick(point, SETTING)])


def _pairs(
    before: Sequence[Sequence[SampleRow]], after: Sequence[Sequence[SampleRow]]
) -> list[list[tuple[SampleRow, SampleRow]]]:
    """Return the pairs of answers of one trace, grouped by problem."""
    found = {trace_key(row): row for group in before for row in group}
    pairs = [[(found[trace_key(row)], row) for row in group if trace_key(row) in found] for group in after]
    return [group for group in pairs if group]


def trace_key(row: SampleRow) -> tuple[Any, ...]:
    """Return what tells the traces of one setting apart: the problem, and above temperature 0 the draw."""
    return row["problem_id"], *(pick(row, ("seed", "sample_index")) if row["temperature"] else ())
