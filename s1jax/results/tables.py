"""Sample rows -> tables of the curves, and short names of curves and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from s1jax.data.control_methods import METHOD_FORMATS
from s1jax.results.control import summarise_curves
from s1jax.results.metrics import Point, thinking_curve, voting_curve
from s1jax.results.samples import CURVE, SETTING, SampleRow, answers_at_once, pick
from s1jax.runtime.command import counted
from s1jax.runtime.terminal import shortened, visible
from s1jax.runtime.text_table import Table

WARN_ABOVE = 0.1
"""A table warns of a fault if more than this share of a point's samples have it."""

# Columns that name the fingerprint's owner: the fingerprint is shown only if one owner has several.
_OWNERS = {"weights": ("model",), "tokenizer": ("model", "weights")}


def groups(points: Sequence[Point], *columns: str) -> list[list[Point]]:
    """Group points by their values in some columns. The groups are in the order in which they first appear."""
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(pick(point, columns), []).append(point)
    return list(groups.values())


class CurveNames:
    """Names the curves of some points by what sets them apart.

    A column has a part in a name if its known values differ between the points, except for a value that the method implies. A fingerprint
    has a part only for a model whose name stands for several. A point that lacks columns, as rows of an earlier format do, has a part
    "unknown" if other points have these columns.
    """

    def __init__(self, points: Sequence[Point]):
        self.varying = {name for name in CURVE if name not in _OWNERS and _num_known(points, name) > 1}
        self.ambiguous = {
            (name, pick(group[0], owner))
            for name, owner in _OWNERS.items()
            for group in groups(points, *owner)
            if _num_known(group, name) > 1
        }
        self.is_known_alike = len({_unknown(p) for p in points}) < 2

    def parts(self, point: Point) -> dict[str, str]:
        """Return the parts of the name of a point's curve, in the order of `CURVE`."""
        parts = {}
        for name in CURVE:
            is_shown = (name, pick(point, _OWNERS[name])) in self.ambiguous if name in _OWNERS else name in self.varying
            if is_shown and point[name] is not None and not _is_implied(point, name):
                parts[name] = column_text(name, point[name])
        if not self.is_known_alike and (unknown := _unknown(point)):
            parts["unknown"] = f"{len(unknown)} settings unknown"
        return parts

    def title(self, point: Point) -> str:
        """Return the title of a table: benchmark, model, method and temperature, then all else that sets its curve apart."""
        always = {n: column_text(n, point[n]) for n in ("benchmark", "model", "method", "temperature")}
        return ", ".join((always | self.parts(point)).values())


def _num_known(points: Sequence[Point], name: str) -> int:
    return len({p[name] for p in points if not _is_implied(p, name)} - {None})


def _is_implied(point: Point, name: str) -> bool:
    """Return whether a point's method leaves no choice in a column."""
    if name == "max_tries":
        return point["method"] != "rejection_sampling"
    if name == "wrap_up":
        return answers_at_once(point)
    return name == "thinking_format" and point[name] == METHOD_FORMATS.get(point["method"])


def _unknown(point: Point) -> tuple[str, ...]:
    return tuple(name for name in CURVE if point[name] is None)


def column_text(name: str, value: Any) -> str:
    """Name a value of a column in a word or two."""
    if name in ("benchmark", "model", "method", "dtype"):
        return visible(str(value))
    if name in ("weights", "tokenizer"):
        return f"{name} {value[:6]}"
    if name == "int8":
        return f"int8 {' and '.join(value)}" if value else "no int8"
    if name in ("wrap_up", "prompt_suffix", "system_prompt"):
        value = shortened(value, length=40)
    text = f"{value:g}" if isinstance(value, float) else visible(f"{value}")
    return f"{'answer limit' if name == 'max_answer_tokens' else name.replace('_', '-')} {text}"


