"""Grade sample rows again, without a model: rows and the problems that they answer -> the same rows with new grades."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from s1jax.evaluate.problems import Problem, read_problems
from s1jax.grading.pool import Grade, Grader
from s1jax.results.samples import SampleRow, graded, read_samples
from s1jax.runtime import jsonl
from s1jax.runtime.command import counted, listed
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable
from s1jax.runtime.lock import Lock
from s1jax.runtime.progress import progress
from s1jax.runtime.terminal import shortened

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegradeConfig:
    """The rows to grade, and the problems that hold their gold answers."""

    rows: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROWS")]
    """Sample rows (JSONL) that evaluate.py and sweep.py wrote."""
    benchmark: tuple[str, ...] = ()
    """Problem files (JSONL) of the benchmarks in the rows. Benchmarks of the hub are found by the names in the rows."""
    output: Path | None = None
    """File for the graded rows; default: ROWS, which is replaced."""


def regrade(config: RegradeConfig) -> Path:
    """Write all rows with new grades, log how many verdicts changed, and return the file.

    Nothing is written if an error arises. Raises UserError if the file cannot be written or is being written, for a bad row, and for a
    row whose problem is not found, or had another question or answer when the row was written.
    """
    output = config.output or config.rows
    check_writable(output)
    with Lock(output):
        if config.output is not None and output.exists() and not output.samefile(config.rows):
            raise UserError(f"--output {output} exists: give another one, or remove it")
        rows = read_samples(config.rows)
        grades = _grade(rows, [problem.answer for problem in _find_problems(rows, config.benchmark)])
        # The lines as they are in the file may have columns that `read_samples` leaves out.
        lines = [line for _, line in jsonl.read(config.rows)]
        jsonl.write(output, [graded(line, grade) for line, grade in zip(lines, grades, strict=True)])
    _log_changes(rows, grades)
    return output


def _find_problems(rows: Sequence[SampleRow], benchmarks: Sequence[str]) -> list[Problem]:
    """Return the problem of each row. Benchmarks that are not given as files are looked up by their name in the rows."""
    problems = [problem for source in benchmarks for problem in read_problems(source)]
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        if not any(problem.benchmark == name for problem in problems):
            try:
                problems += read_problems(name)
            except FileNotFoundError as error:
                raise UserError(
                    f"the problems of benchmark {name} are not found: give their file as --benchmark"
                ) from error
    by_id = {(problem.benchmark, problem.problem_id): problem for problem in problems}
    found = []
    for row in rows:
        problem = by_id.get((row["benchmark"], row["problem_id"]))
        # Rows of the first format have no digest.
        if problem is None or row["problem"] not in (None, problem.digest):
            state = "is missing from" if problem is None else "has another question or answer in"
            raise UserError(
                f"problem {shortened(row['problem_id'])} of the rows {state} benchmark {row['benchmark']}: give the problems that "
                "these rows answer as --benchmark"
            )
        found.append(problem)
    return found


def _grade(rows: Sequence[SampleRow], golds: Sequence[str]) -> list[Grade]:
    with Grader() as grader, progress(len(rows), "grade", "row") as bar:
        waiting = [grader.submit(row["answer_text"], gold) for row, gold in zip(rows, golds, strict=True)]
        grades = []
        for future in waiting:
            grades.append(future.result())
            bar.update()
    return grades


def _log_changes(rows: Sequence[SampleRow], grades: Sequence[Grade]) -> None:
    """Log how many verdicts changed, and the first few. A row of an earlier format knows only whether it was correct."""
    changes = []
    for row, grade in zip(rows, grades, strict=True):
        before = row["verdict"] or (
            "equal" if row["correct"] else "no_answer" if row["extracted"] is None else "different"
        )
        if before != grade.verdict:
            answer = "no answer" if grade.extracted is None else shortened(grade.extracted)
            changes.append(f"{before} -> {grade.verdict}: problem {shortened(row['problem_id'])}, {answer}")
    counts = Counter(grade.verdict for grade in grades)
    logger.info("%s: %s", counted(len(rows), "row"), ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
    logger.info("%s changed%s", counted(len(changes), "verdict"), ":" + listed(changes) if changes else "")
