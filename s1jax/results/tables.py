"""Text: sample rows -> tables of the curves for terminals, and settings in words. (Figures: `plot.py`.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from s1jax.results.metrics import ThinkingPoint, VotingPoint, summarise_curves, thinking_curve, voting_curve
from s1jax.results.samples import Curve, SampleRow, Setting

Point = TypeVar("Point", ThinkingPoint, VotingPoint)


def groups(points: Sequence[Point], *columns: str) -> list[list[Point]]:
    """Group points by their values in some columns, groups in the order they first come up."""
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(point[name] for name in columns), []).append(point)  # type: ignore[literal-required]
    return list(groups.values())


def setting_text(setting: Setting) -> str:
    """Name the budget-forcing part of a setting in a few words, such as `budget 4,096, "Wait" x2`."""
    minimum, num_ignore = setting["min_thinking_tokens"], setting["num_ignore"]
    parts = [f"budget {setting['max_thinking_tokens']:,}"]
    parts += [f"at least {minimum:,}"] if minimum else []
    parts += [stop_text(setting) + (f" x{num_ignore}" if num_ignore else "")] if minimum or num_ignore else []
    return ", ".join(parts)


def stop_text(setting: Setting) -> str:
    """Return what replaces an attempt to stop, in quotes."""
    return quoted(setting["ignore_text"]) if setting["ignore_text"] else "no stop"


def quoted(text: str) -> str:
    """Return a text in quotes, with backslashes, line breaks and all else that does not print escaped."""
    escaped = (c if c.isprintable() and c != "\\" else ascii(c)[1:-1] for c in text)
    return f'"{"".join(escaped)}"'


def format_thinking_table(rows: Sequence[SampleRow]) -> str:
    """Return the thinking curves as aligned plain text, one block per curve, its Control, Scaling and Performance below.

    "ended by budget" counts the samples whose thinking reached the budget, and checks that each stopped exactly there.
    """
    blocks = []
    curves = groups(thinking_curve(rows), *Curve.__annotations__)
    for points, summary in zip(curves, summarise_curves(rows), strict=True):
        table = [("setting", "n", "thinking tokens", "ended by budget", "accuracy %", "95% interval")]
        for p in points:
            ended = f"{p['num_budget_ended']} of {p['n']}"
            if p["num_over_budget"]:
                ended += f", {p['num_over_budget']} OVER IT"
            elif p["num_budget_ended"]:
                ended += f", all at {p['max_thinking_tokens']:,}"
            tokens = f"{p['mean_thinking_tokens']:,.1f}"
            table.append((setting_text(p), str(p["n"]), tokens, ended, *_percent(p, "accuracy")))
        slope = summary["scaling_per_doubling"]
        merits = (
            f"Control {100 * summary['control']:.0f}% ({100 * summary['control_per_sample']:.0f}% of samples)",
            "Scaling " + ("-" if slope is None else f"{100 * slope:+.1f} points per doubling"),
            f"Performance {100 * summary['performance']:.1f}%",
        )
        blocks.append("\n".join([_curve_title(points[0]), *_align(table), "   ".join(merits)]))
    return "\n\n".join(blocks)


def format_voting_table(rows: Sequence[SampleRow]) -> str:
    """Return the voting curves as aligned plain text, one block per setting; "" where none has two samples a problem."""
    blocks = []
    for points in groups(voting_curve(rows), *Setting.__annotations__):
        title = f"{_curve_title(points[0])}, {setting_text(points[0])}"
        table = [("k", "maj@k %", "95% interval", "pass@k %", "95% interval")]
        table += [(str(p["k"]), *_percent(p, "maj_at_k"), *_percent(p, "pass_at_k")) for p in points]
        blocks.append("\n".join([title, *_align(table)]))
    return "\n\n".join(blocks)


def _curve_title(point: Setting) -> str:
    return f"{point['benchmark']}, {point['model']}, {point['method']}, temperature {point['temperature']:g}"


def _percent(point: Any, name: str) -> tuple[str, str]:
    return f"{100 * point[name]:.1f}", f"{100 * point[f'{name}_low']:.1f} to {100 * point[f'{name}_high']:.1f}"


def _align(table: Sequence[Sequence[str]]) -> list[str]:
    """Pad the first column on the right and the others on the left, with a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    pad = [str.ljust] + [str.rjust] * (len(widths) - 1)
    lines = ["  ".join(p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)) for row in table]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
