"""Benchmarks: questions with gold answers.

In: the name of a public benchmark, or any JSONL file with a question and an answer a line. Out: `Problem` rows in file order.

The idea (paper, section 4.1): the prompt is the bare question, so a problem is only (id, question, answer), and where it came
from is a column; a multiple-choice question has its choices below it, and its answer is a letter. The invariant: every problem
of one list has an id of its own, since samples and votes are joined by it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s1jax.data.chat import check_text
from s1jax.runtime.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer."""

    problem_id: str
    benchmark: str
    question: str
    answer: str


@dataclass(frozen=True)
class _HubBenchmark:
    path: str
    split: str
    config: str | None = None
    size: int = 0


_HUB = {
    "aime24": _HubBenchmark("HuggingFaceH4/aime_2024", "train", size=30),
    "aime25": _HubBenchmark("math-ai/aime25", "test", size=30),
    "math500": _HubBenchmark("HuggingFaceH4/MATH-500", "test", size=500),
    "gpqa_diamond": _HubBenchmark("Idavidrein/gpqa", "train", config="gpqa_diamond", size=198),
    "gsm8k": _HubBenchmark("openai/gsm8k", "test", config="main", size=1319),
}

# What public files call these columns, most telling first.
_ID_COLUMNS = ("id", "problem_id", "unique_id", "ID", "Record ID")
_QUESTION_COLUMNS = ("question", "problem", "Problem", "Question")
_ANSWER_COLUMNS = ("answer", "Answer", "gold")
# GPQA's, the right one first.
_CHOICE_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_ERRORS_SHOWN = 5


def read_problems(source: str) -> list[Problem]:
    """Read the problems of a JSONL file or a named benchmark.

    A line is UTF-8 and needs a question and an answer (text or a finite number); without an id it gets
    "<benchmark>/<line number>". The benchmark is the file's stem, or the name. A row with GPQA's columns of one right and
    three wrong answers becomes a question with the choices A) to D). Raises FileNotFoundError for a missing file and for a
    benchmark that the hub does not give, UserError for an unknown name, an empty file, or bad lines (all of them counted,
    the first few shown).
    """
    if source in _HUB:
        return _to_problems(enumerate(_read_hub(source), start=1), source, f"benchmark {source}", "row")
    path = Path(source)
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(f"no problem file at {source}")
        raise UserError(f"unknown benchmark {source!r}: give a .jsonl path, or one of {', '.join(_HUB)}")
    check_text(f"the name of the benchmark {path.stem!r}", path.stem)
    # Bytes that are no UTF-8 become surrogates, and so are told with their line.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        return _to_problems(lines, path.stem, source, "line")


def _read_hub(name: str) -> Iterable[dict[str, Any]]:
    import datasets

    benchmark = _HUB[name]
    try:
        rows = datasets.load_dataset(benchmark.path, benchmark.config, split=benchmark.split)
    except OSError as error:  # among them: no such dataset, no access to it, no connection
        raise FileNotFoundError(
            f"benchmark {name} ({benchmark.path}) is not to be had from the hub: {error}. Or give its problems as a .jsonl file"
        ) from error
    if len(rows) != benchmark.size:
        raise UserError(f"{benchmark.path} holds {len(rows)} rows where {name} has {benchmark.size} problems")
    return rows


def _to_problems(
    rows: Iterable[tuple[int, str | dict[str, Any]]], benchmark: str, source: str, unit: str
) -> list[Problem]:
    problems: list[Problem] = []
    errors: list[str] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        try:
            if isinstance(row, str):
                check_text("it", row)
                row = json.loads(row)
            problem = _to_problem(row, benchmark, number)
            if problem.problem_id in seen:
                raise UserError(f"id {problem.problem_id!r} was already used on {unit} {seen[problem.problem_id]}")
        except (ValueError, RecursionError) as error:
            errors.append(f"{unit} {number}: {error}")
            continue
        seen[problem.problem_id] = number
        problems.append(problem)
    if errors:
        shown = "; ".join(errors[:_ERRORS_SHOWN]) + ("; ..." if len(errors) > _ERRORS_SHOWN else "")
        raise UserError(f"{source}: {len(errors)} bad {unit}{'s' if len(errors) > 1 else ''}: {shown}")
    if not problems:
        raise UserError(f"{source} holds no problems")
    return problems


def _to_problem(row: Any, benchmark: str, number: int) -> Problem:
    if not isinstance(row, dict):
        raise UserError(f"expected a JSON object with a question and an answer, found {type(row).__name__}")
    if all(name in row for name in _CHOICE_COLUMNS):
        row = _with_choices(row)
    question = _column(row, _QUESTION_COLUMNS)
    # GSM8K gives its worked solution with the answer behind four hashes.
    answer = _column(row, _ANSWER_COLUMNS).rpartition("####")[2].strip()
    columns = ((_QUESTION_COLUMNS, question.strip()), (_ANSWER_COLUMNS, answer))
    missing = [f"no {names[0]} (a column {', '.join(names)})" for names, value in columns if not value]
    if missing:
        raise UserError(" and ".join(missing))
    problem_id = _column(row, _ID_COLUMNS).strip() or f"{benchmark}/{number}"
    for name, text in (("the question", question), ("the answer", answer), ("the id", problem_id)):
        check_text(name, text)
    return Problem(problem_id, benchmark, question, answer)


def _with_choices(row: dict[str, Any]) -> dict[str, Any]:
    """Return a multiple-choice row with its choices below the question, in an order of its own, and a letter as the answer."""
    question = _column(row, _QUESTION_COLUMNS).strip()
    choices = [_column(row, (name,)).strip() for name in _CHOICE_COLUMNS]
    if not question or not all(choices):
        empty = [name for name, choice in zip(_CHOICE_COLUMNS, choices, strict=True) if not choice]
        raise UserError(f"no {', '.join(empty or _QUESTION_COLUMNS[:1])}")
    # Seeded by the problem itself: its letters depend neither on the other rows nor on the machine.
    rng = random.Random(f"choices of {question}")
    order = sorted(range(len(choices)), key=lambda _: rng.random())
    listed = "\n".join(f"{letter}) {choices[i]}" for letter, i in zip("ABCD", order, strict=True))
    return row | {"question": f"{question}\n\n{listed}", "answer": "ABCD"[order.index(0)]}


def _column(row: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of these columns that holds text or a number, as text; "" where none does. ValueError for nan and inf."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} is {value}: it must be text or a finite number")
            return str(value)
    return ""
