"""Token records: for each token that an answer took, what the model thought of it. A compact binary file beside the sample rows.

`rows.jsonl` has its records in `rows.jsonl.tokens`: 11 bytes per token, without header. The columns `tokens_at` and `num_tokens` of a row
say which records are its own. They are None in a row that was decoded without `--record-tokens`.

Invariant: the records of a row are on the disk before the row is in its file. A kill may leave records that no row points to, and a piece
of a record. The next run cuts that piece off and appends behind the last whole record.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import is_in_place, writing
from s1jax.runtime.terminal import shortened

RECORD = np.dtype(
    [("token", "<i4"), ("logprob", "<f2"), ("confidence", "<f2"), ("end_logprob", "<f2"), ("forced", "u1")]
)
"""One token: its id; its log-probability (0 if it was forced); the mean log-probability of the 20 likeliest ids at its place (DeepConf's
confidence is minus that); the log-probability of ending the thinking at its place; 1 if it was not sampled, else 0."""
LOWEST = float(np.finfo(np.float16).min)
"""The smallest log-probability that a record holds, -65504. It stands for every smaller one, that of an impossible token too."""


def tokens_path(rows_path: str | Path) -> Path:
    """Return the path of the token records that belong to a file of rows. If that is a symbolic link, they lie beside its target."""
    target = Path(rows_path).resolve()
    return target.with_name(f"{target.name}.tokens")


def to_records(
    tokens: Sequence[int],
    forced: Sequence[bool],
    logprobs: Sequence[float],
    confidences: Sequence[float],
    end_logprobs: Sequence[float],
) -> np.ndarray:
    """Return the records [n] of n tokens. Log-probabilities are rounded to float16, about 3 digits."""
    records = np.zeros(len(tokens), RECORD)
    records["token"], records["forced"] = tokens, forced
    for name, values in (("logprob", logprobs), ("confidence", confidences), ("end_logprob", end_logprobs)):
        # Rounding may leave a sum of probabilities a little above 1.
        records[name] = np.clip(np.asarray(values, np.float64), LOWEST, 0)
    return records


class TokenAppender:
    """Context manager that appends records to the file beside some rows. The file is made or mended when the first records arrive.

    Only the process that holds the lock of the rows may use it.
    """

    def __init__(self, rows_path: str | Path):
        self.path = tokens_path(rows_path)
        self.num_records = 0
        """Whole records in the file, once records were appended."""
        self._file: BinaryIO | None = None

    def __enter__(self) -> TokenAppender:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: Any) -> None:
        if self._file is None:
            return
        # After an error, a piece may still wait to be written. It fails again, but the first error already says why.
        with contextlib.suppress(*([OSError] if kind else [])), writing(self.path):
            self._file.close()

    def append(self, answers: Sequence[np.ndarray]) -> list[int]:
        """Write the records of some answers, and wait until the disk has them; return the index of the first record of each.

        Raises OSError that names the file, and UserError if it was moved since the last call.
        """
        with writing(self.path):
            if self._file is not None and not is_in_place(self.path, self._file):
                raise UserError(
                    f"{self.path} was moved, replaced or deleted while records were written to it: put it back"
                )
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab")
                self.num_records = self._file.tell() // RECORD.itemsize
                self._file.truncate(self.num_records * RECORD.itemsize)
            self._file.write(b"".join(records.tobytes() for records in answers))
            self._file.flush()
            os.fsync(self._file.fileno())
        ends = self.num_records + np.cumsum([len(records) for records in answers])
        self.num_records = int(ends[-1])
        return [int(end) - len(records) for end, records in zip(ends, answers, strict=True)]


def check_records(rows_path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError if the file beside some rows ends before their records. New records would take the places of theirs."""
    end = max((row["tokens_at"] + row["num_tokens"] for row in rows if has_records(row)), default=0)
    path = tokens_path(rows_path)
    size = path.stat().st_size if path.exists() else 0
    if size < end * RECORD.itemsize:
        state = f"has {counted(size // RECORD.itemsize, 'record')}" if path.exists() else "is missing"
        raise UserError(f"{path} {state}, and the rows need {end}: put the file back, or give another --output")


def has_records(row: Mapping[str, Any]) -> bool:
    """Return whether the tokens of a row were recorded."""
    return row["tokens_at"] is not None


def read_tokens(rows_path: str | Path, row: Mapping[str, Any]) -> np.ndarray:
    """Return the records [num_tokens] of a row, an array of `RECORD` that is mapped from the file, read-only.

    Raises UserError if the row has no records, and if the file is missing, too short or damaged, or does not fit the row. What is checked
    against the row are the places and the number of forced tokens.
    """
    path = tokens_path(rows_path)
    if not has_records(row):
        raise UserError(f"the row of problem {shortened(row['problem_id'])} in {rows_path} has no token records")
    try:
        records = np.memmap(path, RECORD, mode="r", offset=row["tokens_at"] * RECORD.itemsize, shape=row["num_tokens"])
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing. It holds the token records of {rows_path}: copy or move the two files together"
        ) from None
    except (ValueError, OverflowError):  # the range is not in the file
        raise UserError(
            f"{path} is too short: the row of problem {shortened(row['problem_id'])} needs records {row['tokens_at']} to "
            f"{row['tokens_at'] + row['num_tokens'] - 1}. Was it copied before {rows_path} was?"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if fault := _find_fault(records, row):
        raise UserError(
            f"{path} is damaged or belongs to other rows: {fault}, in records {row['tokens_at']} to "
            f"{row['tokens_at'] + row['num_tokens'] - 1} of the row of problem {shortened(row['problem_id'])}"
        )
    return records


def _find_fault(records: np.ndarray, row: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the records of a row, None if nothing is."""
    if (records["token"] < 0).any():
        return "a token id is negative"
    for name in ("logprob", "confidence", "end_logprob"):
        if not ((records[name] >= LOWEST) & (records[name] <= 0)).all():
            return f"a value of {name} is no log-probability"
    forced = records["forced"]
    if (forced > 1).any() or int(forced.sum()) != row["num_forced_tokens"]:
        return f"not {counted(row['num_forced_tokens'], 'token')} are forced"
    if (records["logprob"][forced == 1] != 0).any():
        return "a forced token has a log-probability"
    # The delimiter between thinking and answer is forced, the answer is not.
    answer = len(records) - row["num_answer_tokens"] - (row["finish_reason"] == "stop")
    if not (0 <= row["num_thinking_tokens"] <= answer):
        return "there are too few tokens for the thinking and the answer"
    if not forced[row["num_thinking_tokens"] : answer].all() or forced[answer:].any():
        return "the answer does not begin where the row says"
    return None
