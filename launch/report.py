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

from s1jax.results.output import write_report_file
from s1jax.results.samples import read_samples
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments


@dataclass(frozen=True)
class ReportConfig:
    """The rows to show, and the file for the report."""

    rows: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROWS")]
    """Sample rows (JSONL) that evaluate.py and sweep.py wrote."""
    out: Path | None = None
    """File for the report; default: report.html in the directory of the rows."""
    benchmark: tuple[str, ...] = ()
    """The benchmarks in the rows: JSONL or Parquet files, or hub datasets. Their questions and gold answers are shown."""
    columns: tuple[str, ...] = ()
    """Which columns of the given benchmarks are what, as in `evaluate.py`."""
    subset: str | None = None
    """Subset of a hub dataset that is given as a benchmark."""
    split: str | None = None
    """Split of a hub dataset that is given as a benchmark."""


def main() -> None:
    """Read the rows and problems, and write the report."""
    config = parse_arguments(__doc__, ReportConfig)
    os.environ["JAX_PLATFORMS"] = "cpu"
    from s1jax.evaluate.questions import find_questions

    rows = read_samples(config.rows)
    questions = find_questions(rows, config.benchmark, config.columns, config.subset, config.split)
    out = config.out or config.rows.with_name("report.html")
    write_report_file(rows, out, config.rows.name, questions)
    print(out)


if __name__ == "__main__":
    run_command(main)
