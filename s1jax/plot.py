"""Figures and tables of test-time scaling.

In: sample rows. Out: figures as PNG, each with its table of points as JSON beside it (same stem); text tables for terminals.

The idea (paper, figures 1 and 4): *sequential* scaling is accuracy against thinking tokens, on a log2 axis since it is each
doubling that pays; *parallel* scaling is majority voting over k samples. One panel per benchmark, every point with its 95%
interval over problems. Colours are Okabe and Ito's, which any eye tells apart, and each series has its own marker as well.
The invariant: a figure shows exactly the points of its JSON, and knows nothing of models or tokenizers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from s1jax.config import write_file
from s1jax.metrics import (
    Curve,
    SampleRow,
    Setting,
    ThinkingPoint,
    VotingPoint,
    summarise_curves,
    thinking_curve,
    voting_curve,
)

Point = TypeVar("Point", ThinkingPoint, VotingPoint)

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_INK, _GREY = "#222222", "#6B6B6B"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "xtick.color": "#9A9A9A",
    "ytick.color": "#9A9A9A",
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.loc": "upper left",
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.6,
    "legend.borderaxespad": 0,
}


def plot_thinking(rows: Sequence[SampleRow], path: str | Path) -> list[ThinkingPoint]:
    """Draw accuracy against mean thinking tokens, and write the points beside it as JSON; return the points.

    Budgets form a solid line. Points that ignore k attempts to stop ("Wait" x k) form a dashed one, which leaves from the
    point of the same budget without ignores. A point without any thinking has no place on the axis: a dotted level. A curve
    of a single point, such as samples drawn for voting, is left out where others have more.
    """
    points = thinking_curve(rows)
    curves = _groups(points, lambda p: tuple(p[name] for name in Curve.__annotations__))  # type: ignore[literal-required]
    points = [p for _, curve in curves if len(curve) > 1 for p in curve] or points
    with mpl.rc_context(_STYLE):
        page = _Page(points, "Sequential scaling: accuracy against thinking time")
        for ax, panel in page.panels:
            _log2_axis(ax, [p["mean_thinking_tokens"] for p in panel], "thinking tokens, mean per problem (log scale)")
            _percent_axis(
                ax, [p["accuracy_low"] for p in panel], [p["accuracy_high"] for p in panel], "problems solved"
            )
            for name, group in _groups(panel, page.curve_name):
                _draw_budgets(page, ax, name, [p for p in group if not p["num_ignore"]])
                waits = [p for p in group if p["num_ignore"]]
                for text, series in _groups(waits, lambda p: p["ignore_text"]):
                    for budget, line in _groups(series, lambda p: p["max_thinking_tokens"]):
                        start = [p for p in group if not p["num_ignore"] and p["max_thinking_tokens"] == budget]
                        _draw_waits(page, ax, name, text, start[:1], line)
        page.write(path)
    return points


def plot_voting(rows: Sequence[SampleRow], path: str | Path) -> list[VotingPoint]:
    """Draw maj@k, and thinly pass@k, against the number of samples k, and write the points as JSON; return the points.

    Raises ValueError if no setting has at least two samples of each of its problems.
    """
    points = voting_curve(rows)
    if not points:
        raise ValueError("voting needs at least two samples of each problem under one setting; these rows have none")
    with mpl.rc_context(_STYLE):
        page = _Page(points, "Parallel scaling: majority voting over k samples")
        for ax, panel in page.panels:
            highs = [max(p["pass_at_k"], p["maj_at_k_high"]) for p in panel]
            _log2_axis(ax, [p["k"] for p in panel], "samples per problem, k (log scale)")
            _percent_axis(ax, [p["maj_at_k_low"] for p in panel], highs, "problems solved")
            settings = _groups(panel, page.setting_name)
            for i, (name, group) in enumerate(settings):
                # Side by side, a little, where several series share each k.
                x = [p["k"] * 2 ** (0.07 * (i - (len(settings) - 1) / 2)) for p in group]
                style = page.style(f"{name}: majority vote" if name else "majority vote (maj@k)")
                _errorbar(ax, x, group, "maj_at_k", style)
                ax.plot(x, [p["pass_at_k"] for p in group], color=style["color"], linewidth=1, dashes=(4, 3), zorder=2)
        page.handles["at least one of k is right (pass@k)"] = Line2D([], [], color=_GREY, linewidth=1, dashes=(4, 3))
        page.write(path)
    return points


# ---- series ----


def _draw_budgets(page: _Page, ax: Axes, name: str, points: list[ThinkingPoint]) -> None:
    if not points:
        return
    style = page.style(f"{name}: thinking budget" if name else "thinking budget")
    line = sorted((p for p in points if p["mean_thinking_tokens"] > 0), key=lambda p: p["mean_thinking_tokens"])
    _errorbar(ax, [p["mean_thinking_tokens"] for p in line], line, "accuracy", style)
    for point in points:
        if point["mean_thinking_tokens"] == 0:
            label = f"{name}: no thinking" if name else "no thinking"
            dotted = {"color": style["color"], "linewidth": 1.4, "linestyle": ":"}
            ax.axhline(point["accuracy"], zorder=1, **dotted)
            page.handles[label] = Line2D([], [], **dotted)


def _draw_waits(
    page: _Page, ax: Axes, name: str, text: str, start: list[ThinkingPoint], points: list[ThinkingPoint]
) -> None:
    what = f'stopping replaced by "{text}"' if text else "stopping forbidden"
    style = page.style(f"{name}: {what}" if name else what, linestyle="--")
    points = sorted((p for p in points if p["mean_thinking_tokens"] > 0), key=lambda p: p["num_ignore"])
    path = [p for p in start if p["mean_thinking_tokens"] > 0] + points
    x, y = [p["mean_thinking_tokens"] for p in path], [p["accuracy"] for p in path]
    ax.plot(x, y, color=style["color"], linestyle="--", linewidth=1.6, zorder=3)
    _errorbar(ax, [p["mean_thinking_tokens"] for p in points], points, "accuracy", style | {"linestyle": "none"})
    for point in points:
        at = (point["mean_thinking_tokens"], point["accuracy_high"])
        page.annotate(ax, at, f"×{point['num_ignore']}", style["color"])


def _errorbar(ax: Axes, x: list[float], points: Sequence[Any], value: str, style: dict[str, Any]) -> None:
    y = [p[value] for p in points]
    low, high = ([abs(p[f"{value}_{side}"] - p[value]) for p in points] for side in ("low", "high"))
    drawn = ax.errorbar(x, y, yerr=[low, high], elinewidth=1.6, capsize=0, zorder=4, **style)
    for bar in drawn.lines[2]:
        bar.set_alpha(0.35)


# ---- axes ----


def _log2_axis(ax: Axes, values: list[float], label: str) -> None:
    """Set a log2 axis around the positive values, ticked at powers of two, at most eight of them."""
    logs = [math.log2(value) for value in values if value > 0] or [0.0]
    low, high = min(logs), max(logs)
    pad = 0.12 + 0.05 * (high - low)
    low, high = low - pad, high + pad
    if math.floor(high) - math.ceil(low) < 1:  # fewer than two powers of two in view
        low, high = math.floor(low) - pad, math.ceil(high) + pad
    powers = range(math.ceil(low), math.floor(high) + 1)
    powers = powers[:: math.ceil(len(powers) / 8)]
    ax.set_xscale("log", base=2)
    ax.set_xlim(2**low, 2**high)
    ax.xaxis.set_major_locator(FixedLocator([2.0**power for power in powers]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1 else f"{value:,.0f}"))
    ax.set_xlabel(label)


def _percent_axis(ax: Axes, lows: list[float], highs: list[float], label: str) -> None:
    """Set an axis of shares in percent that holds all intervals, ticked at round numbers, at most eight of them."""
    span = max(highs) - min(lows)
    step = next(step for step in (0.02, 0.05, 0.1, 0.2) if span / step <= 6 or step == 0.2)
    low, high = math.floor(min(lows) / step + 1e-9), math.ceil(max(highs) / step - 1e-9)
    ticks = [i * step for i in range(low, max(high, low + 1) + 1)]
    margin = 0.025 * (ticks[-1] - ticks[0])
    ax.set_ylim(ticks[0] - margin, ticks[-1] + margin)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    ax.tick_params(length=0)
    if (place := ax.get_subplotspec()) is not None and place.is_first_col():
        ax.set_ylabel(label)


# ---- page ----


class _Page:
    """One figure: a title, a legend, and a panel per benchmark; sizes in inches, so that nothing depends on the panels' number."""

    _TITLE, _FOOT, _LEFT, _RIGHT, _GAP, _BETWEEN = 0.78, 0.88, 0.86, 0.38, 0.62, 1.0
    _PANEL_HEIGHT = 3.4

    def __init__(self, points: Sequence[Point], title: str) -> None:
        self._points: Sequence[Any] = points
        benchmarks = _groups(points, lambda p: p["benchmark"])
        self._columns = min(len(benchmarks), 3)
        self._rows = math.ceil(len(benchmarks) / self._columns)
        self._panel_width = (6.6, 4.6, 3.9)[self._columns - 1]
        width = self._LEFT + self._columns * self._panel_width + (self._columns - 1) * self._GAP + self._RIGHT
        self.figure = Figure(figsize=(width, 6))
        FigureCanvasAgg(self.figure)
        grid = self.figure.subplots(self._rows, self._columns, squeeze=False)
        axes = list(grid.flat)
        for ax in axes[len(benchmarks) :]:
            ax.remove()
        self.panels: list[tuple[Axes, list[Any]]] = [
            (ax, group) for ax, (_, group) in zip(axes, benchmarks, strict=False)
        ]
        self.handles: dict[str, Any] = {}
        self._styles: dict[str, dict[str, Any]] = {}
        self._notes: list[tuple[Axes, tuple[float, float], str, str]] = []
        self._title = title
        if len(benchmarks) > 1:
            for ax, group in self.panels:
                ax.set_title(f"{group[0]['benchmark']}  ({_problems(group)})", loc="left", fontsize=10.5)
        names = ("model", "method", "temperature")
        self._varying = [name for name in names if len({p[name] for p in points}) > 1]  # type: ignore[literal-required]

    def curve_name(self, point: Setting) -> str:
        """Name a curve by what sets it apart from the others of the figure; "" for an only one."""
        named = {
            "model": _short(point["model"]),
            "method": point["method"],
            "temperature": f"T={point['temperature']:g}",
        }
        return ", ".join(named[name] for name in self._varying)

    def setting_name(self, point: Setting) -> str:
        """Name a setting by what sets it apart from the others of the figure; "" for an only one."""
        settings = {setting_text(p) for p in self._points}
        return ", ".join(filter(None, [self.curve_name(point), setting_text(point) if len(settings) > 1 else ""]))

    def style(self, label: str, linestyle: str = "-") -> dict[str, Any]:
        """Return colour and marker of a series, the same wherever its label comes up, and put it into the legend."""
        if label not in self._styles:
            i = len(self._styles)
            self._styles[label] = {
                "color": _COLORS[i % len(_COLORS)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "linestyle": linestyle,
                "linewidth": 2 if linestyle == "-" else 1.6,
                "markersize": 7,
                "markeredgecolor": "white",
                "markeredgewidth": 0.8,
            }
            self.handles[label] = Line2D([], [], **self._styles[label])
        return dict(self._styles[label])

    def annotate(self, ax: Axes, at: tuple[float, float], text: str, color: str) -> None:
        """Write a small text above a place in data coordinates, unless that would cover an earlier one."""
        self._notes.append((ax, at, text, color))

    def write(self, path: str | Path) -> None:
        """Lay the page out and write the PNG, and the points as JSON beside it, each to a temporary name first."""
        figure, width = self.figure, self.figure.get_figwidth()
        for columns in range(len(self.handles), 0, -1):
            legend = figure.legend(self.handles.values(), self.handles.keys(), ncols=columns)
            extent = legend.get_window_extent()
            if extent.width / figure.dpi <= width - 0.3 or columns == 1:
                break
            legend.remove()
        head = self._TITLE + extent.height / figure.dpi + (0.45 if len(self.panels) > 1 else 0.2)
        height = head + self._rows * self._PANEL_HEIGHT + (self._rows - 1) * self._BETWEEN + self._FOOT
        figure.set_figheight(height)
        legend.set_bbox_to_anchor((0.16 / width, 1 - self._TITLE / height))
        figure.subplots_adjust(
            left=self._LEFT / width,
            right=1 - self._RIGHT / width,
            top=1 - head / height,
            bottom=self._FOOT / height,
            wspace=self._GAP / self._panel_width,
            hspace=self._BETWEEN / self._PANEL_HEIGHT,
        )
        left = 0.22 / width
        figure.text(left, 1 - 0.2 / height, self._title, fontsize=13.5, fontweight="bold", va="top")
        figure.text(left, 1 - 0.5 / height, self._subject(), fontsize=10, color=_GREY, va="top")
        foot = ["Vertical bars: 95% interval over problems.", "×k: the first k attempts to stop were prevented."]
        figure.text(left, 0.16 / height, "   ".join(foot[: 1 + bool(self._notes)]), fontsize=8.5, color=_GREY)
        self._place_notes()
        path = Path(path)
        write_file(path.with_suffix(".json"), json.dumps(self._points, indent=2, ensure_ascii=False) + "\n")
        partial = path.with_name(f".{path.name}.partial")
        figure.savefig(partial, format="png", dpi=200)
        partial.replace(path)

    def _subject(self) -> str:
        """Say what all points share."""
        parts = []
        for column in ("benchmark", "model"):
            names = {str(p[column]) for p in self._points}
            parts.append(_short(*names) if len(names) == 1 else f"{len(names)} {column}s")
        return "   ·   ".join([*parts, *([_problems(self._points)] if len(self.panels) == 1 else [])])

    def _place_notes(self) -> None:
        placed: list[tuple[float, float]] = []
        for ax, at, text, color in self._notes:
            x, y = ax.transData.transform(at) / self.figure.dpi * 72
            if all(abs(x - x0) > 17 or abs(y - y0) > 12 for x0, y0 in placed):
                placed.append((x, y))
                ax.annotate(text, at, (0, 6), textcoords="offset points", fontsize=9, color=color, ha="center")


def _short(name: str) -> str:
    return name if len(name) <= 32 else "…" + name[-31:]


def _problems(points: Sequence[Any]) -> str:
    counts = sorted({p["num_problems"] for p in points})
    return " to ".join(map(str, counts[:: max(len(counts) - 1, 1)])) + (" problem" if counts == [1] else " problems")


def _groups(points: Sequence[Point], key: Callable[[Point], Any]) -> list[tuple[Any, list[Point]]]:
    """Group points by a key, groups in the order they first come up."""
    groups: dict[Any, list[Point]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return list(groups.items())


# ---- text ----


def setting_text(setting: Setting) -> str:
    """Name the budget-forcing part of a setting in a few words, such as `budget 4,096, "Wait" x2`."""
    parts = [f"budget {setting['max_thinking_tokens']:,}"]
    if setting["min_thinking_tokens"]:
        parts.append(f"at least {setting['min_thinking_tokens']:,}")
    if setting["num_ignore"]:
        parts.append(
            (f'"{setting["ignore_text"]}"' if setting["ignore_text"] else "no stop") + f" x{setting['num_ignore']}"
        )
    return ", ".join(parts)


def format_thinking_table(rows: Sequence[SampleRow]) -> str:
    """Return the thinking curves as aligned plain text, one block per curve, its Control, Scaling and Performance below.

    "ended by budget" counts the samples whose thinking reached the budget, and checks that each stopped exactly there.
    """
    blocks = []
    curves = _groups(thinking_curve(rows), _curve_title)
    for (title, points), summary in zip(curves, summarise_curves(rows), strict=True):
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
        blocks.append("\n".join([title, *_align(table), "   ".join(merits)]))
    return "\n\n".join(blocks)


def format_voting_table(rows: Sequence[SampleRow]) -> str:
    """Return the voting curves as aligned plain text, one block per setting; "" where none has two samples a problem."""
    blocks = []
    for title, points in _groups(voting_curve(rows), lambda p: f"{_curve_title(p)}, {setting_text(p)}"):
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
