"""Answers after a forced end of thinking: does the model answer, or does it go on thinking?

An answer is *forced* if the budget ended its thinking. A forced answer *escapes* if the model goes on thinking in it: it opens or ends
thinking once more, or it is longer than `MULTIPLE` times the median answer of the same curve whose thinking the model ended itself. Empty
answers do not count there: a median of nothing would make every answer long.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from s1jax.data.thinking_format import END, find_format
from s1jax.results.metrics import Point, by_setting, mean_interval
from s1jax.results.samples import CURVE, SampleRow, distinct_samples, is_forced, pick

MULTIPLE = 3.0
"""An answer that is longer than this multiple of the median unforced answer counts as an escape."""


def reopens(row: SampleRow) -> bool:
    """Return whether the answer holds a text that opens or ends thinking. Such a text in the wrap-up itself does not count."""
    thinking = find_format(row["thinking_format"])
    marks = {text.strip() for text in (thinking.opening, *thinking.ends)}
    written = row["wrap_up"].rpartition(END)[2] if is_forced(row) else ""
    return any(row["answer_text"].count(mark) > written.count(mark) for mark in marks)


def escapes(rows: Sequence[SampleRow], multiple: float = MULTIPLE) -> list[Point]:
    """Return a point per setting, sorted by setting.

    A point has the columns of `SETTING`, the number of answers `n`, and numbers of answers: `num_forced`, `num_cut` (ended by their
    limit), `num_empty` (nothing but blanks behind the wrap-up), `num_not_found` (no answer was found) and `num_rejected` (no answer,
    because every trace was too long).

    `num_reopened` forced answers open or end thinking again. `num_longer` forced answers have more than `longest` tokens, which is
    `multiple` times `median_unforced`, the median length of the curve's `num_unforced` unforced answers that are not empty. Both are None
    if it has none.

    `escape_rate` is the share of forced answers that escape, as the mean over problems, with its interval (`_low`, `_high`); None without
    forced answers.
    """
    unforced: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row in distinct_samples(rows):
        if not is_forced(row) and not _is_empty(row):  # a rejected answer is empty, too
            unforced[pick(row, CURVE)].append(row["num_answer_tokens"])
    points = []
    for setting, problems in by_setting(rows):
        samples = [row for group in problems for row in group]
        lengths = unforced[pick(setting, CURVE)]
        median = statistics.median(lengths) if lengths else None
        longest = None if median is None else multiple * median
        forced = [[row for row in group if is_forced(row)] for group in problems]
        reopened = {id(row) for group in forced for row in group if reopens(row)}
        longer = {
            id(row) for group in forced for row in group if longest is not None and row["num_answer_tokens"] > longest
        }
        shares = [statistics.fmean(id(row) in reopened | longer for row in group) for group in forced if group]
        num_forced = sum(map(len, forced))
        rate = mean_interval(shares, num_forced) if shares else (None, None, None)
        points.append(
            setting
            | {"n": len(samples), "num_problems": len(problems), "num_forced": num_forced}
            | {"num_cut": sum(row["finish_reason"] == "length" for row in samples)}
            | {"num_empty": sum(_is_empty(row) for row in samples)}
            | {"num_not_found": sum(row["extracted"] is None for row in samples)}
            | {"num_rejected": sum(row["finish_reason"] == "rejected" for row in samples)}
            | {"num_reopened": len(reopened), "num_longer": len(longer), "num_unforced": len(lengths)}
            | {"median_unforced": median, "longest": longest}
            | dict(zip(("escape_rate", "escape_rate_low", "escape_rate_high"), rate, strict=True))
        )
    return points


def _is_empty(row: SampleRow) -> bool:
    written = row["wrap_up"].rpartition(END)[2].strip() if is_forced(row) else ""
    return not row["answer_text"].strip().removeprefix(written).strip()
