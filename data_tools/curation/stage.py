"""A stage of curation: rows -> a verdict for each row, and the columns that the stage adds.

In: `Rows`, those that every earlier stage kept. Out: for each part of the pool one table of verdicts, with the columns

- row: the number of the row in the pool, from 0
- reason: why the stage rejects the row; null if it keeps it
- detail: more about the reason, for example the row that it is a copy of; may be null
- whatever columns the stage adds, such as the length of the trace

A result is a folder `NAME-KEY`: one Parquet file per part, and `stage.json` with the counts. The key is a hash of the stage's name, version
and settings, and of the key of the stage before. So a stage that would give the same result again is not run, and configs that begin with
the same stages share their results.

Invariant: the result of a stage is a function of its rows and its settings. A stage that asks a model also keeps a file of answers, so that
no question is asked twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.curation.workers import Workers
from s1jax.runtime.files import write_file, writing

PART_ROWS = 1024
"""Rows of a part. It is fixed, so that no result depends on the number of processes."""
VERDICT = {"row": pa.int64(), "reason": pa.string(), "detail": pa.string()}
"""The columns of every verdict."""


@dataclass(frozen=True)
class Result:
    """What a stage wrote."""

    name: str
    folder: Path

    @property
    def is_there(self) -> bool:
        """Whether the stage has been run."""
        return (self.folder / "stage.json").exists()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `stage.json` holds: name, version, settings, key, num_rows, num_kept, and the number of rows for each reason."""
        return json.loads((self.folder / "stage.json").read_text())

    def part(self, index: int) -> Path:
        """The file of one part."""
        return self.folder / f"part-{index:05d}.parquet"

    @property
    def num_parts(self) -> int:
        """The number of parts, which all results of one pool share."""
        return self.summary["num_parts"]

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that this stage adds."""
        return frozenset(self.summary["columns"])

    def verdicts(self, columns: Sequence[str] = ()) -> pa.Table:
        """Return the verdicts of all parts, with some of the columns that the stage adds."""
        names = [*VERDICT, *columns]
        return pa.concat_tables([pq.read_table(self.part(i), columns=names) for i in range(self.num_parts)])


@dataclass(frozen=True)
class Rows:
    """The rows that every earlier stage kept. If two stages add a column of one name, the later one counts."""

    results: tuple[Result, ...]
    workers: Workers

    @property
    def key(self) -> str:
        """What identifies these rows."""
        return self.results[-1].summary["key"]

    @property
    def num_parts(self) -> int:
        """The number of parts. A part may have no rows left."""
        return self.results[0].num_parts

    def part(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Return `row` and some columns of one part."""
        return read_part([(result.part(index), result.columns) for result in self.results], columns)

    def table(self, *columns: str) -> pa.Table:
        """Return `row` and some columns of all rows, in the order of the pool."""
        return pa.concat_tables([self.part(i, columns) for i in range(self.num_parts)])

    def map(self, function: Callable[[pa.Table], pa.Table], *columns: str) -> Iterator[pa.Table]:
        """Yield `function(part)` for each part, in order. The part has `row` and the named columns.

        Worker processes call the function, so it must be a function of a module, or a `partial` of one.
        """
        sources = [[(result.part(i), result.columns) for result in self.results] for i in range(self.num_parts)]
        yield from self.workers.map(partial(_read_and_call, function, columns), sources)


@dataclass(frozen=True)
class Stage:
    """A stage with its settings."""

    name: str
    version: int
    """Changes whenever the code may give another result for the same rows and settings."""
    settings: Mapping[str, Any]
    """Everything else that the result depends on, as JSON: also hashes of the files that the stage reads."""
    run: Callable[[Rows], Iterable[pa.Table]]
    """Returns the verdicts: for each part a table with a line for each of its rows, in order."""

    def key(self, before: str) -> str:
        """Return the key of the result, given the key of the stage before."""
        content = [self.name, self.version, self.settings, before]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def find_result(stage: Stage, before: str, folder: Path) -> Result:
    """Return where the result of a stage is, or would be. `before` is the key of the stage before."""
    return Result(stage.name, folder / f"{stage.name}-{stage.key(before)}")


