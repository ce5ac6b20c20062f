"""Benchmarks: questions with gold answers.

The prompt is the bare question (paper, section 4.1), so a problem needs only an id, a question and an answer. A multiple-choice question
has its choices below it, and its answer is a letter (`choices.py`). A row with another column that belongs to its question is refused.

Invariant: no two problems of one list have the same id, since samples and votes are joined by id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s1jax.data.columns import SYSTEM_COLUMNS, check_whole_question, columns_of, filled_text_of, first_column
from s1jax.data.encoder import check_text
from s1jax.evaluate.choices import find_choices
from s1jax.runtime import jsonl
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


def read_problems(source: str) -> list[Problem]:
    """Return the problems of a benchmark of the hub, or of a JSONL file, in order. A file's benchmark is called by its stem.

    A line needs a question, which is text, and an answer, which is text or a finite number. Without an id, its id is
    "<benchmark>/<line number>".

    Raises FileNotFoundError if there is neither such a file nor such a benchmark, or if the hub cannot provide it. Raises UserError for an
    empty file, or for bad lines: it counts them all and shows the first few.
    """
    if source in _HUB:
        return _to_problems(enumerate(_read_hub(source), start=1), source, f"benchmark {source}", "row")
    path = Path(source)
    if path.is_dir():
        raise UserError(f"{source} is a directory: give one .jsonl file of problems")
    if not path.is_file():
        raise FileNotFoundError(f"no problem file at {source}: give a .jsonl file, or one of {', '.join(_HUB)}")
    check_text(f"the name of the benchmark {path.stem!r}", path.stem)
    lines = ((number, value) for number, _, value in jsonl.parse(path))
    return _to_problems(lines, path.stem, source, "line")


def _read_hub(name: str) -> Iterable[dict[str, Any]]:
    import datasets  # slow, and only benchmarks of the hub need it

    path, config, split, size = _HUB[name]
    try:
        rows = datasets.load_dataset(path, config, split=split)
    except OSError as error:  # such as: no such dataset, no access to it, no connection
        raise FileNotFoundError(
            f"the hub does not provide benchmark {name} ({path}): {error}. You can give its problems as a .jsonl file instead"
        ) from error
    if len(rows) != size:
        raise UserError(f"{path} holds {len(rows)} rows, but {name} has {size} problems")
    return rows


def _to_problems(rows: Iterable[tuple[int, Any]], benchmark: str, source: str, unit: str) -> list[Problem]:
    problems: list[Problem] = []
    errors: list[str] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        try:
            problem = _to_problem(row, benchmark, number)
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
    return problems


def _to_problem(row: Any, benchmark: str, number: int) -> Problem:
    if isinstance(row, UserError):
        raise row
    if not isinstance(row, dict):
        raise UserError(f"expected a JSON object with a question and an answer, found {type(row).__name__}")
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
