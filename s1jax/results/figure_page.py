"""The page of a figure: a panel per benchmark, axes, legend, notes and foot -> PNG or SVG, with its points as JSON beside it.

`figures.py` draws the series. Invariant: no text is cut off or covers another one, however many panels, series and names there are.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from s1jax.results.metrics import Point
from s1jax.results.samples import CURVE, SUBJECT
from s1jax.results.tables import CurveNames, groups, setting_text, stop_text
from s1jax.runtime.files import write_file
from s1jax.runtime.terminal import visible

# The colours of Okabe and Ito, which readers with colour-blindness can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<")  # one more than there are colours, so that all 56 pairs come up
_INK, GREY = "#222222", "#6B6B6B"
_SMALL = 8.5
"""Size of the text of the foot, in points."""
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
    **{f"{axis}tick.color": "#9A9A9A" for axis in "xy"},
    **{f"{axis}tick.labelcolor": _INK for axis in "xy"},
    "legend.frameon": False,
    "legend.loc": "upper left",
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.6,
    "legend.borderaxespad": 0,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw in the style of these figures, whatever a user's settings say."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # a box is drawn instead
        yield


# ---- axes ----


def log2_axis(ax: Axes, values: list[float], label: str) -> None:
    """Set a log2 axis around the positive values, with at most eight ticks, at powers of two."""
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


def percent_axis(ax: Axes, lows: list[float], highs: list[float]) -> None:
    """Set the axis of solved problems, in percent, so that it holds all intervals, with at most eight ticks, at round numbers."""
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
        ax.set_ylabel("problems solved")


# ---- page ----


class Page:
    """One figure: a title, a legend, and a panel per benchmark. Sizes are in inches, so that more panels make a larger figure."""

    _TITLE, _FOOT, _LEFT, _RIGHT, _GAP, _BETWEEN = 0.78, 0.88, 0.86, 0.38, 0.62, 1.0
    _PANEL_HEIGHT = 3.4

    def __init__(self, points: Sequence[Point], title: str) -> None:
        self._points: Sequence[Any] = points
        benchmarks = groups(points, "benchmark")
        self._columns = min(len(benchmarks), 3)
        self._rows = math.ceil(len(benchmarks) / self._columns)
        self.panel_width = (6.6, 4.6, 3.9)[self._columns - 1]
        width = self._LEFT + self._columns * self.panel_width + (self._columns - 1) * self._GAP + self._RIGHT
        self.figure = Figure(figsize=(width, 6))
        FigureCanvasAgg(self.figure)
        axes = list(self.figure.subplots(self._rows, self._columns, squeeze=False).flat)
        for ax in axes[len(benchmarks) :]:
            ax.remove()
        self.panels: list[tuple[Axes, list[Any]]] = list(zip(axes, benchmarks, strict=False))
        self.handles: dict[str, Any] = {}
        self._has_bars = False
        self._indices: dict[str, int] = {}
        self._places: list[tuple[Axes, tuple[tuple[float, float], ...]]] = []
        self.notes: list[tuple[Axes, tuple[float, float], str, str]] = []
        """Axes, place in data coordinates, text and colour of small texts. One that would cover an earlier one stands beside it."""
        self.remarks: list[str] = []
        """Sentences for the foot, in addition to those on intervals, notes and problems."""
        self._title = title
        if len(benchmarks) > 1:
            names = _shortened((group[0]["benchmark"] for group in benchmarks), 18, 0.5)  # such a name fits its panel
            for ax, group in self.panels:
                ax.set_title(f"{names[group[0]['benchmark']]}  ({_problems(group)})", loc="left", fontsize=10.5)
        self._models = _shortened(p["model"] for p in points)
        self._names = CurveNames(points)
        self._settings = {setting_text(p) for p in points}
        self._names_minimum = len({p["min_thinking_tokens"] for p in points}) > 1
        # Points with ignored stops have the ignore text in their label anyway.
        texts = {p["ignore_text"] for p in points if p["min_thinking_tokens"] and not p["num_ignore"]}
        self._names_ignore_text = len(texts) > 1

    def curve_name(self, point: Point) -> str:
        """Name a curve by what sets it apart from the other curves of the figure; "" if it is the only one."""
        parts = self._names.parts(point)
        parts.pop("benchmark", None)
        if "model" in parts:
            parts["model"] = self._models[point["model"]]
        if (minimum := point["min_thinking_tokens"]) and self._names_minimum:
            parts["minimum"] = f"at least {minimum:,}"
        if minimum and self._names_ignore_text and not point["num_ignore"]:
            parts["ignore_text"] = stop_text(point)
        return ", ".join(parts.values())

    def setting_name(self, point: Point) -> str:
        """Name a setting by what sets it apart from the other settings of the figure; "" if it is the only one."""
        curve = self.curve_name({**point, "min_thinking_tokens": 0})  # `setting_text` names the minimum
        return ", ".join(filter(None, [curve, setting_text(point) if len(self._settings) > 1 else ""]))

    def style(self, label: str, linestyle: Any = "-", linewidth: float = 2, marked: bool = True) -> dict[str, Any]:
        """Return the keywords that draw a series; equal labels look alike. If not `marked`, a marker is drawn only once colours repeat."""
        i = self._indices.setdefault(label, len(self._indices))
        return {
            "label": label,
            "color": COLORS[i % len(COLORS)],
            "marker": MARKERS[i % len(MARKERS)] if marked or i >= len(COLORS) else "",
            "linestyle": linestyle,
            "linewidth": linewidth,
            "markersize": 7 if marked else 5,
            "markeredgecolor": "white",
            "markeredgewidth": 0.8,
        }

    def draw(
        self, ax: Axes, x: list[float], points: Sequence[Any], value: str, style: dict[str, Any], joined: bool = True
    ) -> None:
        """Draw points with their intervals, and put their series into the legend."""
        if not points:
            return
        self.handles[style["label"]] = Line2D([], [], **style)
        self._has_bars = True
        y = [p[value] for p in points]
        # Of equal series the later one is drawn smaller, within the earlier one.
        place = (ax, tuple(zip(x, y, strict=True)))
        self._places.append(place)
        shrink = 0.6 ** (self._places.count(place) - 1)
        style = style | {name: shrink * style[name] for name in ("linewidth", "markersize")}
        low, high = ([abs(p[f"{value}_{side}"] - p[value]) for p in points] for side in ("low", "high"))
        style = style if joined else style | {"linestyle": "none"}
        drawn = ax.errorbar(x, y, yerr=[low, high], elinewidth=1.6, capsize=0, zorder=4, **style)
        for bar in drawn.lines[2]:
            bar.set_alpha(0.35)

    def write(self, path: str | Path, more_points: Sequence[Point] = ()) -> None:
        """Lay out the page, and write the picture and the points as JSON beside it, each whole or not at all."""
        figure, width = self.figure, self.figure.get_figwidth()
        longest = max(map(len, self.handles))
        tries = [(longest, columns) for columns in range(min(len(self.handles), 8), 0, -1)]
        tries += [(length, 1) for length in range(min(longest - 8, 112), 32, -8)]
        for length, columns in tries:
            legend = figure.legend(self.handles.values(), _shortened(self.handles, length, 0.5).values(), ncols=columns)
            extent = legend.get_window_extent()
            if extent.width / figure.dpi <= width - 0.3 or (length, columns) == tries[-1]:
                break
            legend.remove()
        head = self._TITLE + extent.height / figure.dpi + (0.45 if len(self.panels) > 1 else 0.2)
        foot = self._foot(width - 0.44)
        foot_height = self._FOOT + 0.17 * foot.count("\n")
        height = head + self._rows * self._PANEL_HEIGHT + (self._rows - 1) * self._BETWEEN + foot_height
        figure.set_figheight(height)
        legend.set_bbox_to_anchor((0.16 / width, 1 - self._TITLE / height))
        figure.subplots_adjust(
            left=self._LEFT / width,
            right=1 - self._RIGHT / width,
            top=1 - head / height,
            bottom=foot_height / height,
            wspace=self._GAP / self.panel_width,
            hspace=self._BETWEEN / self._PANEL_HEIGHT,
        )
        left = 0.22 / width
        figure.text(left, 1 - 0.2 / height, self._title, fontsize=13.5, fontweight="bold", va="top")
        figure.text(left, 1 - 0.5 / height, self._subject(), fontsize=10, color=GREY, va="top")
        figure.text(left, 0.16 / height, foot, fontsize=_SMALL, color=GREY, linespacing=1.3)
        self._place_notes()
        path = Path(path)
        write_file(
            path.with_suffix(".json"), json.dumps([*self._points, *more_points], indent=2, ensure_ascii=False) + "\n"
        )
        picture = io.BytesIO()
        figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=200)
        write_file(path, picture.getvalue())

    def _foot(self, width: float) -> str:
        """Return the sentences of the foot, in lines of at most `width` inches."""
        sentences = ["Vertical bars: 95% interval over problems."] if self._has_bars else []
        sentences += ["×k: the first k attempts to stop were prevented."] if self.notes else []
        curves = groups(self._points, *CURVE) if "problem_set" in self._points[0] else []
        if any(len(groups(curve, "problem_set")) > 1 for curve in curves):
            sentences += ["Points over different problems are not joined."]
        lines = [""]
        for sentence in (*sentences, *self.remarks):
            line = f"{lines[-1]}   {sentence}".lstrip()
            text = self.figure.text(0, 0, line, fontsize=_SMALL)
            if text.get_window_extent().width <= width * self.figure.dpi or not lines[-1]:
                lines[-1] = line
            else:
                lines.append(sentence)
            text.remove()
        return "\n".join(lines)

    def _subject(self) -> str:
        """Return the line under the title: benchmark and model, or how many there are, and the number of problems."""
        parts: list[str] = []
        for column in ("benchmark", "model"):
            names = {visible(str(p[column])) for p in self._points}
            parts += _shortened(names).values() if len(names) == 1 else [f"{len(names)} {column}s"]
        return "   ·   ".join([*parts, *([_problems(self._points)] if len(self.panels) == 1 else [])])

    def _place_notes(self) -> None:
        """Draw each note above its place, or beside it where it would cover another note or a marker. Equal notes are drawn once."""

        def on_page(ax: Axes, at: tuple[float, float]) -> tuple[float, float]:
            x, y = ax.transData.transform(at) / self.figure.dpi * 72
            return x, y

        taken = [on_page(ax, at) for ax, points in self._places for at in points]
        unique = {note[:3]: note[3] for note in reversed(self.notes)}
        for (ax, at, text), color in reversed(unique.items()):
            x, y = on_page(ax, at)
            beside = ((dx, dy) for dy in (10, 22, 34) for dx in (0, -18, 18))
            free = (
                (dx, dy) for dx, dy in beside if all(abs(x + dx - a) >= 15 or abs(y + dy - b) >= 10 for a, b in taken)
            )
            if (offset := next(free, None)) is not None:
                taken.append((x + offset[0], y + offset[1]))
                ax.annotate(
                    text, at, offset, textcoords="offset points", fontsize=9, color=color, ha="center", va="center"
                )


def holds_points(path: Path) -> bool:
    """Return whether a file holds the points of a figure, as `Page.write` writes them."""
    try:
        points = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(points, list) and all(
        isinstance(p, dict) and {*SUBJECT, "num_problems"} <= p.keys() for p in points
    )


def _shortened(names: Iterable[str], length: int = 32, start: float = 0) -> dict[str, str]:
    """Return each name cut to `length` characters, or to as many more as keep the names distinct.

    The middle is cut out. `start` is the share of the characters that is kept at the start, unless another share keeps names distinct.
    """
    shown = {name: visible(name).replace("\n", " ") for name in names}
    cuts = ((n, head) for n in itertools.count(length) for head in (int(start * n), 0, n // 2, n - 1))
    shortened = (
        {
            name: text if len(text) <= n else f"{text[:head]}…{text[len(text) - n + 1 + head :]}"
            for name, text in shown.items()
        }
        for n, head in cuts
    )
    return next(short for short in shortened if len(set(short.values())) == len(short))


def _problems(points: Sequence[Any]) -> str:
    counts = sorted({p["num_problems"] for p in points})
    return " to ".join(map(str, counts[:: max(len(counts) - 1, 1)])) + (" problem" if counts == [1] else " problems")
