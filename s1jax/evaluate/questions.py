"""The questions behind sample rows: rows and the benchmarks that they answer -> question and gold answer of each problem."""

from __future__ import annotations

from collections.abc import Sequence

from s1jax.evaluate.problems import read_problems
from s1jax.results.samples import SampleRow
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened


def find_questions(
    rows: Sequence[SampleRow], benchmarks: Sequence[str], columns: Sequence[str], subset: str | None, split: str | None
) -> dict[tuple[str, str], tuple[str, str]]:
    """Return question and gold answer of the rows' problems that the given benchmarks hold, by benchmark and id.

    The last three arguments are those of `read_problems`.

    Raises UserError for a problem that had another question or answer when its row was written, and for a source of none of the rows.
    """
    digests = {(row["benchmark"], row["problem_id"]): row["problem"] for row in rows}
    found = {}
    for source in benchmarks:
        read = read_problems(source, columns, subset, split)
        problems = {(problem.benchmark, problem.problem_id): problem for problem in read}
        if not (known := digests.keys() & problems.keys()):
            raise UserError(
                f"--benchmark {source} holds no problem of the rows: its name and ids must be those in the rows"
            )
        for key in known:
            if digests[key] not in (None, problems[key].digest):  # rows of the first format have no digest
                raise UserError(
                    f"problem {shortened(key[1])} of {source} had another question or answer when its rows were written"
                )
            found[key] = (problems[key].question, problems[key].answer)
    return found
