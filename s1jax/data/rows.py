"""Training rows from files and hub datasets.

In: JSONL, Parquet or a hub dataset, with the columns of this project or of the published s1K and s1K-1.1. Out: `TrainingRow`s.
No row is dropped silently: a rejected row comes out with its reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError


class TrainingRow(TypedDict):
    """One question with a reasoning trace and an answer; `reference` is the known solution."""

    id: str
    question: str
    thinking: str
    answer: str
    reference: str
    source: str
    domain: str


# Pairs of columns (trace, answer). A row uses the first pair that it has: this project's, s1K-1.1's, s1K's, or Gemini's of s1K-1.1.
_TRACE_COLUMNS = (
    ("thinking", "answer"),
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("thinking_trajectories", "attempt"),
    ("gemini_thinking_trajectory", "gemini_attempt"),
)
_OTHER_COLUMNS: dict[str, tuple[str, ...]] = {
    "question": ("question",),
    "id": ("id",),
    "reference": ("reference", "solution"),
    "source": ("source", "source_type"),
    "domain": ("domain", "cot_type"),
}


def read_rows(source: str) -> tuple[list[TrainingRow], list[dict[str, Any]]]:
    """Return the usable rows of `source` (see `DataConfig`) in order, and the rejected rows as {file, row, reason, ...the row's columns}.

    `row` counts from 1 within a file (for JSONL: lines). A missing `id` becomes the first 16 hex digits of sha256(question).
    Raises FileNotFoundError if there is no such source, and UserError if it has no usable row.
    """
    rows: list[TrainingRow] = []
    rejects: list[dict[str, Any]] = []
    for file, number, columns in _raw_rows(source):
        try:
            rows.append(_training_row(columns))
        except UserError as error:
            original = {"text": columns} if isinstance(columns, str) else columns
            rejects.append({**original, "file": file, "row": number, "reason": str(error)})
    if not rows:
        reasons = Counter(reject["reason"] for reject in rejects).most_common(3)
        found = "; ".join(f"{reason} ({count} x)" for reason, count in reasons) or "it is empty"
        raise UserError(f"{source} holds no usable training row: {found}")
    return rows, rejects


def describe_rejects(rejects: Sequence[dict[str, Any]], path: str | Path) -> str:
    """Return one line for the log about rejected rows that `path` holds."""
    reasons = Counter(str(reject["reason"]) for reject in rejects).most_common(8)
    counted = ", ".join(f"{count} x {reason}" for reason, count in reasons)
    return f"{len(rejects)} rejected" + (f" ({counted}; see {path})" if rejects else "")


def _raw_rows(source: str) -> Iterator[tuple[str, int, dict[str, Any] | str]]:
    """Yield, for every row, its file or hub id, its number from 1, and its columns. A line that is not a JSON object comes as text."""
    path = Path(source)
    if not source:
        raise UserError("source is empty: give a .jsonl or .parquet file, a directory of them, or a hub id")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".parquet"))
        if not files:
            raise FileNotFoundError(f"directory {source} holds no .jsonl or .parquet file")
    elif path.exists() or path.is_absolute() or path.suffix in (".jsonl", ".parquet"):
        files = [path]
    else:
        yield from _hub_rows(source)
        return
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"there is no file {file}")
        if file.suffix == ".jsonl":
            for number, line, value in jsonl.parse(file):
                yield str(file), number, value if isinstance(value, dict) else line.decode(errors="replace")
        elif file.suffix == ".parquet":
            yield from _parquet_rows(file)
        else:
            raise UserError(f"{file} is neither .jsonl nor .parquet: convert it to one of them")


def _parquet_rows(file: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            rows = (row for batch in parquet.iter_batches(256) for row in batch.to_pylist())
            yield from ((str(file), number, row) for number, row in enumerate(rows, 1))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error


def _hub_rows(name: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split="train")
    except OSError as error:  # for example no such dataset, or no connection
        raise FileNotFoundError(f"no file or directory {name}, and the hub does not have it: {error}") from error
    yield from ((name, number, row) for number, row in enumerate(dataset, 1))


def _training_row(columns: dict[str, Any] | str) -> TrainingRow:
    """Return the training row with these columns. Raises UserError, with the reason, if it must be rejected."""
    if isinstance(columns, str):
        raise UserError("not a JSON object")
    pair = next((pair for pair in _TRACE_COLUMNS if all(name in columns for name in pair)), None)
    if pair is None:
        raise UserError("it has neither the columns thinking and answer nor those of s1K or s1K-1.1")
    row: dict[str, str] = {}
    for field, candidates in {"thinking": pair[:1], "answer": pair[1:], **_OTHER_COLUMNS}.items():
        name = next((name for name in candidates if name in columns), field)
        value = columns.get(name)
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        if value is not None and not isinstance(value, str | int | float):
            raise UserError(f"{name} is not text")
        row[field] = "" if value is None else str(value)
        if any("\ud800" <= character <= "\udfff" for character in row[field]):
            raise UserError(f"{name} is not valid Unicode")
        if field in ("question", "thinking", "answer") and not row[field].strip():
            raise UserError(f"{name} is empty")
    row["id"] = row["id"] or hashlib.sha256(row["question"].encode()).hexdigest()[:16]
    return TrainingRow(**row)  # type: ignore[typeddict-item]
