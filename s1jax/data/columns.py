"""The columns of one row: which values are text, and which columns may not be left out.

Training rows, the pool of curation and problems read their columns by these rules.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from s1jax.data.encoder import check_text
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

logger = logging.getLogger(__name__)

SYSTEM_COLUMNS = ("system", "system_prompt")
# Columns whose content belongs to a question: without it the question has another answer, or none.
_PART_OF_QUESTION = re.compile(
    r"(context|ctx|passage|paragraph|document|article|body|story|background|premise|evidence|dialog|dialogue|image|picture|figure"
    r"|diagram|table|audio|video|input|hint|fact|choice|option|candidate|distractor|ending|solution[ _]?(?=\d)|sol(?=\d)"
    r"|incorrect[ _]answer|answer[ _]?(?=[a-j]$))s?([ _]?(\d+|[a-j]|url|path))?|op[a-e]|mc[12]_targets",
    re.IGNORECASE,
)


def text_of(name: str, value: Any, *, number: bool = False, lines: bool = False) -> str:
    """Return the value of a column as text. A missing value gives "".

    Only a string is text. With `number` a finite number is, too, with all its digits: an answer or an id may be one. With `lines` a list of
    strings is, too; line breaks join them. Raises UserError, with the name of the column, for any other value and for text that is not
    valid Unicode.
    """
    if is_missing(value):
        return ""
    if lines and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if number and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise UserError(f"{name} is not text but {_kind(value)}")
    check_text(name, value)
    return value


def filled_text_of(name: str, value: Any, *, number: bool = False, lines: bool = False) -> str:
    """Return `text_of` a value. Raises UserError if there is no text in it."""
    text = text_of(name, value, number=number, lines=lines)
    if not text.strip():
        is_number = isinstance(value, float | Decimal)
        raise UserError(f"{name} is {_kind(value)}, a missing value" if is_number else f"{name} is empty")
    return text


def is_missing(value: Any) -> bool:
    """Return whether a value says that there is none: null, or a number that is not finite, as data frames write it."""
    if isinstance(value, Decimal):
        return not value.is_finite()
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def is_empty(value: Any) -> bool:
    """Return whether a value is missing or holds nothing."""
    if isinstance(value, str):
        value = value.strip()
    return value is False or is_missing(value) or value in ("", [], {})


def first_column(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return the first of these names whose column holds something; None if there is none."""
    return next((name for name in names if not is_empty(row.get(name))), None)


def columns_of(row: Mapping[str, Any]) -> str:
    """Return the names of a row's columns for a message."""
    return shortened(", ".join(row), quotes=False) or "none"


def check_whole_question(row: Mapping[str, Any], used: Iterable[str] = ()) -> None:
    """Raise UserError if a column other than `used` belongs to the question. Without it, the row would be another question."""
    for name, value in row.items():
        if name not in used and _PART_OF_QUESTION.fullmatch(name) and not is_empty(value):
            raise UserError(f"column {name} would be left out: write it into the question, or remove the column")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float | Decimal):
        return "NaN" if value != value else "infinite" if is_missing(value) else "a number"
    return {"dict": "an object", "list": "a list"}.get(type(value).__name__, f"of type {type(value).__name__}")


def log_unread(source: str, names: Iterable[str], read: Iterable[str]) -> None:
    """Say which columns of a source are not read, if there are any."""
    if unread := sorted({*names} - {*read}):
        logger.info("%s: columns that are not read: %s", source, shortened(", ".join(unread), quotes=False))
