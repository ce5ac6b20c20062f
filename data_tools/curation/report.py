"""The report of a curation: results of its stages -> counts, token lengths and settings as one JSON object, and the dataset's card.

Invariant: the report is a function of the results, the config and the versions of packages. It holds no date, no duration and
no name of a machine.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_tools.curation.funnel import funnel_table
from data_tools.curation.stage import Result
from s1jax.runtime.text_table import Table, escaped

WRITTEN_BY = "s1jax data_tools.curation"
"""The value of `written_by`, by which a report of a curation is known."""
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_PACKAGES = ("s1jax", "numpy", "pyarrow", "matplotlib")
_NUM_NAMED = 100


def report_of(
    results: Sequence[Result],
    splits: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    contamination: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
    """Return the report. `splits` are the row numbers of each split, ascending; `contamination` counts rows per (source, held-out set)."""
    summaries = [result.summary for result in results]
    return {
        "written_by": WRITTEN_BY,
        "num_rows": {name: len(rows) for name, rows in splits.items()},
        "funnel": [
            {name: stage[name] for name in ("name", "num_rows", "num_kept", "reasons")}
            | {"num_rejected": stage["num_rows"] - stage["num_kept"]}
            for stage in summaries
        ],
        "sources": source_counts(results),
        "contamination": [
            {"source": source, "heldout": heldout, "num_rows": count}
            for (source, heldout), count in sorted(contamination.items())
        ],
        "thinking_tokens": length_statistics(results, splits["train"]),
        "config": dict(settings),
        "stages": [{name: stage[name] for name in ("name", "version", "key", "settings")} for stage in summaries],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }


def source_counts(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Return for each source the number of its rows in the pool and after each stage. A row that collect rejects may have the source ""."""
    table = results[0].verdicts(["source"])
    source = np.array(table["source"].fill_null("").to_pylist(), dtype=object)
    counts: dict[str, dict[str, int]] = {name: {} for name in sorted(set(source))}
    for stage, rows in [("pool", table["row"]), *((result.name, _kept(result)) for result in results)]:
        found = Counter(source[rows.to_numpy()])
        for name in counts:
            counts[name][stage] = found[name]
    return counts


def length_statistics(results: Sequence[Result], rows: np.ndarray) -> dict[str, Any] | None:
    """Return how long the traces of these rows are in tokens: of all, by source and by domain. None if no stage counted them."""
    if not any("num_thinking_tokens" in result.columns for result in results):
        return None
    lengths = _column(results, "num_thinking_tokens", rows)
    by: dict[str, Any] = {"all": _statistics(lengths)}
    for name in ("source", "domain"):
        values = _column(results, name, rows)
        by[f"by_{name}"] = {value: _statistics(lengths[values == value]) for value in sorted(set(values))}
    return by


def _statistics(lengths: np.ndarray) -> dict[str, Any]:
    lengths = lengths.astype(np.int64)
    points = np.percentile(lengths, _PERCENTILES) if len(lengths) else [0.0] * len(_PERCENTILES)
    return {
        "num_rows": len(lengths),
        "total": int(lengths.sum()),
        "mean": round(float(lengths.mean()), 2) if len(lengths) else 0.0,
        "percentiles": {f"{name}": round(float(point), 2) for name, point in zip(_PERCENTILES, points, strict=True)},
    }


def _kept(result: Result) -> Any:
    verdicts = result.verdicts()
    return verdicts.filter(pc.is_null(verdicts["reason"]))["row"]


def _column(results: Sequence[Result], name: str, rows: np.ndarray) -> np.ndarray:
    """Return a column of some rows, as the last stage that adds it wrote it."""
    result = next(result for result in reversed(results) if name in result.columns)
    table = result.verdicts([name])
    places = np.searchsorted(table["row"].to_numpy(), rows)
    return np.array(table[name].take(places).to_pylist(), dtype=object)


# ---- tables and the card ----


