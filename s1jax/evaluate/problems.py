"""Benchmarks: files or hub datasets -> questions with gold answers.

The prompt is the bare question (paper, section 4.1), so a problem needs only an id, a question and an answer. A multiple-choice question
has its choices below it, and its answer is a letter (`choices.py`). A row with another column that belongs to its question is refused.

Invariant: no two problems of one list have the same id, since samples and votes are joined by id.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s1jax.data.columns import (
    SYSTEM_COLUMNS,
    check_whole_question,
    columns_of,
    filled_text_of,
    first_column,
    log_unread,
)
from s1jax.data.encoder import check_text
from s1jax.data.row_files import hub_rows, raw_rows
from s1jax.evaluate.choices import CHOICE_COLUMNS, GPQA_COLUMNS, LETTERS, RIGHT_COLUMNS, find_choices, shuffled
from s1jax.runtime.command import counted, listed
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer."""

    problem_id: str
    benchmark: str
    question: str
    answer: str

    @property
    def digest(self) -> str:
        """12 hex digits of a hash of question and answer, by which an edit of the benchmark is noticed."""
        return hashlib.sha256(json.dumps([self.question, self.answer]).encode()).hexdigest()[:12]


# Path on the hub, configuration, split and number of problems.
_HUB = {
    "aime24": ("HuggingFaceH4/aime_2024", None, "train", 30),
    "aime25": ("math-ai/aime25", None, "test", 30),
    "math500": ("HuggingFaceH4/MATH-500", None, "test", 500),
    "gpqa_diamond": ("Idavidrein/gpqa", "gpqa_diamond", "train", 198),
    "gsm8k": ("openai/gsm8k", "main", "test", 1319),
}

# Names of these columns in public files. The first one that holds something is used.
_ID_COLUMNS = ("id", "problem_id", "unique_id", "ID", "Record ID")
_QUESTION_COLUMNS = ("question", "problem", "Problem", "Question")
_ANSWER_COLUMNS = ("answer", "Answer", "gold")


# What a column may be, and the columns that a mapping of it replaces.
_ROLES: dict[str, tuple[str, ...]] = {
    "id": _ID_COLUMNS,
    "question": _QUESTION_COLUMNS,
    "answer": (*_ANSWER_COLUMNS, *RIGHT_COLUMNS),
    "choices": (*CHOICE_COLUMNS, *LETTERS, *GPQA_COLUMNS),
}
Mapped = dict[str, list[str]]
"""The columns of a file for each mapped role."""


def read_problems(
    source: str, columns: Sequence[str] = (), subset: str | None = None, split: str | None = None
) -> list[Problem]:
    """Return the problems of a named benchmark, a JSONL or Parquet file, or a hub dataset, in order.

    A file's benchmark is called by its stem, a dataset's by its name and subset. `columns` says which column is what, as
    `DecodingConfig.columns` does. `subset` and `split` (by default test) belong to a hub dataset.

    A row needs a question, which is text, and an answer, which is text or a finite number. Without an id, its id is
    "<benchmark>/<row number>".

    Raises FileNotFoundError if there is neither such a file nor such a benchmark, or if the hub cannot provide it. Raises UserError for a
    source without problems, for a bad mapping, or for bad rows: it counts them all and shows the first few.
    """
    mapped = _parse_columns(columns)
    path, is_hub_id = Path(source), bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source))
    if source not in _HUB and not path.exists() and is_hub_id and path.suffix not in (".jsonl", ".json", ".parquet"):
        name = "-".join([path.name, subset] if subset else [path.name])
        return _to_problems(hub_rows(source, split or "test", subset), name, f"dataset {source}", "row", mapped)
    if subset or split:
        raise UserError(f"subset and split belong to a hub dataset (ORG/NAME), and {source} is none")
    if source in _HUB:
        return _to_problems(_named_rows(source), source, f"benchmark {source}", "row", mapped)
    if path.is_dir():
        raise UserError(f"{source} is a directory: give one .jsonl or .parquet file of problems")
    if not path.is_file():
        raise FileNotFoundError(
            f"no problem file at {source}: give a .jsonl or .parquet file, a hub dataset (ORG/NAME), or one of {', '.join(_HUB)}"
        )
    check_text(f"the name of the benchmark {path.stem!r}", path.stem)
    return _to_problems(raw_rows(source), path.stem, source, "row" if path.suffix == ".parquet" else "line", mapped)


