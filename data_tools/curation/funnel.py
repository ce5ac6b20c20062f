"""The funnel of a curation: results of its stages -> a table, a figure, and the fate of one row."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_tools.curation.stage import VERDICT, Result
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened, visible
from s1jax.runtime.text_table import Table

Summary = Mapping[str, Any]
"""What `stage.json` of a stage holds."""
_KEPT, _REJECTED, _INK, _GREY = "#0072B2", "#D9D9D9", "#222222", "#6B6B6B"
_STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False, "text.color": _INK}
_ID = "an id is the first 16 hex digits of sha256(question), as in train.jsonl and rejects.jsonl, or FILE:LINE, as in pool.jsonl:17"


def funnel_table(summaries: Sequence[Summary], num_reasons: int = 5) -> Table:
    """Return a table with a line for each stage, and below it a line for each of its most frequent reasons."""
    cells = []
    for stage in summaries:
        num_rows, num_kept = stage["num_rows"], stage["num_kept"]
        cells.append((stage["name"], f"{num_rows:,}", f"{num_kept:,}", f"{num_rows - num_kept:,}"))
        reasons = list(stage["reasons"].items())
        for reason, count in reasons[:num_reasons]:
            cells.append(
                (f"  - {shortened(' '.join(visible(reason).split()), 70, quotes=False)}", "", "", f"{count:,}")
            )
        if rest := reasons[num_reasons:]:
            cells.append((f"  - {counted(len(rest), 'more reason')}", "", "", f"{sum(count for _, count in rest):,}"))
    return Table("Rows after each stage", ("stage", "rows", "kept", "rejected"), cells)


def funnel_figure(summaries: Sequence[Summary]) -> bytes:
    """Return a PNG: for each stage a bar of the rows that it kept, followed by those that it rejected."""
    height = 1.15 + 0.42 * len(summaries)
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # a box is drawn instead
        figure = Figure(figsize=(8.6, height), dpi=160)
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0.175, 0.12 / height, 0.6, 1 - 0.95 / height))
        largest = max(1, *(stage["num_rows"] for stage in summaries))
        for place, stage in enumerate(summaries):
            kept, rejected = stage["num_kept"], stage["num_rows"] - stage["num_kept"]
            ax.barh(place, kept, height=0.62, color=_KEPT)
            ax.barh(place, rejected, left=kept, height=0.62, color=_REJECTED)
            text = f"{kept:,}" + (f"  (−{rejected:,})" if rejected else "")
            ax.text(stage["num_rows"] + largest * 0.015, place, text, va="center")
        ax.set_yticks(range(len(summaries)), [shortened(visible(stage["name"]), 40, False) for stage in summaries])
        ax.set_xlim(0, largest)
        ax.set_ylim(len(summaries) - 0.45, -0.55)
        ax.set_xticks([])
        ax.tick_params(axis="y", length=0, labelcolor=_INK)
        for side in ("top", "right", "bottom"):
            ax.spines[side].set_visible(False)
        ax.spines["left"].set_color("#9A9A9A")
        first, last = summaries[0]["num_rows"], summaries[-1]["num_kept"]
        title = f"Curation: {first:,} rows to {last:,}"
        figure.text(0.025, 1 - 0.18 / height, title, fontsize=13.5, fontweight="bold", va="top")
        for x, color, name in ((0.025, _KEPT, "kept"), (0.105, _REJECTED, "rejected by this stage")):
            figure.text(x, 1 - 0.5 / height, "■", color=color, va="top", fontsize=11)
            figure.text(x + 0.02, 1 - 0.51 / height, name, color=_GREY, va="top", fontsize=9.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def explain(results: Sequence[Result], row_id: str) -> str:
    """Return the fate of each row with this id, or at this FILE:LINE, through the stages that have a result.

    Raises UserError if there is no such row.
    """
    table = results[0].verdicts(["id", "file", "line"])
    rows = table.filter(pc.equal(table["id"], row_id))["row"].to_pylist() if row_id else []
    if not rows and (place := re.fullmatch(r"(.+):(\d{1,18})", row_id)):
        file = place[1]
        is_file = [name == file or name.endswith(f"/{file}") for name in table["file"].to_pylist()]
        is_line = pc.equal(table["line"], int(place[2]))
        rows = table.filter(pc.and_(pa.array(is_file, pa.bool_()), is_line))["row"].to_pylist()
    if not rows:
        raise UserError(f"no row of the pool has the id {shortened(row_id)}: {_ID}")
    return "\n\n".join(_fate(results, row) for row in rows)


def _fate(results: Sequence[Result], row: int) -> str:
    """Return some lines about a row: where it stands, then each stage that saw it."""
    part = _part_of(results[0], row)
    lines, reason = [], None
    for result in results:
        verdict = _verdict(result, part, row)
        if result is results[0]:
            of = f" of {verdict['source']}" if verdict["source"] else ""
            lines.append(f"row {row}{of}, {verdict['file']}:{verdict['line']}, id {verdict['id'] or 'none'}")
        reason, detail = verdict["reason"], verdict["detail"]
        fate = "kept" if reason is None else f"rejected: {reason}"
        lines.append(f"  {result.name:<15} {fate}" + (f" ({detail})" if detail else ""))
        added = {name: verdict[name] for name in sorted(result.columns) if name not in ("id", "file", "line")}
        lines += [f"    {name}: {_shown(value)}" for name, value in added.items() if value not in (None, "")]
        if reason is not None:
            break
    if reason is None:
        lines.append("  chosen" if results[-1].name == "selection" else "  kept by every stage so far")
    return "\n".join(visible(" ".join(line.split("\n"))) for line in lines)


def _part_of(result: Result, row: int) -> int:
    """Return the part that holds a row of the pool. `result` is the first one, which has all rows."""
    num_rows = 0
    for index in range(result.num_parts):
        num_rows += pq.read_metadata(result.part(index)).num_rows
        if row < num_rows:
            return index
    raise IndexError(f"the pool has {num_rows} rows, and none is row {row}")


def _verdict(result: Result, part: int, row: int) -> dict[str, Any]:
    columns = [*VERDICT, *sorted(result.columns)]
    table = pq.read_table(result.part(part), columns=columns, filters=[("row", "=", row)])
    (verdict,) = table.to_pylist()
    return verdict


def _shown(value: Any) -> str:
    return shortened(value) if isinstance(value, str) else str(value)