def write_result(stage: Stage, parts: Iterable[pa.Table], before: str, folder: Path) -> Result:
    """Write the verdicts of a stage, and return the result. Its folder appears when it is whole."""
    result = find_result(stage, before, folder)
    partial_folder = result.folder.with_name(f".{result.folder.name}.partial")
    num_rows = num_parts = 0
    columns: set[str] = set()
    reasons: Counter[str] = Counter()
    try:
        with writing(result.folder):
            shutil.rmtree(partial_folder, ignore_errors=True)
            partial_folder.mkdir(parents=True)
        for part in parts:
            part = part.select([*VERDICT, *(name for name in part.column_names if name not in VERDICT)])
            with writing(result.folder):
                pq.write_table(part, Result("", partial_folder).part(num_parts), compression="zstd")
            num_rows, num_parts = num_rows + len(part), num_parts + 1
            columns |= {*part.column_names} - {*VERDICT}
            reasons.update(part["reason"].drop_null().to_pylist())
        summary = dict(
            name=stage.name,
            version=stage.version,
            settings=stage.settings,
            key=stage.key(before),
            num_parts=num_parts,
            columns=sorted(columns),
            num_rows=num_rows,
            num_kept=num_rows - reasons.total(),
            reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        )
        with writing(result.folder):
            write_file(partial_folder / "stage.json", json.dumps(summary, indent=1) + "\n")
            shutil.rmtree(result.folder, ignore_errors=True)
            partial_folder.rename(result.folder)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless it holds other results
        raise
    return result


def describe(summary: Mapping[str, Any]) -> str:
    """Return one line about a result: how many rows it kept, and why it rejected the others."""
    shown = list(summary["reasons"].items())
    text = ", ".join(f"{count} x {reason}" for reason, count in shown[:8])
    more = f", and {len(shown) - 8} more reasons" if len(shown) > 8 else ""
    because = f"; rejected: {text}{more}" if shown else ""
    return f"{summary['name']:<15} kept {summary['num_kept']:,} of {summary['num_rows']:,}{because}"


def verdicts(
    rows: pa.Table, reasons: Sequence[str | None], details: Sequence[str | None] | None = None, **columns: Any
) -> pa.Table:
    """Return a table of verdicts on `rows`, one reason (or None) per row. `columns` are those that the stage adds."""
    table = {
        "row": rows["row"],
        "reason": pa.array(reasons, pa.string()),
        "detail": pa.array(details or [None] * len(rows), pa.string()),
    }
    return pa.table(table | columns)


def in_parts(table: pa.Table, rows: Rows) -> Iterator[pa.Table]:
    """Yield the verdicts on all rows part by part, for a stage that decides on all rows at once."""
    begin = 0
    for index in range(rows.num_parts):
        length = len(rows.part(index, ()))
        yield table.slice(begin, length)
        begin += length


def read_part(sources: Sequence[tuple[Path, frozenset[str]]], columns: Sequence[str]) -> pa.Table:
    """Return `row` and some columns of the rows of one part that all results kept.

    `sources` are the part's file in each result, and the columns that the result adds.
    """
    last = pq.read_table(sources[-1][0], columns=["row", "reason"])
    kept = last.filter(pc.is_null(last["reason"]))["row"].combine_chunks()
    read = {"row": kept}
    for file, names in reversed(sources):
        if wanted := [name for name in columns if name in names and name not in read]:
            table = pq.read_table(file, columns=["row", *wanted])
            # The rows of each part are in the order of their numbers.
            places = np.searchsorted(table["row"].to_numpy(), kept.to_numpy())
            read |= {name: table[name].take(pa.array(places)).combine_chunks() for name in wanted}
    return pa.table({name: read[name] for name in ("row", *columns)})


def _read_and_call(
    function: Callable[[pa.Table], pa.Table], columns: Sequence[str], sources: Sequence[tuple[Path, frozenset[str]]]
) -> pa.Table:
    return function(read_part(sources, columns))