def _named_rows(name: str) -> list[tuple[str, int, dict[str, Any], str]]:
    path, config, split, size = _HUB[name]
    try:
        rows = list(hub_rows(path, split, config))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the hub does not provide benchmark {name} ({path}): {error}. You can give its problems as a .jsonl file instead"
        ) from error
    if len(rows) != size:
        raise UserError(f"{path} holds {len(rows)} rows, but {name} has {size} problems")
    return rows


def _parse_columns(columns: Sequence[str]) -> Mapped:
    """Return the columns of `ROLE=COLUMN` or `ROLE=COLUMN+COLUMN`, by role."""
    mapped: Mapped = {}
    for pair in columns:
        role, _, names = pair.partition("=")
        if role not in _ROLES or not all(names.split("+")) or role in mapped:
            raise UserError(
                f"columns has {pair!r}: give each of {', '.join(_ROLES)} at most once, as in question=prompt"
            )
        mapped[role] = names.split("+")
        if len(mapped[role]) > 1 and role in ("id", "answer"):
            raise UserError(f"columns has {pair!r}: {role} is one column")
    return mapped


def _renamed(row: Mapping[str, Any], mapped: Mapped) -> dict[str, Any]:
    """Return a row in which mapped columns have the names of their roles. Other columns that could be the same are left out."""
    used = [name for names in mapped.values() for name in names]
    if missing := [name for name in used if name not in row]:
        raise UserError(f"no column {missing[0]} in the columns {columns_of(row)}")
    left_out = {*used, *(name for role in mapped for name in _ROLES[role])}
    renamed = {name: value for name, value in row.items() if name not in left_out}
    renamed |= {role: row[names[0]] for role, names in mapped.items()}
    if len(names := mapped.get("question", [])) > 1:
        renamed["question"] = "\n\n".join(filled_text_of(name, row[name]).strip() for name in names)
    if len(names := mapped.get("choices", [])) > 1:
        renamed["choices"] = [row[name] for name in names]
        if (right := mapped.get("answer", [""])[0]) in names:
            question = _column(renamed, _QUESTION_COLUMNS)
            renamed["choices"], renamed["answer"] = shuffled(renamed["choices"], names.index(right), question)
    return renamed


def _to_problems(
    rows: Iterable[tuple[str, int, dict[str, Any] | UserError, str]],
    benchmark: str,
    source: str,
    unit: str,
    mapped: Mapped,
) -> list[Problem]:
    problems: list[Problem] = []
    errors: list[str] = []
    seen: dict[str, int] = {}
    names: set[str] = set()
    for _, number, row, _ in rows:
        try:
            if isinstance(row, UserError):
                raise row
            names |= row.keys()
            problem = _to_problem(_renamed(row, mapped), benchmark, number)
            if problem.problem_id in seen:
                raise UserError(
                    f"id {shortened(problem.problem_id)} was already used on {unit} {seen[problem.problem_id]}"
                )
        except UserError as error:
            errors.append(f"{unit} {number}: {error}")
            continue
        seen[problem.problem_id] = number
        problems.append(problem)
    if errors:
        raise UserError(f"{source}: {counted(len(errors), f'bad {unit}')}:{listed(errors)}")
    if not problems:
        raise UserError(f"{source} holds no problems")
    log_unread(source, names, itertools.chain(*_ROLES.values(), *mapped.values()))
    return problems


def _to_problem(row: dict[str, Any], benchmark: str, number: int) -> Problem:
    problem_id = _column(row, _ID_COLUMNS, number=True, default=f"{benchmark}/{number}").strip()
    question = _column(row, _QUESTION_COLUMNS)
    choices = find_choices(row, question)
    check_whole_question(row, choices.columns if choices else ())
    if (system := first_column(row, SYSTEM_COLUMNS)) is not None:
        raise UserError(f"column {system} would be left out: the model is asked the bare question")
    if choices is not None:
        return Problem(problem_id, benchmark, choices.below(question), choices.right)
    # GSM8K writes a worked solution, four hashes, and the answer.
    answer = _column(row, _ANSWER_COLUMNS, number=True).rpartition("####")[2].strip()
    if not answer:
        raise UserError("no answer after ####")
    return Problem(problem_id, benchmark, question, answer)


def _column(row: dict[str, Any], names: tuple[str, ...], *, number: bool = False, default: str | None = None) -> str:
    """Return the text of the first of these columns that holds something.

    Raises UserError if it is not text, and if no column holds anything and there is no default.
    """
    name = first_column(row, names)
    if name is None and default is not None:
        return default
    name = name or next((name for name in names if name in row), None)
    if name is None:
        raise UserError(f"no {' or '.join(names)} in the columns {columns_of(row)}")
    return filled_text_of(name, row[name], number=number)
