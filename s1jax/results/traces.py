"""Traces: sample rows that were forked from one thinking trace, side by side: what ended each, and where its Waits stand.

Rows hold texts and counts, and no positions of tokens. So places are found by comparing texts, and are counted in characters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from s1jax.data.condition import Limits
from s1jax.data.thinking_format import END, find_format
from s1jax.results.samples import CONDITION, SUBJECT, SampleRow, answers_at_once, is_forced, pick
from s1jax.runtime.errors import UserError

# Columns in which forks of one trace may differ: what ends thinking, and all that comes after it.
_OF_A_FORK = (*Limits._fields, "ignore_text", "method", "wrap_up", "max_answer_tokens", "max_tries")
_OF_A_TRACE = (
    *SUBJECT,
    "problem_id",
    "seed",
    "sample_index",
    *(name for name in CONDITION if name not in _OF_A_FORK),
)

Ended = Literal["model", "budget", "rejected", "none"]
"""What ended a row's thinking. `rejected`: every trace was too long, so that there is none. `none`: the model was not asked to think."""


class Span(NamedTuple):
    """A part of a text, from `start` to before `end`, in characters."""

    start: int
    end: int
    kind: Literal["wait", "forced", "extracted"]
    """An ignore text in place of an attempt to stop, the forced wrap-up before an answer, or the answer that was graded."""


def group_traces(rows: Iterable[SampleRow]) -> list[list[SampleRow]]:
    """Group rows that may be forks of one trace: same model, problem, draw and settings, except for what ends thinking.

    The groups are in the order in which they first appear. Only the texts tell whether one thinking really is a part of another.
    """
    traces: dict[tuple[Any, ...], list[SampleRow]] = {}
    for row in rows:
        traces.setdefault(pick(row, _OF_A_TRACE), []).append(row)
    return list(traces.values())


def what_ended(row: SampleRow) -> Ended:
    """Return what ended the thinking of a row."""
    if row["finish_reason"] == "rejected":
        return "rejected"
    if answers_at_once(row):
        return "none"
    return "budget" if is_forced(row) else "model"


def delimiter(row: SampleRow) -> str:
    """Return the text that stands between thinking and answer; "" if the row's thinking format is not known."""
    with contextlib.suppress(UserError):
        return find_format(row["thinking_format"]).answer
    return ""


def thinking_spans(row: SampleRow, trace: Sequence[SampleRow]) -> list[Span]:
    """Return where the ignore text stands for an attempt to stop, in order, at most `num_ignored` times.

    A row of the same trace that ended after j ignored attempts shows where attempt j + 1 was. Elsewhere the place is the next occurrence
    of the ignore text, which the model may have written itself. A budget may cut the last ignore text.

    Where rows have token records, these can say exactly which tokens were forced: this function is the place for it.
    """
    text, thinking, spans = row["ignore_text"], row["thinking"], []
    if not text or not row["num_ignored"]:
        return []
    ends = {
        other["num_ignored"]: len(other["thinking"])
        for other in trace
        if what_ended(other) == "model" and thinking.startswith(other["thinking"])
    }
    position = 0
    for number in range(row["num_ignored"]):
        start = ends.get(number, -1)
        if start < position or not (rest := thinking[start : start + len(text)]) or not text.startswith(rest):
            start = thinking.find(text, position)
        if start < 0:
            break
        position = min(start + len(text), len(thinking))
        spans.append(Span(start, position, "wait"))
    return spans


def answer_spans(row: SampleRow) -> list[Span]:
    """Return the forced wrap-up at the start of an answer, if the budget ended the thinking, and the last place of the graded answer."""
    answer, extracted, spans = row["answer_text"], row["extracted"], []
    wrap_up = (row["wrap_up"] or "").rpartition(END)[2].strip()
    start = len(answer) - len(answer.lstrip())
    end = start
    if wrap_up and what_ended(row) == "budget" and answer.startswith(wrap_up, start):
        end = start + len(wrap_up)
        spans.append(Span(start, end, "forced"))
    if extracted and (place := answer.rfind(extracted)) >= end:
        spans.append(Span(place, place + len(extracted), "extracted"))
    return spans
