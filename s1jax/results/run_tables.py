"""All tables of a file of sample rows, as text, Markdown and JSON: curves, votes, turns, forced answers, seeds, the grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s1jax.results.control import summarise_curves
from s1jax.results.escape import MULTIPLE, escapes
from s1jax.results.grid import scaling_grid, to_compare
from s1jax.results.grid_table import grid_tables
from s1jax.results.metrics import Point, thinking_curve, voting_curve
from s1jax.results.paired import explain_test
from s1jax.results.samples import CURVE, SampleRow, pick
from s1jax.results.seeds import seed_spread
from s1jax.results.tables import CurveNames, groups, percent, setting_text, stop_text, thinking_tables, voting_tables
from s1jax.results.turns import turns
from s1jax.runtime.command import counted
from s1jax.runtime.files import write_file
from s1jax.runtime.text_table import Table

_MAX_SEEDS = 10
"""A table has a column per seed up to this number of seeds."""


def sequential_tables(rows: Sequence[SampleRow], multiple: float = MULTIPLE) -> list[Table]:
    """Return the tables of the sequential curves, then those of turns, forced answers and seeds if the rows have them."""
    return [*thinking_tables(rows), *_turn_tables(rows), *_escape_tables(rows, multiple), *_seed_tables(rows)]


def format_tables(rows: Sequence[SampleRow], multiple: float = MULTIPLE) -> str:
    """Return `sequential_tables` as aligned plain text. `multiple` is that of `escapes`."""
    return "\n\n".join(table.text() for table in sequential_tables(rows, multiple))


def write_tables(rows: Sequence[SampleRow], path: Path, multiple: float = MULTIPLE) -> None:
    """Write all tables to `path` as Markdown, and what they are made of beside it as JSON: lists of points by the name of the table."""
    compared = to_compare(scaling_grid(rows))
    tables = [*sequential_tables(rows, multiple), *voting_tables(rows), *grid_tables(compared)]
    points = thinking_curve(rows)
    curves = groups(points, *CURVE)
    content: dict[str, list[dict[str, Any]]] = {
        "curves": points,
        "control": [
            dict(zip(CURVE, pick(curve[0], CURVE), strict=True)) | summary
            for curve, summary in zip(curves, summarise_curves(rows), strict=True)
        ],
        "votes": voting_curve(rows),
        "turns": turns(rows),
        "escapes": escapes(rows, multiple),
        "seeds": seed_spread(rows),
        "grid": compared,
    }
    write_file(path, "\n\n".join(table.markdown() for table in tables) + "\n")
    write_file(path.with_suffix(".json"), json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def holds_tables(path: Path) -> bool:
    """Return whether a file holds tables, as `write_tables` writes them beside the Markdown."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"curves", "control", "votes", "turns"} <= content.keys()


def _turn_tables(rows: Sequence[SampleRow]) -> list[Table]:
    """Return a table per curve with ignored stops."""
    points, tables = turns(rows), []
    names = CurveNames(thinking_curve(rows))
    for curve in groups(points, *CURVE):
        header = ("one more ignored stop", "answers", "had one to ignore", "wrong to right", "right to wrong", "p")
        cells = [
            (
                f"{setting_text({**p, 'num_ignore': 0, 'min_thinking_tokens': 0})}, {stop_text(p)} x{p['num_ignore_before']} to "
                f"x{p['num_ignore']}" + (f", at least {p['min_thinking_tokens']:,}" if p["min_thinking_tokens"] else ""),
                str(p["n"]), str(p["num_longer"]), str(p["num_to_right"]), str(p["num_to_wrong"]), p_text(p),
            )
            for p in curve
        ]  # fmt: skip
        title = f"Answers that an ignored stop turned: {names.title(curve[0])}"
        tables.append(Table(title, header, cells, explain_test({p["test"] for p in curve})))
    return tables


def p_text(point: Point) -> str:
    """Return a p-value with three digits behind the point."""
    return "< 0.001" if point["p_value"] < 0.001 else f"{point['p_value']:.3f}"


def _escape_tables(rows: Sequence[SampleRow], multiple: float) -> list[Table]:
    """Return a table per curve with forced answers."""
    points, tables = escapes(rows, multiple), []
    names = CurveNames(thinking_curve(rows))
    for curve in groups(points, *CURVE):
        if not any(p["num_forced"] for p in curve):
            continue
        header = (
            "setting", "n", "forced %", "escaped %", "95% interval", "reopened", "too long", "cut %", "empty %", "not found %",
        )  # fmt: skip
        cells = []
        for p in curve:
            forced, cut, empty, not_found = (
                f"{100 * p[name] / p['n']:.1f}" for name in ("num_forced", "num_cut", "num_empty", "num_not_found")
            )
            escaped = percent(p, "escape_rate") if p["num_forced"] else ("-", "-")
            too_long = "-" if p["longest"] is None else str(p["num_longer"])
            cells.append(
                (
                    setting_text(p),
                    str(p["n"]),
                    forced,
                    *escaped,
                    str(p["num_reopened"]),
                    too_long,
                    cut,
                    empty,
                    not_found,
                )
            )
        title = f"Forced answers, and those in which the model goes on thinking: {names.title(curve[0])}"
        tables.append(Table(title, header, cells, _escape_notes(curve[0], multiple)))
    return tables


def _escape_notes(point: Point, multiple: float) -> list[str]:
    if point["longest"] is None:
        return [
            "too long: not known, because no answer that is not empty follows thinking that the model ended: give a larger budget, too"
        ]
    notes = [
        f"too long: more than {point['longest']:g} tokens, {multiple:g} times the median of {counted(point['num_unforced'], 'answer')} "
        "that are not empty and whose thinking the model ended"
    ]
    if point["longest"] >= point["max_answer_tokens"]:
        notes.append(
            f"warning: no answer can be too long, because --max-answer-tokens is {point['max_answer_tokens']}: raise it"
        )
    return notes


def _seed_tables(rows: Sequence[SampleRow]) -> list[Table]:
    """Return a table per curve with several seeds."""
    points, tables = seed_spread(rows), []
    names = CurveNames(thinking_curve(rows))
    for curve in groups(points, *CURVE):
        numbers = sorted({seed["seed"] for p in curve for seed in p["seeds"]})
        shown = numbers if len(numbers) <= _MAX_SEEDS else []
        header = (
            "setting", "problems", "seeds", *(f"seed {number} %" for number in shown), "mean %", "deviation", "lowest %", "highest %",
        )  # fmt: skip
        cells = []
        for p in curve:
            of_seed = {seed["seed"]: f"{100 * seed['accuracy']:.1f}" for seed in p["seeds"]}
            figures = [f"{100 * p[name]:.1f}" for name in ("mean", "deviation", "lowest", "highest")]
            each = (of_seed.get(number, "-") for number in shown)
            cells.append((setting_text(p), str(p["num_problems"]), str(len(p["seeds"])), *each, *figures))
        notes = ["deviation: standard deviation over seeds (n - 1), in points of accuracy"]
        if left_out := max(p["num_left_out"] for p in curve):
            notes.append(f"warning: up to {counted(left_out, 'problem')} left out: not every seed answered them")
        tables.append(Table(f"Accuracy of each seed: {names.title(curve[0])}", header, cells, notes))
    return tables