def report_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a report: the funnel, the sources, the contamination and the token lengths."""
    tables = [funnel_table(report["funnel"])]
    stages = [name for counts in report["sources"].values() for name in counts][: len(report["funnel"]) + 1]
    cells = [
        (source or "(none)", *(f"{count:,}" for count in counts.values()))
        for source, counts in sorted(report["sources"].items(), key=lambda item: (-item[1]["pool"], item[0]))
    ]
    tables.append(_cut("Rows of each source after each stage", ("source", *stages), cells))
    if report["contamination"]:
        found = [(row["source"], row["heldout"], f"{row['num_rows']:,}") for row in report["contamination"]]
        tables.append(
            _cut(
                "Rows that share text with a held-out set, each counted for one set",
                ("source", "held-out set", "rows"),
                found,
            )
        )
    if lengths := report["thinking_tokens"]:
        header = ("tokens per trace", "rows", "total", "mean", *(f"p{name}" for name in _PERCENTILES))
        cells = [_length_cells("all", lengths["all"])]
        for kind in ("source", "domain"):
            named = sorted(lengths[f"by_{kind}"].items(), key=lambda item: (-item[1]["num_rows"], item[0]))
            cells += [_length_cells(f"{kind} {name or '(none)'}", group) for name, group in named]
        tables.append(_cut("Lengths of the training traces", header, cells))
    return tables


def _length_cells(name: str, group: Mapping[str, Any]) -> tuple[str, ...]:
    points = (f"{point:,.0f}" for point in group["percentiles"].values())
    return (name, f"{group['num_rows']:,}", f"{group['total']:,}", f"{group['mean']:,.0f}", *points)


def _cut(title: str, header: tuple[str, ...], cells: Sequence[tuple[str, ...]]) -> Table:
    more = len(cells) - _NUM_NAMED
    return Table(title, header, cells[:_NUM_NAMED], [f"{more:,} more are in report.json."] if more > 0 else [])


def card_of(report: Mapping[str, Any], title: str, license: str, hashes: Mapping[str, str]) -> str:
    """Return the dataset card: a YAML header that the hub and `datasets` read, the tables of the report, its settings and its hashes.

    `hashes` are the sha256 of the data files, by their paths in the dataset.
    """
    num_rows = report["num_rows"]
    header = [f"pretty_name: {json.dumps(title)}"]
    if license:
        header.append(f"license: {json.dumps(license)}")
    header += [
        "task_categories:",
        "- text-generation",
        "tags:",
        "- reasoning",
        "- test-time-scaling",
        "size_categories:",
    ]
    header += [f"- {_size(sum(num_rows.values()))}", "configs:", "- config_name: default", "  data_files:"]
    for split in num_rows:
        header += [f"  - split: {split}", f"    path: data/{split}-*"]
    counts = " and ".join(f"{count:,} for {name}" for name, count in num_rows.items())
    text = [
        f"# {escaped(title)}",
        f"Questions with a reasoning trace and an answer, chosen from a pool of {report['funnel'][0]['num_rows']:,} rows: {counts}.",
        "Columns: `id` (the first 16 hex digits of sha256 of the question), `question`, `thinking` (the trace),"
        " `answer`, `reference` (the known solution or answer, or empty), `source` and `domain`.",
        "![Rows after each stage](funnel.png)",
        *(table.markdown() for table in report_tables(report)),
        Table("Data files", ("file", "sha256"), list(hashes.items()), []).markdown(),
        "## Settings",
        "```json\n" + json.dumps(report["config"], indent=1, ensure_ascii=True).replace("`", "\\u0060") + "\n```",
    ]
    return "\n".join(["---", *header, "---", "", "\n\n".join(text), ""])


def _size(num_rows: int) -> str:
    """Return the hub's name of a size."""
    sizes = ("1K", "10K", "100K", "1M", "10M")
    index = len(str(num_rows)) - 4  # the number of the last size that is not above it
    return "n<1K" if index < 0 else f"{sizes[index]}<n<{sizes[index + 1]}"
