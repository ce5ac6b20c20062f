"""Draw the scaling curves of a file of sample rows, and write its tables.

Writes thinking.png (accuracy against thinking tokens), voting.png (majority voting) if each problem has several samples, tokens.png
(accuracy against all tokens) if a benchmark has two lines, such as a curve's budgets and its votes, and tables.md; each with its points as
JSON beside it. Rows that differ in model, weights, benchmark or any setting are kept apart.
Standard output: one JSON line per figure, and one for the tables. Standard error: the tables.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from s1jax.results.escape import MULTIPLE
from s1jax.results.output import write_figures
from s1jax.results.run_tables import format_tables
from s1jax.results.samples import distinct_samples, read_samples
from s1jax.results.tables import format_voting_table
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError

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
    rows = read_samples(config.rows)
    if copies := len(rows) - len(distinct_samples(rows)):
        logger.info("%d of %d rows are copies (temperature 0, or unused ignore text): left out\n", copies, len(rows))
    out = config.out or config.rows.parent
    for path, kind in write_figures(rows, config.rows, out, config.paper, config.escape_multiple).items():
        print(json.dumps({kind: str(path), "points": str(path.with_suffix(".json"))}))
    logger.info(format_tables(rows, config.escape_multiple))
    voting = format_voting_table(rows) or "no voting figure: no setting has two samples of each of its problems"
    logger.info("\n%s", voting)


if __name__ == "__main__":
    run_command(main)
