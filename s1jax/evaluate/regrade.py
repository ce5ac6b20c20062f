"""Grade sample rows again, without a model: rows and the problems that they answer -> the same rows with new grades."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from s1jax.evaluate.problems import Problem, read_problems
from s1jax.grading.judge import Judge
from s1jax.grading.letters import choice_letter
from s1jax.grading.pool import Grade, Grader
from s1jax.results.samples import SampleRow, graded, read_samples
from s1jax.results.token_records import has_records, tokens_path
from s1jax.runtime import jsonl
from s1jax.runtime.command import counted, listed
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable
from s1jax.runtime.lock import Lock
from s1jax.runtime.progress import progress
from s1jax.runtime.terminal import shortened

logger = logging.getLogger(__name__)

_QUESTIONS_AT_ONCE = 8


@dataclass(frozen=True)
class RegradeConfig:
    """The rows to grade, and the problems that hold their gold answers."""

    rows: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROWS")]
    """Sample rows (JSONL) that evaluate.py and sweep.py wrote."""
    benchmark: tuple[str, ...] = ()
    """The benchmarks in the rows: JSONL or Parquet files, or hub datasets. Benchmarks with a name of ours are found by that name."""
    output: Path | None = None
    """File for the graded rows; default: ROWS, which is replaced."""
    columns: tuple[str, ...] = ()
    """Which columns of the given benchmarks are what, as in `evaluate.py`."""
    subset: str | None = None
    """Subset of a hub dataset that is given as a benchmark."""
    split: str | None = None
    """Split of a hub dataset that is given as a benchmark."""
    judge: str | None = None
    """Address of a language model that compares the answers that the rules do not find equal, such as http://localhost:8000/v1. It speaks
    the OpenAI protocol; OPENAI_API_KEY is sent along. Default: the rules alone."""
    judge_model: str | None = None
    """Name of that model."""
    judge_cache: Path | None = None
    """JSONL file of its replies, so that none is asked for twice. Default: beside the output."""

    def __post_init__(self) -> None:
        if bool(self.judge) != bool(self.judge_model):
            raise UserError("--judge and --judge-model belong together: give both or neither")
        if self.judge_cache is not None and not self.judge:
            raise UserError("--judge-cache has no effect without --judge")


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
        problems = _find_problems(rows, config)
        grades = _grade(rows, [problem.answer for problem in problems])
        judges = [""] * len(grades)
        if config.judge is not None and config.judge_model is not None:
            cache = config.judge_cache or output.with_name(f"{output.name}.judge.jsonl")
            check_writable(cache)
            with Lock(cache), Judge(config.judge, config.judge_model, cache) as judge:
                grades, judges = _ask_judge(judge, problems, grades)
        # The lines as they are in the file may have columns that `read_samples` leaves out.
        lines = [line for _, line in jsonl.read(config.rows)]
        jsonl.write(output, [graded(*parts) for parts in zip(lines, grades, judges, strict=True)])
    if output != config.rows and any(map(has_records, rows)):
        logger.info(
            "the token records of the rows are in %s: copy it to %s", tokens_path(config.rows), tokens_path(output)
        )
    _log_changes(rows, grades)
    return output


def _find_problems(rows: Sequence[SampleRow], config: RegradeConfig) -> list[Problem]:
    """Return the problem of each row. Benchmarks that are not given as files are looked up by their name in the rows."""
    problems = [
        problem
        for source in config.benchmark
        for problem in read_problems(source, config.columns, config.subset, config.split)
    ]
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


Pair = tuple[str, str, str]
"""A question, an answer to it, and its gold answer."""


def ask_judge(judge: Judge, pairs: Iterable[Pair]) -> dict[Pair, bool | None]:
    """Return what the judge says about each pair, asked once: whether its answers are equal, None if it gave no Yes and no No."""
    asked = list(dict.fromkeys(pairs))
    decisions: dict[Pair, bool | None] = {}
    with ThreadPoolExecutor(_QUESTIONS_AT_ONCE) as threads, progress(len(asked), "judge", "answer") as bar:
        try:
            for pair, is_equal in zip(asked, threads.map(lambda pair: judge.are_equal(*pair), asked), strict=True):
                decisions[pair] = is_equal
                bar.update()
        except BaseException:
            judge.stop()
            threads.shutdown(cancel_futures=True)
            raise
    if unsure := sum(is_equal is None for is_equal in decisions.values()):
        logger.warning("the judge gave no Yes and no No about %s: they keep their verdict", counted(unsure, "answer"))
    return decisions


def _ask_judge(judge: Judge, problems: Sequence[Problem], grades: Sequence[Grade]) -> tuple[list[Grade], list[str]]:
    """Ask the judge about answers that the rules do not find equal, except letters. Return the grades, and who decided each (`graded`)."""
    pairs = [
        None
        if grade.extracted is None or grade.verdict == "equal" or choice_letter(problem.answer) is not None
        else (problem.question, grade.extracted, problem.answer)
        for problem, grade in zip(problems, grades, strict=True)
    ]
    decisions = ask_judge(judge, (pair for pair in pairs if pair is not None))
    decided = [pair is not None and bool(decisions[pair]) for pair in pairs]
    graded_again = [
        Grade(grade.extracted, "equal") if right else grade for grade, right in zip(grades, decided, strict=True)
    ]
    return graded_again, [judge.model if right else "" for right in decided]


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
