"""Sample rows -> the files that show them: figures, tables and the report. No file of another program is replaced.

Invariant: if one of the files cannot be written, none is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s1jax.results.escape import MULTIPLE
from s1jax.results.paper import paper_points
from s1jax.results.run_tables import holds_tables, write_tables
from s1jax.results.samples import SampleRow
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable

if TYPE_CHECKING:
    from s1jax.results.report import Questions

# Read before matplotlib is imported: a notebook's backend may stop the import, and a user's settings may ask for LaTeX.
_MATPLOTLIB = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}


def write_figures(
    rows: Sequence[SampleRow], rows_path: Path, out: Path, paper: bool = False, multiple: float = MULTIPLE
) -> dict[Path, str]:
    """Write the figures of some rows and their tables into a directory, each with its points as JSON beside it.

    `paper` adds the paper's points, and `multiple` is that of `escape.py`. Returns the files, each with "figure" or "tables".

    Raises UserError if a file cannot be written, holds the rows, or is of another program.
    """
    os.environ |= _MATPLOTLIB
    from s1jax.results.figure_page import holds_points
    from s1jax.results.figures import plots_of

    drawn = paper_points({row["benchmark"] for row in rows}) if paper else []
    plots = {out / f"{name}.png": plot for name, plot in plots_of(rows, drawn).items()}
    plots[tables := out / "tables.md"] = lambda path: write_tables(rows, path, multiple)
    for shown in plots:
        for path in (shown, data := shown.with_suffix(".json")):
            check_writable(path)
            if path.resolve() == rows_path.resolve():
                raise UserError(f"{path} holds the rows, which would be replaced: give another --out, or rename it")
        is_ours = holds_tables if shown == tables else holds_points
        if (shown.exists() or data.exists()) and not is_ours(data):
            raise UserError(f"{shown} or {data.name} is of another program: give another --out, or rename it")
    for shown, plot in plots.items():
        plot(shown)
    return {shown: "tables" if shown == tables else "figure" for shown in plots}


def write_report_file(rows: Sequence[SampleRow], path: Path, title: str, questions: Questions) -> None:
    """Write the report of some rows (`report.py`). Raises UserError if it cannot be written, or would replace another file."""
    os.environ |= _MATPLOTLIB
    from s1jax.results.report import is_report, write_report

    check_writable(path)
    if path.exists() and not is_report(path):
        raise UserError(f"{path} is no report: give another --out, or rename it")
    write_report(rows, path, title, questions)
