"""Sample rows: what evaluation writes, one JSON line per generated answer with its whole condition, and all that metrics and plots read.

Invariant: a row that is read has every column, of its type and within its bounds, and no other row of the file is the same sample.
"""

from __future__ import annotations

import io
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from s1jax.runtime.errors import UserError


class Curve(TypedDict):
    """What the points of one curve share."""

    benchmark: str
    model: str
    method: str
    temperature: float


class Setting(Curve):
    """The condition of a point: rows that differ in any of these, but for an unused ignore text, belong to different points."""

    max_thinking_tokens: int
    min_thinking_tokens: int
    num_ignore: int
    ignore_text: str


class SampleRow(Setting):
    """One generated answer with its whole condition."""

    problem_id: str
    sample_index: int
    seed: int
    num_thinking_tokens: int
    num_forced_tokens: int
    num_ignored: int
    num_answer_tokens: int
    finish_reason: Literal["stop", "length"]
    thinking: str
    answer_text: str
    extracted: str | None
    correct: bool
    config_hash: str
    commit: str


_COLUMN_TYPES = typing.get_type_hints(SampleRow)
SETTING = tuple(Setting.__annotations__)


def read_samples(path: str | Path) -> list[SampleRow]:
    """Read sample rows; columns beyond `SampleRow` are left out.

    A last line without its line break that does not parse was torn by a crash: it is reported on standard error and left
    out. Raises OSError for a file that cannot be read, or UserError with the line number for any other bad line, a missing,
    mistyped or impossible column, a sample that is there twice, or no rows at all.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a directory; name the file of sample rows in it")
    rows: list[SampleRow] = []
    seen: dict[tuple[Any, ...], int] = {}
    try:
        file = io.BytesIO(Path(path).read_bytes())  # bytes: a line may be torn inside a character
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                print(f"{path}: line {number} was cut off while it was written; left out", file=sys.stderr)
                break
            raise UserError(f"{path}: line {number} is not JSON ({error})") from None
        if problem := _row_problem(row):
            raise UserError(f"{path}: line {number}: {problem}")
        key = tuple(row[name] for name in (*SETTING, "problem_id", "seed", "sample_index"))
        if key in seen:
            raise UserError(
                f"{path}: lines {seen[key]} and {number} hold the same sample (problem {row['problem_id']}, sample "
                f"{row['sample_index']}, seed {row['seed']}, equal settings): were two runs put into one file?"
            )
        seen[key] = number
        rows.append(typing.cast(SampleRow, {name: row[name] for name in _COLUMN_TYPES}))
    if not rows:
        raise UserError(f"{path} holds no sample rows")
    return rows


def _row_problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"expected a JSON object, found {type(row).__name__}"
    if missing := [name for name in _COLUMN_TYPES if name not in row]:
        return f"no column {', '.join(missing)}"
    for name, expected in _COLUMN_TYPES.items():
        value = row[name]
        if typing.get_origin(expected) is Literal:
            fits = value in typing.get_args(expected)
        else:
            fits = isinstance(value, int | float if expected is float else expected)
            fits = fits and (expected is bool or not isinstance(value, bool))
        if not fits:
            return f"column {name} holds {value!r}, expected {getattr(expected, '__name__', expected)}"
        if expected in (int, float) and not 0 <= value < 2**31:
            return f"column {name} holds {value}, expected a number from 0 to {2**31 - 1}"
    if row["correct"] and row["extracted"] is None:
        return "it is marked correct, and has no extracted answer"
    return None


def distinct_samples(rows: Sequence[SampleRow]) -> list[SampleRow]:
    """Return the rows without copies of a sample; the first is kept.

    At temperature 0 neither seed nor sample index changes an answer, nor does an ignore text where there are no ignores and no
    minimum, at any temperature: it is returned as "".
    """
    kept: dict[tuple[Any, ...], SampleRow] = {}
    for row in rows:
        if not row["num_ignore"] and not row["min_thinking_tokens"]:
            row = typing.cast(SampleRow, {**row, "ignore_text": ""})
        draw = (row["seed"], row["sample_index"]) if row["temperature"] else ()
        setting = (row[name] for name in SETTING)  # type: ignore[literal-required]
        kept.setdefault((*setting, row["problem_id"], *draw), row)
    return list(kept.values())