def setting_text(point: Point) -> str:
    """Name the limits of a point in a few words, such as `budget 4,096, "Wait" x2`."""
    if answers_at_once(point):
        return "no thinking"
    minimum, num_ignore = point["min_thinking_tokens"], point["num_ignore"]
    parts = [requested_text(point)] if point["requested"] else []
    parts.append(f"budget {point['max_thinking_tokens']:,}")
    if minimum:
        parts.append(f"at least {minimum:,}")
    if minimum or num_ignore:
        parts.append(stop_text(point) + (f" x{num_ignore}" if num_ignore else ""))
    return ", ".join(parts)


def requested_text(point: Point) -> str:
    """Name the amount of thinking that the prompt asks for, such as `asked for 1,024 tokens`."""
    amount, kind = point["requested"], point["method"].partition("_")[0]
    return f"asked for {amount} thinking" if kind == "class" else f"asked for {int(amount):,} {kind}s"


def stop_text(point: Point) -> str:
    """Return, in quotes, the text that replaces an attempt to stop."""
    return quoted(point["ignore_text"]) if point["ignore_text"] else "no stop"


def quoted(text: str) -> str:
    """Return a text in quotes. Backslashes, line breaks and other characters that do not print are escaped."""
    escaped = (c if c.isprintable() and c != "\\" else ascii(c)[1:-1] for c in text)
    return f'"{"".join(escaped)}"'


def format_thinking_table(rows: Sequence[SampleRow]) -> str:
    """Return the sequential curves as aligned plain text (`thinking_tables`)."""
    return "\n\n".join(table.text() for table in thinking_tables(rows))


def thinking_tables(rows: Sequence[SampleRow]) -> list[Table]:
    """Return a table per sequential curve, with its Control, Scaling and Performance below.

    "ended by budget" counts the samples whose thinking reached the budget, and checks that each stopped exactly there. "cut" counts the
    answers that their limit ended, "not found" those in which no answer was found. Below a table are warnings (`_warnings`). Several
    curves are compared in a last table.
    """
    tables, summaries, points = [], [], thinking_curve(rows)
    names = CurveNames(points)
    for curve, summary in zip(groups(points, *CURVE), summarise_curves(rows), strict=True):
        title = names.title(curve[0])
        extra = list(_method_columns(curve[0]))
        header = ("setting", "n", "thinking tokens", *extra, "cut", "not found", "accuracy %", "95% interval")
        cells = [
            (
                setting_text(p), str(p["n"]), f"{p['mean_thinking_tokens']:,.1f}", *_method_columns(p).values(), str(p["num_cut"]),
                str(p["num_not_found"]), *percent(p, "accuracy"),
            )
            for p in curve
        ]  # fmt: skip
        control, of_samples, slope, best = _merits(summary)
        merits = f"Control {control} ({of_samples} of samples)   Scaling {slope}   Performance {best}"
        tables.append(Table(title, header, cells, [merits, *_warnings(curve)]))
        summaries.append(
            (
                ", ".join(names.parts(curve[0]).values()),
                control,
                of_samples,
                slope.replace(" points per doubling", ""),
                best,
            )
        )
    if len(summaries) > 1:
        header = ("curve", "Control", "of samples", "Scaling (points per doubling)", "Performance")
        tables.append(Table("Figures of merit of each curve", header, summaries))
    return tables


def _method_columns(point: Point) -> dict[str, str]:
    """Return the columns that belong to a point's method, by their headers."""
    if answers_at_once(point):
        return {}
    if point["method"] == "rejection_sampling":
        return {
            "tries": f"{point['mean_tries']:.1f}",
            "rejected tokens": f"{point['mean_rejected_tokens']:,.1f}",
            "none accepted": str(point["num_rejected"]),
        }
    ended = f"{point['num_budget_ended']} of {point['n']}"
    if point["num_over_budget"]:
        ended += f", {point['num_over_budget']} OVER IT"
    elif point["num_budget_ended"]:
        ended += f", all at {point['max_thinking_tokens']:,}"
    columns = {"ended by budget": ended}
    if "mean_steps" in point:
        columns |= {
            "steps": f"{point['mean_steps']:.1f}",
            "too many steps": str(point["num_steps_over"]),
            "no step": str(point["num_without_steps"]),
        }
    return columns


