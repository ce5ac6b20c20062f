"""Sample rows -> one HTML file that opens from disk: figures, tables, and a browser of all answers. Needs no model and no network.

The page is `report.html` with `report.css` and the scripts `report_*.js` in it. Texts are in compressed blocks of JSON, which the
page decodes when it shows or searches them. A trace is stored once. A fork is stored as the length that it shares with the trace, and
its rest.

Whatever a model or a file says is data: it is escaped in HTML, and the page makes only text nodes of it. The page's policy
(Content-Security-Policy) lets nothing run but its own script, and lets nothing be loaded.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s1jax.results.figures import plots_of
from s1jax.results.grid import scaling_grid, to_compare
from s1jax.results.grid_table import grid_tables
from s1jax.results.run_tables import sequential_tables
from s1jax.results.samples import CONDITION, SETTING, SampleRow, pick
from s1jax.results.tables import CurveNames, setting_text, voting_tables
from s1jax.results.traces import (
    Span,
    answer_spans,
    delimiter,
    group_traces,
    thinking_spans,
    what_ended,
)
from s1jax.results.turns import turn_of, wait_pairs
from s1jax.runtime.files import write_file
from s1jax.runtime.terminal import visible
from s1jax.runtime.text_table import Table

Questions = Mapping[tuple[str, str], tuple[str, str]]
"""The question and the gold answer of problems, by benchmark and id."""

_MARK = '<meta name="generator" content="s1jax report">'
_SCRIPTS = ("report_data.js", "report_page.js", "report_answer.js", "report_start.js")
_BLOCK = 2**19
"""Characters of texts per block: what is decoded to show one answer."""
_LIST_LENGTH = 48
"""Characters of an extracted answer that the index holds for the list."""
_CAPTIONS = {
    "thinking": "Accuracy against thinking tokens",
    "voting": "Majority voting over samples",
    "tokens": "Accuracy against all tokens",
}
_VERDICTS = ("equal", "different", "no_answer", "timed_out")
_TURNS = ("", "to right", "to wrong")
# Columns of a row that the page shows in addition to its texts, its condition and its grade.
_FACTS = (
    *("seed", "sample_index", "num_thinking_tokens", "num_forced_tokens", "num_ignored", "num_answer_tokens"),
    *("finish_reason", "num_tries", "num_rejected_tokens", "judge", "commit"),
)


def is_report(path: Path) -> bool:
    """Return whether a file is a report, so that a new one may replace it."""
    with path.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def write_report(rows: Sequence[SampleRow], path: Path, title: str, questions: Questions | None = None) -> None:
    """Write the report of some rows. `title` names them. A row whose problem is not in `questions` is shown without its question."""
    tables = [*sequential_tables(rows), *voting_tables(rows), *grid_tables(to_compare(scaling_grid(rows)))]
    parts = {
        "title": _escaped(title),
        "summary": _escaped(f"{len(rows):,} answers of {len({_problem(row) for row in rows}):,} problems"),
        "figures": "".join(_figures(rows)),
        "tables": "".join(map(_table, tables)),
        "blocks": "".join(_blocks(rows, questions or {})),
        "style": _resource("report.css"),
        "script": "".join(map(_resource, _SCRIPTS)),
        "mark": _MARK,
    }
    hashes = {
        name: base64.b64encode(hashlib.sha256(parts[name].encode()).digest()).decode() for name in ("style", "script")
    }
    parts["policy"] = "; ".join(
        [
            "default-src 'none'",
            f"script-src 'sha256-{hashes['script']}'",
            f"style-src 'sha256-{hashes['style']}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    write_file(path, re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], _resource("report.html")))


def _resource(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def _problem(row: SampleRow) -> tuple[str, str]:
    return row["benchmark"], row["problem_id"]


# ---- figures and tables ----


def _figures(rows: Sequence[SampleRow]) -> Iterator[str]:
    """Yield the figures as images. An SVG in an image runs no scripts and loads nothing."""
    with tempfile.TemporaryDirectory() as folder:
        for name, plot in plots_of(rows).items():
            picture = Path(folder, "figure.svg")
            plot(picture)
            data = base64.b64encode(picture.read_bytes()).decode()
            caption = _CAPTIONS[name]
            yield f'<figure><img alt="{caption}; the tables below hold the numbers" src="data:image/svg+xml;base64,{data}"></figure>\n'


def _table(table: Table) -> str:
    """Return a table as HTML, in a frame that scrolls."""

    def cells(row: Sequence[str], tag: str) -> str:
        first = f'<th scope="{"col" if tag == "th" else "row"}">{_escaped(row[0])}</th>'
        rest = (f"<{tag}{' scope=col' * (tag == 'th')}>{_escaped(cell)}</{tag}>" for cell in row[1:])
        return f"<tr>{first}{''.join(rest)}</tr>"

    rows = "".join(cells(row, "td") for row in table.cells)
    title = _escaped(table.title)
    notes = "".join(f"<p class=note>{_escaped(note)}</p>" for note in table.notes)
    return (
        f'<section class=table><h3>{title}</h3><div class=scroll tabindex=0 role=region aria-label="{title}">'
        f"<table><thead>{cells(table.header, 'th')}</thead><tbody>{rows}</tbody></table></div>{notes}</section>\n"
    )


# ---- blocks of data ----


def _blocks(rows: Sequence[SampleRow], questions: Questions) -> Iterator[str]:
    """Yield the index, which lists and filters need, and then blocks of texts. The page counts rows as they stand in the traces."""
    settings = _settings(rows)
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(map(_problem, rows)))}
    traces = sorted(group_traces(rows), key=lambda trace: problems[_problem(trace[0])])
    for trace in traces:
        trace.sort(key=lambda row: settings[pick(row, SETTING)]["place"])
    sizes: list[int] = []
    blocks: list[str] = []
    for block in _by_size(map(_trace, traces)):
        blocks.append(_packed(f"block{len(blocks)}", block))
        sizes.append(len(block))
    numbers = {id(row): number for number, row in enumerate(rows, 1)}
    benchmarks, models = (
        {name: i for i, name in enumerate(dict.fromkeys(r[c] for r in rows))} for c in ("benchmark", "model")
    )
    turned = {id(after): turn_of(before, after) for before, after in wait_pairs(rows)}
    ordered = [row for trace in traces for row in trace]
    columns: dict[str, list[Any]] = {"turn": [_TURNS.index(turned.get(id(row), "")) for row in ordered]}
    columns["trace"] = [i for i, trace in enumerate(traces) for _ in trace]
    columns["number"] = [numbers[id(row)] for row in ordered]
    columns["problem"] = [problems[_problem(row)] for row in ordered]
    columns["benchmark"] = [benchmarks[row["benchmark"]] for row in ordered]
    columns["model"] = [models[row["model"]] for row in ordered]
    columns["setting"] = [settings[pick(row, SETTING)]["place"] for row in ordered]
    columns["verdict"] = [_VERDICTS.index(_verdict(row)) for row in ordered]
    columns["sample"] = [row["sample_index"] for row in ordered]
    columns["tokens"] = [row["num_thinking_tokens"] for row in ordered]
    columns["answer"] = [row["extracted"] and row["extracted"][:_LIST_LENGTH] for row in ordered]
    index = {
        "columns": columns,
        "benchmarks": list(benchmarks),
        "models": list(models),
        "problems": [{"id": key[1], **_known(questions.get(key))} for key in problems],
        "settings": sorted(settings.values(), key=lambda setting: setting["place"]),
        "blocks": sizes,
    }
    yield _packed("index", index)
    yield from blocks


def _by_size(traces: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield traces in blocks of about `_BLOCK` characters."""
    block: list[dict[str, Any]] = []
    size = 0
    for trace in traces:
        block.append(trace)
        size += len(trace["thinking"]) + sum(len(fork["tail"]) + len(fork["answer"]) for fork in trace["forks"])
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _packed(name: str, value: Any) -> str:
    """Return a value as a block: JSON in ASCII, compressed, in base64. It holds no character that HTML could read as markup."""
    data = gzip.compress(json.dumps(value, separators=(",", ":")).encode(), compresslevel=6, mtime=0)
    return f'<script type="application/octet-stream" id="{name}">{base64.b64encode(data).decode()}</script>\n'


