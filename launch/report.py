"""Write a report of a file of sample rows: one HTML file with figures, tables and all answers, to be searched and read in a browser.

The figures are those of plot.py: accuracy against thinking tokens, against the number of samples, and against all tokens. The last two are
shown if the rows have votes, and two lines to compare.

The file opens from disk, without a network and without a model. Rows hold no questions: --benchmark gives the problems that they answer.
Standard output: the file.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from s1jax.results.samples import SampleRow, read_samples
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable
from s1jax.runtime.terminal import shortened


@dataclass(frozen=True)
class ReportConfig:
    """The rows to show, and the file for the report."""

    rows: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROWS")]
    """Sample rows (JSONL) that evaluate.py and sweep.py wrote."""
    out: Path | None = None
    """File for the report; default: report.html in the directory of the rows."""
    benchmark: tuple[str, ...] = ()
    """Problem files (JSONL or Parquet) of the benchmarks in the rows. Their questions and gold answers are shown."""


def main() -> None:
    """Read the rows and problems, and write the report."""
    config = parse_arguments(__doc__, ReportConfig)
    # A notebook's backend may stop the import of matplotlib, and a user's settings may ask for LaTeX.
    os.environ |= {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    from s1jax.results.report import is_report, write_report

    rows = read_samples(config.rows)
    out = config.out or config.rows.with_name("report.html")
    check_writable(out)
    if out.exists() and not is_report(out):
        raise UserError(f"{out} is no report: give another --out, or rename it")
    write_report(rows, out, config.rows.name, find_questions(rows, config.benchmark))
    print(out)


def find_questions(rows: list[SampleRow], sources: tuple[str, ...]) -> dict[tuple[str, str], tuple[str, str]]:
    """Return question and gold answer of the rows' problems that `sources` hold, by benchmark and id.

    Raises UserError for a problem that had another question or answer when its row was written, and for a source of none of the rows.
    """
    from s1jax.evaluate.problems import read_problems

    digests = {(row["benchmark"], row["problem_id"]): row["problem"] for row in rows}
    found = {}
    for source in sources:
        problems = {(problem.benchmark, problem.problem_id): problem for problem in read_problems(source)}
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


if __name__ == "__main__":
    run_command(main)