def _merits(summary: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return Control, Control of samples, Scaling and Performance as text; "-" for what is unknown."""

    def text(name: str, form: str, unit: str = "%") -> str:
        return "-" if summary[name] is None else f"{100 * summary[name]:{form}}{unit}"

    scaling = text("scaling_per_doubling", "+.1f", " points per doubling")
    return text("control", ".0f"), text("control_per_sample", ".0f"), scaling, text("performance", ".1f")


def _warnings(curve: Sequence[Point]) -> Iterator[str]:
    """Yield what a reader of a table might miss: faults of more than `WARN_ABOVE` of the samples, and points over other problems."""
    largest = max(p["max_thinking_tokens"] for p in curve)
    faults: list[tuple[str, str, str, Sequence[Point]]] = [
        ("num_not_found", "no answer was found", r'an answer is a \boxed{...} or what follows "Answer:"', curve),
        (
            "num_cut",
            "the answer limit cut the answer",
            f"raise --max-answer-tokens above {curve[0]['max_answer_tokens']}",
            curve,
        ),
        (
            "num_budget_ended",
            "the largest budget ended the thinking",
            f"raise {'--requested' if curve[0]['method'] == 'token_conditional_forced' else '--max-thinking-tokens'} above {largest}",
            [p for p in curve if p["max_thinking_tokens"] == largest > 0],
        ),
    ]
    if "num_rejected" in curve[0]:
        hint = f"raise --max-tries above {curve[0]['max_tries']}, or --max-thinking-tokens"
        faults.append(("num_rejected", "every trace was too long, so that there is no answer", hint, curve))
    for count, fault, hint, points in faults:
        if found := [p for p in points if p[count] > WARN_ABOVE * p["n"]]:
            where = "; ".join(f"{p[count]} of {p['n']} under {setting_text(p)}" for p in found[:3])
            more = f"; and under {counted(len(found) - 3, 'other setting')}" if len(found) > 3 else ""
            yield f"warning: in more than {WARN_ABOVE:.0%} of samples {fault} ({where}{more}): {hint}"
    if num_timed_out := sum(p["num_timed_out"] for p in curve):
        answers = counted(num_timed_out, "answer")
        yield f"warning: {answers} could not be compared in time and counted as wrong: regrade.py compares again"
    sets = groups(curve, "problem_set")
    if len(sets) > 1:
        names = ("; ".join(setting_text(p) for p in points) for points in sets)
        which = " | ".join(
            f"{counted(p[0]['num_problems'], 'problem')} under {n}" for p, n in zip(sets, names, strict=True)
        )
        yield f"warning: these points are over different problems, so they have no common line and no Scaling: {which}"


def format_voting_table(rows: Sequence[SampleRow]) -> str:
    """Return the parallel curves as aligned plain text (`voting_tables`); "" if no setting has two samples of each problem."""
    return "\n\n".join(table.text() for table in voting_tables(rows))


def voting_tables(rows: Sequence[SampleRow]) -> list[Table]:
    """Return a table of the parallel curve of each setting that has two samples of each problem."""
    tables, points = [], voting_curve(rows)
    names = CurveNames(points)
    for setting in groups(points, *SETTING):
        title = f"{names.title(setting[0])}, {setting_text(setting[0])}"
        header = ("k", "maj@k %", "95% interval", "pass@k %", "95% interval")
        cells = [(str(p["k"]), *percent(p, "maj_at_k"), *percent(p, "pass_at_k")) for p in setting]
        tables.append(Table(title, header, cells))
    return tables


def percent(point: Point, name: str) -> tuple[str, str]:
    """Return two cells, in percent: a statistic and its interval."""
    return f"{100 * point[name]:.1f}", f"{100 * point[f'{name}_low']:.1f} to {100 * point[f'{name}_high']:.1f}"