def _known(problem: tuple[str, str] | None) -> dict[str, str]:
    return {} if problem is None else {"question": problem[0], "gold": problem[1]}


def _settings(rows: Iterable[SampleRow]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the place among all settings, the condition's name and all columns of each setting, by its values of `SETTING`.

    The name lacks benchmark and model, which have filters of their own. So settings of several models may be one condition.
    """
    firsts: dict[tuple[Any, ...], SampleRow] = {}
    for row in rows:
        firsts.setdefault(pick(row, SETTING), row)
    names = CurveNames(list(firsts.values()))

    def order(key: tuple[Any, ...]) -> tuple[Any, ...]:
        row = firsts[key]
        asked = (row["method"], len(row["requested"]), row["requested"])
        return (*asked, *pick(row, ("num_ignore", "min_thinking_tokens", "max_thinking_tokens", "ignore_text")))

    settings: dict[tuple[Any, ...], dict[str, Any]] = {}
    for place, key in enumerate(sorted(firsts, key=order)):
        parts = names.parts(firsts[key])
        others = [text for column, text in parts.items() if column not in ("benchmark", "model")]
        settings[key] = {
            "place": place,
            "condition": ", ".join([setting_text(firsts[key]), *others]),
            "columns": {name: firsts[key][name] for name in ("weights", "tokenizer", *CONDITION)},
        }
    return settings


def _verdict(row: SampleRow) -> str:
    """Return a row's verdict. A row of an earlier format knows only whether it was correct."""
    known: str | None = row["verdict"]
    return known or ("equal" if row["correct"] else "no_answer" if row["extracted"] is None else "different")


def _trace(trace: Sequence[SampleRow]) -> dict[str, Any]:
    """Return what a block holds of a trace: its longest thinking, and its forks."""
    longest = max((row["thinking"] for row in trace), key=len)
    return {"thinking": longest, "forks": [_fork(row, trace, longest) for row in trace]}


def _fork(row: SampleRow, trace: Sequence[SampleRow], longest: str) -> dict[str, Any]:
    thinking, answer = row["thinking"], row["answer_text"]
    pairs = zip(thinking, longest, strict=False)
    shared = len(thinking) if longest.startswith(thinking) else next(i for i, (a, b) in enumerate(pairs) if a != b)
    return {
        "shared": _units(longest, shared),
        "tail": thinking[shared:],
        "answer": answer,
        "extracted": row["extracted"],
        "ended": what_ended(row),
        "delimiter": delimiter(row),
        "thinking_spans": _in_units(thinking, thinking_spans(row, trace)),
        "answer_spans": _in_units(answer, answer_spans(row)),
        "facts": {name: row[name] for name in _FACTS},
    }


def _in_units(text: str, spans: Iterable[Span]) -> list[tuple[int, int, str]]:
    return [(_units(text, span.start), _units(text, span.end), span.kind) for span in spans]


def _units(text: str, place: int) -> int:
    """Return a place in a text in UTF-16 code units, in which the page counts."""
    return place if text.isascii() else len(text[:place].encode("utf-16-le", "surrogatepass")) // 2
