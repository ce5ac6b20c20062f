"""What one more ignored stop does to an answer: right -> wrong, wrong -> right, or nothing.

Up to its (k + 1)-th attempt to end, a trace is the same whether k or k + 1 attempts are ignored. So two answers of one trace (same setting,
problem, seed and sample) differ only by the last "Wait". If the trace had no further attempt to ignore, they are the same answer. The
effect is tested on pairs (`paired.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from s1jax.results.metrics import Point, by_setting
from s1jax.results.paired import compare_answers
from s1jax.results.samples import SETTING, SampleRow, distinct_samples, pick

_ALIKE = tuple(name for name in SETTING if name not in ("num_ignore", "ignore_text"))

Turn = Literal["", "to right", "to wrong"]
"""Whether a Wait turned a wrong answer right, or a right answer wrong."""


def turns(rows: Sequence[SampleRow]) -> list[Point]:
    """Return a point for each setting with ignored stops, and each next smaller number of them that its traces have, sorted by setting.

    A point has the columns of `SETTING`, and `num_ignore_before`, that smaller number. It counts pairs of answers of one trace: all of them
    (`n`), those whose trace had a further stop to ignore (`num_longer`), and those that turned (`num_to_right`, `num_to_wrong`). The rest
    is the result of `compare_answers`, in which A is the smaller number.
    """
    rows = distinct_samples(rows)
    groups: dict[tuple[Any, ...], dict[str, list[tuple[SampleRow, SampleRow]]]] = {}
    for before, after in wait_pairs(rows):
        problems = groups.setdefault((pick(after, SETTING), before["num_ignore"]), {})
        problems.setdefault(after["problem_id"], []).append((before, after))
    order = {pick(setting, SETTING): i for i, (setting, _) in enumerate(by_setting(rows))}
    points = []
    for setting, num_before in sorted(groups, key=lambda key: (order[key[0]], key[1])):
        problems = groups[setting, num_before]
        every = [pair for pairs in problems.values() for pair in pairs]
        found = [turn_of(*pair) for pair in every]
        a = [[before["correct"] for before, _ in pairs] for pairs in problems.values()]
        b = [[before["correct"] ^ bool(turn_of(before, after)) for before, after in p] for p in problems.values()]
        points.append(
            dict(zip(SETTING, setting, strict=True))
            | {"num_ignore_before": num_before, "n": len(every)}
            | {"num_longer": sum(_is_longer(*pair) for pair in every)}
            | {"num_to_right": found.count("to right"), "num_to_wrong": found.count("to wrong")}
            | compare_answers(a, b)
        )
    return points


def wait_pairs(rows: Sequence[SampleRow]) -> Iterator[tuple[SampleRow, SampleRow]]:
    """Yield (row under the next fewer ignored stops, row) for each row with ignored stops, if `rows` hold both.

    That is one stop less, unless the rows lack it. Without ignored stops and without a minimum the ignore text has no effect, so all texts
    start at the same answer.
    """
    traces: dict[tuple[Any, ...], list[SampleRow]] = {}
    for row in rows:
        traces.setdefault(_trace(row), []).append(row)
    for row in rows:
        fewer = [
            other
            for other in traces[_trace(row)]
            if other["num_ignore"] < row["num_ignore"]
            and (
                other["ignore_text"] == row["ignore_text"] or not (other["num_ignore"] or other["min_thinking_tokens"])
            )
        ]
        if fewer:
            yield max(fewer, key=lambda other: other["num_ignore"]), row


def turn_of(before: SampleRow, after: SampleRow) -> Turn:
    """Return how a pair of `wait_pairs` turned."""
    if before["correct"] == after["correct"] or not _is_longer(before, after):
        return ""
    return "to right" if after["correct"] else "to wrong"


def _is_longer(before: SampleRow, after: SampleRow) -> bool:
    return after["num_ignored"] > before["num_ignored"]


def _trace(row: SampleRow) -> tuple[Any, ...]:
    return *pick(row, _ALIKE), *trace_key(row)


def trace_key(row: SampleRow) -> tuple[Any, ...]:
    """Return what tells the traces of one setting apart: the problem, and above temperature 0 the draw."""
    return row["problem_id"], *(pick(row, ("seed", "sample_index")) if row["temperature"] else ())
