"""Sample rows: what evaluation writes and everything else reads. One JSON line holds one generated answer and all that led to it.

Every setting that can change an answer is a column. So one file can hold a whole study: several models, benchmarks and conditions.

Invariant: a row that was read has every column, of its type and within its bounds, and no other row of the file has its key.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from s1jax.data.condition import LARGEST, AnswerEnd, Condition, Limits
from s1jax.data.thinking_format import NONE
from s1jax.grading.pool import Grade, Verdict
from s1jax.runtime import jsonl
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError

SampleRow = dict[str, Any]
"""One generated answer: a value for each of `COLUMNS`. None stands for a column that an earlier format did not have."""

CONDITION: dict[str, Any] = typing.get_type_hints(Condition)
"""Type of each column of the condition."""
SUBJECT: dict[str, Any] = {"benchmark": str, "model": str, "weights": str, "tokenizer": str}
"""Who was asked what: `weights` and `tokenizer` are fingerprints of the files behind the model's name, or a commit of the hub."""
COLUMNS: dict[str, Any] = {
    "problem_id": str,
    **SUBJECT,
    "problem": str,  # 12 hex digits of a hash of question and gold answer
    **CONDITION,
    "sample_index": int,
    "seed": int,
    "num_thinking_tokens": int,
    "num_forced_tokens": int,
    "num_ignored": int,
    "num_answer_tokens": int,
    "finish_reason": AnswerEnd,
    "num_tries": int,
    "num_rejected_tokens": int,
    "tokens_at": int | None,  # index of the first of its records (`token_records.py`)
    "num_tokens": int | None,
    "thinking": str,
    "answer_text": str,
    "extracted": str | None,
    "verdict": Verdict,
    "judge": str,
    "correct": bool,  # whether the verdict is "equal"
    "commit": str,
}
POINT = (*Limits._fields, "requested", "ignore_text")
"""Columns that tell the points of one curve from each other."""
CURVE = (*SUBJECT, "method", *(name for name in CONDITION if name not in (*POINT, "method")))
"""Columns that the points of one curve share."""
SETTING = (*CURVE, *POINT)
"""Columns that the rows of one point share."""
KEY = (*SETTING, "problem_id", "seed", "sample_index")

# Columns that came after the first format of rows. A row that lacks one is read, and holds None there.
_FIRST = (*Limits._fields, "ignore_text", "temperature", "method")
_LATER = {
    "weights",
    "tokenizer",
    "problem",
    "verdict",
    "num_tries",
    "num_rejected_tokens",
    "tokens_at",
    "num_tokens",
    "judge",
} | CONDITION.keys() - {*_FIRST}
# What every answer had before it became a column.
_ONCE = {
    "thinking_format": "s1",
    "wrap_up": "Final Answer:",
    "prompt_suffix": "",
    "system_prompt": "",
    "requested": "",
    "max_tries": 1,
    "num_tries": 1,
    "num_rejected_tokens": 0,
    "judge": "",
}


