"""Attempts at the problems of a pool -> for each row the first one that agrees with its reference.

Attempts are sample rows of our engine, or replies of an endpoint. They stay in their file, and are read one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from data_tools.curation.quality import grader_of_process, is_reference, stated_answers
from data_tools.curation.stage import read_part, verdicts
from s1jax.grading.pool import Grader
from s1jax.results.samples import SampleRow, is_forced
from s1jax.runtime import jsonl

NO_REFERENCE = "no reference to verify traces against"
NO_ROOM = "the question is too long for the model"
NO_REPLY = "the endpoint did not answer"


class Attempt(NamedTuple):
    """One answer to a problem."""

    thinking: str
    answer: str
    """Empty if the model answered without thinking: then its answer is the trace."""
    is_whole: bool
    """Whether the model thought, answered, and ended both."""


class PartOfPool(NamedTuple):
    """The rows of one part, and what was asked about them."""

    sources: Sequence[tuple[Path, frozenset[str]]]
    """The part's file in each result, as `read_part` takes them."""
    places: Mapping[int, Sequence[int]]
    """For each row that needs a trace: where its attempts begin in their file, in the order of their indices."""
    faults: Mapping[int, tuple[str, str | None]]
    """Reason and detail for rows of which not every attempt could be made. They count if no attempt agrees."""


def attempt_of_sample(row: SampleRow) -> Attempt:
    """Return the attempt in a sample row. A budget that ended the thinking makes a torn trace."""
    ends = row["finish_reason"] == "stop"
    if row["thinking_format"] == "none":
        return _attempt("", row["answer_text"], ends)
    thinking, answer = row["thinking"].strip(), row["answer_text"].strip()
    return Attempt(thinking, answer, ends and bool(thinking and answer) and not is_forced(row))


def attempt_of_reply(row: Mapping[str, Any]) -> Attempt:
    """Return the attempt in a row of an endpoint's file."""
    reply = row["reply"]
    return _attempt(reply["reasoning"], reply["text"], reply["finish_reason"] != "length")


def _attempt(thinking: str, answer: str, ends: bool) -> Attempt:
    """Return the attempt of a model that may answer without thinking: then its answer is the trace."""
    thinking, answer = thinking.strip(), answer.strip()
    if thinking:
        return Attempt(thinking, answer, ends and bool(answer))
    return Attempt(answer, "", ends and bool(answer))


def choose(
    attempts: Iterable[Attempt], reference: str, grader: Grader, verify: bool = True
) -> tuple[Attempt | None, str | None, str | None]:
    """Return the first whole attempt that agrees with the reference. Without one return the reason and the counts for `detail`.

    Without `verify`, return the first whole attempt.

    The answer of an attempt without thinking becomes the final answer alone.
    """
    num_all = num_whole = 0
    for attempt in attempts:
        num_all += 1
        if not attempt.is_whole:
            continue
        num_whole += 1
        if not verify:
            return attempt._replace(answer=attempt.answer or _final_answer(attempt.thinking)), None, None
        for answer in stated_answers(attempt.answer or attempt.thinking):
            if is_reference(answer, reference, grader):
                return attempt._replace(answer=attempt.answer or f"Final Answer: {answer}"), None, None
    if not num_whole:
        return None, "no sample ends in time", f"0 of {num_all}"
    cut = f", {num_all - num_whole} more did not end in time" if num_all > num_whole else ""
    return None, "no sample agrees with the reference", f"0 of {num_whole}{cut}"


def _final_answer(text: str) -> str:
    """Return the answer of a model that did not think, alone."""
    return f"Final Answer: {next(iter(stated_answers(text)), text)}"


def choose_part(file: Path, is_endpoint: bool, verify: bool, part: PartOfPool) -> pa.Table:
    """Return the verdicts on one part, with `thinking`, `answer` and `correct`. Rows that were not asked about keep their texts."""
    rows = read_part(part.sources, ("reference", "thinking", "answer"))
    to_attempt = attempt_of_reply if is_endpoint else attempt_of_sample
    columns: dict[str, list[Any]] = {name: [] for name in ("reason", "detail", "thinking", "answer", "correct")}
    for row in rows.to_pylist():
        verdict = {
            "reason": None,
            "detail": None,
            "thinking": row["thinking"],
            "answer": row["answer"],
            "correct": None,
        }
        if row["row"] in part.places:
            verdict |= _verdict(row, part, file, to_attempt, verify)
        for name, values in columns.items():
            values.append(verdict[name])
    types = {"thinking": pa.string(), "answer": pa.string(), "correct": pa.bool_()}
    added = {name: pa.array(columns[name], kind) for name, kind in types.items()}
    return verdicts(rows, columns["reason"], columns["detail"], **added)


def _verdict(row: Mapping[str, Any], part: PartOfPool, file: Path, to_attempt: Any, verify: bool) -> dict[str, Any]:
    """Return reason and detail, or texts, of a row that was asked about."""
    attempts = (to_attempt(jsonl.row_at(file, place)) for place in part.places[row["row"]])
    chosen, reason, detail = choose(attempts, row["reference"], grader_of_process(), verify)
    if chosen is not None:
        return {"thinking": chosen.thinking, "answer": chosen.answer, "correct": True if verify else None}
    reason, detail = part.faults.get(row["row"], (reason, detail))
    return {"reason": reason, "detail": detail, "thinking": "", "answer": ""}
