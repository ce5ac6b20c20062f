"""Draw the scaling curves of a file of sample rows, and write its tables.

Writes thinking.png (accuracy against thinking tokens), voting.png (majority voting) if each problem has several samples, tokens.png
(accuracy against all tokens) if a benchmark has two lines, such as a curve's budgets and its votes, and tables.md; each with its points as
JSON beside it. Rows that differ in model, weights, benchmark or any setting are kept apart.
Standard output: one JSON line per figure, and one for the tables. Standard error: the tables.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from s1jax.results.escape import MULTIPLE
from s1jax.results.paper import paper_points
from s1jax.results.run_tables import format_tables, holds_tables, write_tables
from s1jax.results.samples import distinct_samples, read_samples
from s1jax.results.tables import format_voting_table
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
    """Directory for the figures and tables; default: the directory of the rows."""
    paper: bool = False
    """Draw the paper's points of s1-32B in thinking.png, in the panels of aime24, math500 and gpqa_diamond."""
    escape_multiple: float = MULTIPLE
    """A forced answer that is longer than this multiple of the median unforced answer counts as one that goes on thinking."""


def main() -> None:
    """Read the rows, write the figures and tables, print the tables."""
    config = parse_arguments(__doc__, PlotConfig)
    if not 0 < config.escape_multiple < float("inf"):
        raise UserError(f"escape_multiple is {config.escape_multiple}; it must be a number above 0")
    # A notebook's backend may stop the import of matplotlib, and a user's settings may ask for LaTeX.
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    from s1jax.results.figure_page import holds_points
    from s1jax.results.figures import plots_of

    rows = read_samples(config.rows)
    paper = paper_points({row["benchmark"] for row in rows}) if config.paper else []
    if copies := len(rows) - len(distinct_samples(rows)):
        logger.info("%d of %d rows are copies (temperature 0, or unused ignore text): left out\n", copies, len(rows))
    out = config.out or config.rows.parent
    plots = {out / f"{name}.png": plot for name, plot in plots_of(rows, paper).items()}
    plots[tables := out / "tables.md"] = lambda path: write_tables(rows, path, config.escape_multiple)
    for shown in plots:
        for path in (shown, data := shown.with_suffix(".json")):
            check_writable(path)
            if path.resolve() == config.rows.resolve():
                raise UserError(f"{path} holds the rows, which would be replaced: give another --out, or rename it")
        is_ours = holds_tables if shown == tables else holds_points
        if (shown.exists() or data.exists()) and not is_ours(data):
            raise UserError(f"{shown} or {data.name} is of another program: give another --out, or rename it")
    for shown, plot in plots.items():
        plot(shown)
        kind = "tables" if shown == tables else "figure"
        print(json.dumps({kind: str(shown), "points": str(shown.with_suffix(".json"))}))
    logger.info(format_tables(rows, config.escape_multiple))
    voting = format_voting_table(rows) or "no voting figure: no setting has two samples of each of its problems"
    logger.info("\n%s", voting)


if __name__ == "__main__":
    run_command(main)