def pick(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[Any, ...]:
    """Return the values of some columns of a row, or of a point."""
    return tuple(row[name] for name in columns)


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies a sample: two rows with one key would hold the same answer."""
    return pick(row, KEY)


def graded(row: Mapping[str, Any], grade: Grade, judge: str = "") -> SampleRow:
    """Return a row with the columns of its grade, and all columns in order. Columns that are not in `COLUMNS` come last.

    `judge` is the language model that decided where the rules did not (`grading/judge.py`).
    """
    row = {**row, **grade._asdict(), "judge": judge, "correct": grade.verdict == "equal"}
    return {name: row[name] for name in (*COLUMNS, *row) if name in row}


def answers_at_once(row: Mapping[str, Any]) -> bool:
    """Return whether the model was not asked to think, in a row or a point."""
    return row["thinking_format"] == NONE


def is_forced(row: SampleRow) -> bool:
    """Return whether the budget ended the thinking: then the thinking reaches it. Rejection sampling forces nothing."""
    if row["method"] == "rejection_sampling" or answers_at_once(row):
        return False
    return row["num_thinking_tokens"] >= row["max_thinking_tokens"]


def is_whole(row: SampleRow) -> bool:
    """Return whether a row says what it is of. A run does not add to a file with rows that do not."""
    return all(row[name] is not None for name in (*KEY, "problem"))


def read_samples(path: str | Path) -> list[SampleRow]:
    """Read sample rows. Columns that are not in `COLUMNS` are left out.

    A last line that a crash cut off is left out, with a warning. Raises OSError if the file cannot be read, and UserError, with the line
    number, for any other line that is not JSON, a column that is missing, mistyped or impossible, a sample that is there twice, and for a
    file without rows.
    """
    rows: list[SampleRow] = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in jsonl.read(path):
        if fault := _find_fault(row):
            raise UserError(f"{path}: line {number}: {fault}")
        row = {name: row.get(name, _ONCE.get(name)) for name in COLUMNS}
        row["int8"] = None if row["int8"] is None else tuple(row["int8"])
        key = row_key(row)
        if key in seen:
            raise UserError(
                f"{path}: lines {seen[key]} and {number} hold the same sample (problem {row['problem_id']}, sample "
                f"{row['sample_index']}, seed {row['seed']}, equal settings): were two runs put into one file?"
            )
        seen[key] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no sample rows")
    return rows


def _find_fault(row: Any) -> str | None:
    """Return what is wrong with a row, None if nothing is."""
    if not isinstance(row, dict):
        return f"expected a JSON object, found {type(row).__name__}"
    if missing := [name for name in COLUMNS if name not in row and name not in _LATER]:
        more = f" and {counted(len(missing) - 3, 'more column')}" if len(missing) > 3 else ""
        return f"no sample row: it lacks {', '.join(missing[:3])}{more}; give a file that evaluate.py or sweep.py wrote"
    for name, expected in COLUMNS.items():
        value: Any = row.get(name)
        if value is None and name in _LATER:
            continue
        if not _fits(value, expected):
            return f"column {name} holds {value!r}, expected {getattr(expected, '__name__', expected)}"
        if expected in (int, float) and not (0 <= value <= LARGEST and math.isfinite(value)):
            return f"column {name} holds {value}, expected a number from 0 to {LARGEST}"
    tokens_at, num_tokens = row.get("tokens_at"), row.get("num_tokens")
    if (tokens_at is None) != (num_tokens is None) or (tokens_at or 0) < 0 or (num_tokens or 1) < 1:
        return f"columns tokens_at and num_tokens hold {tokens_at} and {num_tokens}"
    if row.get("verdict") is not None and row["correct"] != (row["verdict"] == "equal"):
        return f"verdict {row['verdict']} contradicts correct {row['correct']}"
    return None


def _fits(value: Any, expected: Any) -> bool:
    """Return whether a JSON value has a column's type. JSON writes a tuple as a list, and may write a whole float as an integer."""
    if typing.get_origin(expected) is Literal:
        return value in typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        return isinstance(value, list) and all(_fits(item, typing.get_args(expected)[0]) for item in value)
    kind = int | float if expected is float else expected
    return isinstance(value, kind) and (expected is bool or not isinstance(value, bool))


def distinct_samples(rows: Sequence[SampleRow]) -> list[SampleRow]:
    """Return the rows without copies of a sample; the first of each is kept.

    At temperature 0 neither the seed nor the sample index changes an answer. Without ignored stops and without a minimum the ignore
    text changes nothing at any temperature, and becomes "".
    """
    kept: dict[tuple[Any, ...], SampleRow] = {}
    for row in rows:
        if not row["num_ignore"] and not row["min_thinking_tokens"]:
            row = {**row, "ignore_text": ""}
        draw = pick(row, ("seed", "sample_index")) if row["temperature"] else ()
        kept.setdefault((*pick(row, SETTING), row["problem_id"], *draw), row)
    return list(kept.values())
