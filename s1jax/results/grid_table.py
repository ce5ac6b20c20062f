"""Points of `scaling_grid` -> tables: accuracy against all tokens, and three ways at equal tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s1jax.results.grid import at_equal_tokens
from s1jax.results.metrics import Point
from s1jax.results.samples import CURVE
from s1jax.results.tables import CurveNames, groups, percent, quoted, setting_text
from s1jax.runtime.text_table import Table


def format_grid_table(grid: Sequence[Point]) -> str:
    """Return `grid_tables` as aligned plain text."""
    return "\n\n".join(table.text() for table in grid_tables(grid))


def grid_tables(grid: Sequence[Point]) -> list[Table]:
    """Return a table per curve of the points of `scaling_grid`, each followed by one of the three ways at equal tokens, if there are some.

    A point on the Pareto front has a star. "tokens" are thinking, answers and rejected tries of all votes.
    """
    names, tables = CurveNames(grid), []
    for curve in groups(grid, *CURVE):
        header = ("setting", "votes", "accuracy %", "95% interval", "thinking tokens", "tokens", "front")
        cells = []
        for p in curve:
            sizes = (f"{p['thinking_tokens']:,.1f}", f"{p['tokens']:,.1f}", "*" if p["is_on_front"] else "")
            cells.append((setting_text(p), str(p["k"]), *percent(p, "accuracy"), *sizes))
        title = names.title(curve[0])
        tables.append(Table(f"Budgets and votes: {title}", header, cells))
        if levels := at_equal_tokens(curve):
            tables.append(_equal_tokens(levels, title))
    return tables


def _equal_tokens(levels: Sequence[dict[str, Any]], title: str) -> Table:
    ways = [name for name in levels[0] if name not in ("share", "tokens")]
    header = [f"extending {quoted(w[10:])}" if w.startswith("extending ") else w for w in ways]
    rows = [
        (
            f"{level['share']:g}",
            f"{level['tokens']:,.1f}",
            *("-" if level[way] is None else f"{100 * level[way]:.1f}" for way in ways),
        )
        for level in levels
    ]
    return Table(f"accuracy % at equal tokens: {title}", ("of a whole trace", "tokens", *header), rows)
