"""Draw the scaling curves of a file of sample rows.

Writes thinking.png (accuracy against thinking tokens) and, if each problem has several samples, voting.png (majority voting). The points of
each figure are written beside it as JSON. Rows that differ in model, weights, benchmark or any setting are kept apart.
Standard output: one JSON line per figure. Standard error: the points as tables.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from s1jax.results.samples import distinct_samples, read_samples
from s1jax.results.tables import format_thinking_table, format_voting_table
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable

logger = logging.getLogger("s1jax.launch")


@dataclass(frozen=True)
class PlotConfig:
    """The rows to draw, and the folder for the figures."""

    rows: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROWS")]
    """Sample rows (JSONL) that evaluate.py and sweep.py wrote."""
    out: Path | None = None
    """Directory for the figures; default: the directory of the rows."""


def main() -> None:
    """Read the rows, write the figures, print the tables."""
    config = parse_arguments(__doc__, PlotConfig)
    # A notebook's backend may stop the import of matplotlib, and a user's settings may ask for LaTeX.
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    from s1jax.results.figures import holds_points, plot_thinking, plot_voting

    rows = read_samples(config.rows)
    if copies := len(rows) - len(distinct_samples(rows)):
        why = "temperature 0, or an unused ignore text"
        logger.info("%d of %d rows are copies of others (%s): left out\n", copies, len(rows), why)
    out = config.out or config.rows.parent
    voting = format_voting_table(rows)
    figures = [out / "thinking.png", *([out / "voting.png"] if voting else [])]
    for path in (*figures, *(figure.with_suffix(".json") for figure in figures)):
        check_writable(path)
        if path.resolve() == config.rows.resolve():
            raise UserError(
                f"{path} holds the rows, and the figures would replace it: give another --out, or rename it"
            )
    for figure in figures:
        points = figure.with_suffix(".json")
        if (figure.exists() or points.exists()) and not holds_points(points):
            raise UserError(f"{figure} or {points.name} is of another program: give another --out, or rename it")
    plot_thinking(rows, figures[0])
    logger.info(format_thinking_table(rows))
    if voting:
        plot_voting(rows, figures[1])
        logger.info("\n%s", voting)
    else:
        logger.info("\nno voting figure: no setting has two samples of each of its problems")
    for figure in figures:
        print(json.dumps({"figure": str(figure), "points": str(figure.with_suffix(".json"))}))


if __name__ == "__main__":
    run_command(main)
