"""Training rows from files and hub datasets.

In: JSONL, Parquet or a hub dataset, in one of the layouts of `layouts.py`. Out: `TrainingRow`s.
No row is dropped silently: a rejected row comes out with its reason.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from s1jax.data import layouts
from s1jax.data.columns import first_column, log_unread, text_of
from s1jax.data.control_methods import TrainedMethod, check_label
from s1jax.data.layouts import Parts, find_parts
from s1jax.data.row_files import raw_rows
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError

logger = logging.getLogger(__name__)

DETAIL_COLUMNS = {
    "reference": layouts.REFERENCE_COLUMNS,
    "source": ("source", "source_type"),
    "domain": ("domain", "cot_type"),
}
"""Names of these columns in public data."""


_LABEL = ("method", "requested")


class _Texts(TypedDict):
    id: str
    question: str
    thinking: str
    answer: str
    reference: str
    source: str
    domain: str


class TrainingRow(_Texts, total=False):
    """One question with a reasoning trace and an answer; `reference` is the known solution.

    A row whose question asks for an amount of thinking has two more columns, its label.
    """

    method: TrainedMethod
    """How the amount of thinking is controlled."""
    requested: str
    """The amount: a number of tokens or steps."""


def read_rows(source: str) -> tuple[list[TrainingRow], list[dict[str, Any]]]:
    """Return the usable rows of `source` (see `DataConfig`) in order, and the rejected rows as {file, row, reason, ...the row's columns}.

    `row` counts from 1 within a file (for JSONL: lines). A missing `id` becomes the first 16 hex digits of sha256(question). System prompts
    are not trained on, because the chat format has its own; a warning counts them.
    Raises FileNotFoundError if there is no such source, and UserError if it has no usable row.
    """
    rows: list[TrainingRow] = []
    rejects: list[dict[str, Any]] = []
    num_system_prompts = 0
    names: set[str] = set()
    for file, number, columns, line in raw_rows(source):
        try:
            if isinstance(columns, UserError):
                raise columns
            names |= columns.keys()
            parts = find_parts(columns)
            rows.append(_training_row(columns, parts))
            num_system_prompts += parts.has_system_prompt
        except UserError as error:
            original = {"text": line} if isinstance(columns, UserError) else columns
            rejects.append({**original, "file": file, "row": number, "reason": str(error)})
    if not rows:
        reasons = Counter(reject["reason"] for reject in rejects).most_common(3)
        found = "; ".join(f"{reason} ({count} x)" for reason, count in reasons) or "it is empty"
        raise UserError(f"{source} holds no usable training row: {found}")
    details = itertools.chain(*DETAIL_COLUMNS.values())
    log_unread(source, names, {*layouts.COLUMNS, "id", *_LABEL, *details})
    if num_system_prompts:
        with_prompts = counted(num_system_prompts, "row")
        logger.warning("%s: %s with a system prompt: it is left out, the chat format has its own", source, with_prompts)
    return rows, rejects


def describe_rejects(rejects: Sequence[dict[str, Any]], path: str | Path) -> str:
    """Return one line for the log about rejected rows that `path` holds."""
    reasons = Counter(str(reject["reason"]) for reject in rejects).most_common(8)
    by_reason = ", ".join(f"{count} x {reason}" for reason, count in reasons)
    return f"{len(rejects)} rejected" + (f" ({by_reason}; see {path})" if rejects else "")


def _training_row(columns: dict[str, Any], parts: Parts) -> TrainingRow:
    """Return the training row with these columns and parts. Raises UserError, with the reason, if it must be rejected."""

    def text(*names: str, number: bool = False) -> str:
        name = first_column(columns, names)
        return "" if name is None else text_of(name, columns[name], number=number)

    row = TrainingRow(
        id=text("id", number=True) or hashlib.sha256(parts.question.encode()).hexdigest()[:16],
        question=parts.question,
        thinking=parts.thinking,
        answer=parts.answer,
        reference=text(*DETAIL_COLUMNS["reference"], number=True),
        source=text(*DETAIL_COLUMNS["source"]),
        domain=text(*DETAIL_COLUMNS["domain"]),
    )
    requested = text("requested", number=True)
    if method := check_label(text("method"), requested, parts.thinking):
        row |= {"method": method, "requested": requested}
    return row
