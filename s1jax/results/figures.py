"""Figures of test-time scaling: sample rows -> PNG or SVG files, each with its points as JSON beside it.

*Sequential* scaling is accuracy against thinking tokens, on a log2 axis, since each doubling counts the same (paper, figure 1).
*Parallel* scaling is majority voting over k samples. Both meet on one axis of all tokens (paper, figure 4). Each benchmark has a panel.

Invariant: a figure shows exactly the points of its JSON, and a line joins only points of one series over the same problems. Only a Pareto
front runs through several series of a curve.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from s1jax.results.figure_page import GREY, Page, drawing, log2_axis, percent_axis
from s1jax.results.grid import scaling_grid, to_compare
from s1jax.results.metrics import Point, thinking_curve, voting_curve
from s1jax.results.paper import NAME
from s1jax.results.samples import CURVE, SETTING, SampleRow, answers_at_once, pick
from s1jax.results.tables import CurveNames, groups, quoted
from s1jax.runtime.errors import UserError

logger = logging.getLogger(__name__)

# Columns that the points of one line, or of a line and the ignored stops that leave from it, share. A panel has one benchmark.
_SERIES = (*(name for name in CURVE if name != "benchmark"), "min_thinking_tokens", "problem_set")
_OTHER_VOTES, _FRONT = "majority vote at other settings", "Pareto front"
_START = ("max_thinking_tokens", "requested", "ignore_text")
"""Columns that ignored stops share with the point that they leave from."""


def plots_of(rows: Sequence[SampleRow], paper: Sequence[Point] = ()) -> dict[str, Callable[[Path], object]]:
    """Return the functions that draw the figures of some rows into a file, by the figures' names.

    `thinking` is always there, `voting` if a setting has two samples of each problem, and `tokens` if `to_compare` finds something.
    """
    plots: dict[str, Callable[[Path], object]] = {"thinking": lambda path: plot_thinking(rows, path, paper)}
    if voting_curve(rows):
        plots["voting"] = lambda path: plot_voting(rows, path)
    if compared := to_compare(scaling_grid(rows)):
        plots["tokens"] = lambda path: plot_tokens(compared, path)
    return plots


@drawing()
def plot_thinking(rows: Sequence[SampleRow], path: str | Path, paper: Sequence[Point] = ()) -> list[Point]:
    """Draw accuracy against mean thinking tokens, write the points beside it as JSON, and return the points.

    The budgets of a curve form a solid line per minimum. Points that ignore k attempts to stop ("Wait" x k) form a dashed line from the
    same setting without ignored stops. A point without thinking, which a log axis cannot show, becomes a dotted level. A curve of a single
    point, such as samples drawn for voting, is left out, with a message, if another curve of its benchmark has more points. A model that is
    not asked to think has a single point, and stays. `paper` holds points of `paper_points`, which are drawn in grey, with hollow markers.
    """
    every_point = thinking_curve(rows)
    points, names = [], CurveNames(every_point)
    for panel in groups(every_point, "benchmark"):
        curves = groups(panel, *CURVE)
        shortest = min(2, max(map(len, curves)))
        for curve in curves:
            if len(curve) >= shortest or answers_at_once(curve[0]):
                points += curve
            else:
                logger.info("not drawn beside curves of several points, but in the table: %s", names.title(curve[0]))
    page = Page(points, "Sequential scaling: accuracy against thinking time")
    for ax, panel in page.panels:
        theirs = [p for p in paper if p["benchmark"] == panel[0]["benchmark"]]
        values = [p["mean_thinking_tokens"] or 0 for p in (*panel, *theirs)]
        log2_axis(ax, values, "thinking tokens, mean per problem (log scale)")
        lows, highs = ([p[f"accuracy_{side}"] for p in panel] for side in ("low", "high"))
        percent_axis(ax, [*lows, *(p["accuracy"] for p in theirs)], [*highs, *(p["accuracy"] for p in theirs)])
        for group in groups(panel, *_SERIES):
            _draw_sequential(page, ax, group, "mean_thinking_tokens")
        if theirs:
            _draw_paper(page, ax, theirs)
    page.write(path, paper)
    return [*points, *paper]


@drawing()
def plot_voting(rows: Sequence[SampleRow], path: str | Path) -> list[Point]:
    """Draw maj@k (thick) and pass@k (thin) against the number of samples k, write the points as JSON, and return the points.

    Raises UserError if no setting has at least two samples of each of its problems.
    """
    points = voting_curve(rows)
    if not points:
        raise UserError("voting needs at least two samples of each problem under one setting; these rows have none")
    page = Page(points, "Parallel scaling: majority voting over k samples")
    for ax, panel in page.panels:
        highs = [max(p["pass_at_k"], p["maj_at_k_high"]) for p in panel]
        log2_axis(ax, [p["k"] for p in panel], "samples per problem, k (log scale)")
        percent_axis(ax, [p["maj_at_k_low"] for p in panel], highs)
        settings = groups(panel, *SETTING)
        for i, group in enumerate(settings):
            # Series that share each k stand a little apart, and together stay within the axis.
            step = min(0.07, 0.3 / max(len(settings) - 1, 1))
            x = [p["k"] * 2 ** (step * (i - (len(settings) - 1) / 2)) for p in group]
            name = page.setting_name(group[0])
            label = f"{name}: majority vote" if name else "majority vote (maj@k)"
            page.draw(ax, x, group, "maj_at_k", page.style(label))
            ax.plot(x, [p["pass_at_k"] for p in group], zorder=2, **page.style(label, (0, (4, 3)), 1, marked=False))
    page.handles["at least one of k is right (pass@k)"] = Line2D([], [], color=GREY, linewidth=1, dashes=(4, 3))
    page.write(path)
    return points


@drawing()
def plot_tokens(points: Sequence[Point], path: str | Path) -> list[Point]:
    """Draw accuracy against all tokens for the points that `to_compare` returns, and write them beside it as JSON.

    All ways to spend tokens share the axis: smaller budgets (solid), ignored stops (dashed) and majority votes over k samples (dotted). The
    votes at the largest budget without ignored stops are drawn in full, those at a curve's other settings as thin lines without intervals.
    A broad band is the Pareto front of a curve that has votes at several settings.
    """
    page = Page(points, "Cutting, extending and voting: accuracy against all tokens")
    for ax, panel in page.panels:
        log2_axis(ax, [p["tokens"] for p in panel], "all tokens, mean per problem (log scale)")
        percent_axis(ax, [p["accuracy_low"] for p in panel], [p["accuracy_high"] for p in panel])
        for group in groups(panel, *_SERIES):
            votes = [line for line in groups(group, *SETTING) if len(line) > 1]
            single = [p for p in group if p["k"] == 1]
            drawn = _draw_sequential(page, ax, single, "tokens", [line[0] for line in votes])
            _draw_votes(page, ax, votes, drawn)
        for curve in groups(panel, *CURVE, "problem_set"):
            _draw_front(page, ax, curve)
    for label in (_OTHER_VOTES, _FRONT):  # last in the legend
        if label in page.handles:
            page.handles[label] = page.handles.pop(label)
    page.remarks.append("Tokens: thinking, answers and rejected tries of all samples.")
    if any(p["k"] > 1 for p in points):
        page.remarks.append("Votes: each point has twice the samples of the one before.")
    page.write(path)
    return list(points)


# ---- series ----


def _draw_sequential(
    page: Page, ax: Axes, group: Sequence[Point], x: str, skipped: Sequence[Point] = ()
) -> list[Point]:
    """Draw the budgets and ignored stops of a group, with the column `x` on the x-axis, and return the drawn points.

    A `skipped` budget that would stand alone is not drawn.
    """
    waits = [p for p in group if p["num_ignore"] and p[x] > 0]
    budgets, drawn = [p for p in group if p not in waits], list(waits)
    for series in groups(budgets, "ignore_text"):
        if len(series) > 1 or series[0] not in skipped:
            _draw_budgets(page, ax, series, x)
            drawn += series
    for series in groups(waits, "ignore_text", "max_thinking_tokens", "requested"):
        text = series[0]["ignore_text"] if series[0]["min_thinking_tokens"] else ""
        start = {**series[0], "ignore_text": text}
        begin = [p for p in budgets if pick(p, _START) == pick(start, _START)]
        _draw_waits(page, ax, begin, series, x)
    return drawn


def _draw_budgets(page: Page, ax: Axes, points: list[Point], x: str) -> None:
    prefix = _prefix(page, points[0])
    axis = "thinking asked for" if points[0]["requested"] else "thinking budget"
    if not any(p["thinking_tokens" if x == "tokens" else x] for p in points):
        axis = "no thinking"
    line = sorted((p for p in points if p[x] > 0), key=lambda p: p[x])
    page.draw(ax, [p[x] for p in line], line, "accuracy", page.style(f"{prefix}{axis}"))
    for point in points:
        if point[x] == 0:
            dotted = page.style(f"{prefix}{axis}", ":", 1.4, marked=False)
            ax.axhline(point["accuracy"], zorder=1, clip_on=False, **dotted)
            page.handles[f"{prefix}no thinking"] = Line2D([], [], **dotted)


def _draw_waits(page: Page, ax: Axes, start: list[Point], points: list[Point], column: str) -> None:
    text = points[0]["ignore_text"]
    what = f"stopping replaced by {quoted(text)}" if text else "stopping forbidden"
    style = page.style(f"{_prefix(page, points[0])}{what}", "--", 1.6)
    points = sorted(points, key=lambda p: p["num_ignore"])
    path = [p for p in start if p[column] > 0] + points
    x, y = [p[column] for p in path], [p["accuracy"] for p in path]
    ax.plot(x, y, color=style["color"], linestyle="--", linewidth=1.6, zorder=3)
    page.draw(ax, x[-len(points) :], points, "accuracy", style, joined=False)
    for point in points:
        page.notes.append((ax, (point[column], point["accuracy_high"]), f"×{point['num_ignore']}", style["color"]))


def _draw_votes(page: Page, ax: Axes, votes: Sequence[list[Point]], drawn: Sequence[Point]) -> None:
    """Draw the votes of several settings, of which one is drawn in full. Lines begin at single samples, which may be `drawn` before."""

    def order(line: list[Point]) -> tuple[Any, ...]:
        return not line[0]["num_ignore"], line[0]["max_thinking_tokens"], line[0]["tokens"]

    for line in sorted(votes, key=order, reverse=True):
        style = page.style(f"{_prefix(page, line[0])}majority vote", (0, (1, 1.2)), 1.8)
        x, y = [p["tokens"] for p in line], [p["accuracy"] for p in line]
        if order(line) == max(map(order, votes)):
            ax.plot(x, y, zorder=3, color=style["color"], linestyle=style["linestyle"], linewidth=style["linewidth"])
            start = int(line[0] in drawn)
            page.draw(ax, x[start:], line[start:], "accuracy", style, joined=False)
        else:
            thin: dict[str, Any] = {
                "linewidth": 0.9,
                "linestyle": "-",
                "marker": ".",
                "markersize": 4,
                "markeredgewidth": 0,
                "zorder": 2,
            }
            ax.plot(x, y, color=style["color"], alpha=0.6, **thin)
            page.handles[_OTHER_VOTES] = Line2D([], [], color=GREY, **thin)


def _draw_front(page: Page, ax: Axes, curve: Sequence[Point]) -> None:
    if len({pick(p, SETTING) for p in curve if p["k"] > 1}) > 1:
        front = sorted((p for p in curve if p["is_on_front"]), key=lambda p: p["tokens"])
        band: dict[str, Any] = {"color": GREY, "alpha": 0.22, "linewidth": 9, "solid_capstyle": "round", "zorder": 1}
        ax.plot([p["tokens"] for p in front], [p["accuracy"] for p in front], **band)
        page.handles[_FRONT] = Line2D([], [], **band | {"linewidth": 6})


def _draw_paper(page: Page, ax: Axes, points: Sequence[Point]) -> None:
    """Draw the paper's points. Those without a number of tokens stand in a strip at the right edge of the panel."""
    hollow: dict[str, Any] = {"color": GREY, "markerfacecolor": "white", "markersize": 6, "linewidth": 1.2, "zorder": 2}
    line = [p for p in points if p["mean_thinking_tokens"]]
    ax.plot([p["mean_thinking_tokens"] for p in line], [p["accuracy"] for p in line], marker="o", **hollow)
    page.handles[NAME] = Line2D([], [], marker="o", **hollow)
    waits = [p for p in points if not p["mean_thinking_tokens"]]
    if not waits:
        return
    low, high = ax.get_xlim()
    inch = (high / low) ** (1 / (page.panel_width - 1))  # the strip takes an inch
    ax.set_xlim(low, high * inch)
    ax.axvline(high * inch**0.2, color=GREY, linewidth=0.6, alpha=0.5)
    hollow |= {"linestyle": "none", "marker": "D"}
    for level in groups(waits, "accuracy"):
        at = (high * inch**0.32, level[0]["accuracy"])
        ax.plot(*at, **hollow)
        counts = "×" + ",".join(str(p["num_ignore"]) for p in level)
        ax.annotate(counts, at, (6, 0), textcoords="offset points", fontsize=7.5, color=GREY, va="center")
    page.handles[f'{NAME}: k times "Wait", at unknown tokens'] = Line2D([], [], **hollow)


def _prefix(page: Page, point: Point) -> str:
    name = page.curve_name(point)
    return f"{name}: " if name else ""
