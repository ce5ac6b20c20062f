"""The stage collect of curation: files, hub datasets and the sources of s1 -> the rows of the pool.

A row needs a question. Its trace, answer, reference, source and domain may be empty. Its layout is one of those of `s1jax/data/layouts.py`.
A bad row becomes a rejected row, with its place, its reason and what it was, and the run goes on. Copies of a question are left to the
stage duplicates. Rows are read, checked and written part by part.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from data_tools.curation.sources import SOURCES, HubRows, source_rows
from data_tools.curation.stage import PART_ROWS, VERDICT, Stage
from s1jax.data.columns import first_column, log_unread, text_of
from s1jax.data.encoder import check_text
from s1jax.data.layouts import POOL_COLUMNS, REPLACED, find_pool_parts
from s1jax.data.row_files import FILE_SUFFIXES, hub_revision, raw_rows, training_files
from s1jax.data.rows import DETAIL_COLUMNS
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types
from s1jax.runtime.files import short_path
from s1jax.runtime.terminal import shortened

logger = logging.getLogger("data_tools.curation")

VERSION = 1
ROLES = ("question", "reference", "thinking", "answer", "domain", "source", "id")
_JOINED = ROLES[:4]
_TEXTS = ("id", "question", "reference", "source", "domain", "thinking", "answer", "file")
SCHEMA = VERDICT | dict.fromkeys(_TEXTS, pa.string()) | {"line": pa.int64(), "raw": pa.string()}
"""The columns that the stage writes."""


@dataclass(frozen=True)
class CollectConfig:
    """Which rows the pool has."""

    pool: tuple[InputPath, ...] = ()
    """Where the rows are, in order. Each entry is a .jsonl or .parquet file, a directory of them (its train split, if there is one), a
    dataset on the Hugging Face hub (ORG/NAME, ORG/NAME:SUBSET or ORG/NAME:SUBSET:SPLIT; the subset may be empty, the split is train by
    default), one of the sixteen sources of s1 (s1:NAME, such as s1:AIME), or s1:all."""
    columns: tuple[str, ...] = ()
    """Which column is what, each as ROLE=COLUMN. The roles are question, reference, thinking, answer, domain, source and id. COLUMN+COLUMN
    joins texts with a blank line, for all roles but the last three. It applies to the rows that have the columns; of several for one role,
    the first counts. The sources of s1 do not need it. Default: the usual names."""
    max_characters: int = 200_000
    """Longest question, reference, trace or answer in characters. A row with a longer one is rejected. A trace of 32,768 tokens has about
    130,000 characters."""
    seed: int = 0
    """Seed of the sources of s1 of which only some rows are drawn: xword and SciEval."""

    def __post_init__(self) -> None:
        check_types(self)
        parse_columns(self.columns)
        for name in self.pool:
            _s1_names(name)
        if not all(map(str.strip, self.pool)):
            raise UserError("pool has an empty entry")
        if twice := next((name for i, name in enumerate(self.pool) if name in self.pool[:i]), None):
            raise UserError(f"pool has {twice} twice")
        if self.max_characters < 1:
            raise UserError(f"max_characters is {self.max_characters}: it must be at least 1")


class ColumnsOf(NamedTuple):
    """The columns that hold a role, in the rows that have them."""

    role: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.role}={'+'.join(self.names)}"


def parse_columns(columns: Iterable[str]) -> list[ColumnsOf]:
    """Return what `CollectConfig.columns` says. Raises UserError for a text that is not ROLE=COLUMN or ROLE=COLUMN+COLUMN."""
    mapped: list[ColumnsOf] = []
    for text in columns:
        role, _, joined = text.partition("=")
        names = tuple(joined.split("+"))
        if role not in ROLES or not all(names) or ColumnsOf(role, names) in mapped:
            roles = ", ".join(ROLES)
            raise UserError(f"columns has {text!r}: give ROLE=COLUMN, each once; the roles are {roles}")
        if len(names) > 1 and role not in _JOINED:
            raise UserError(f"columns has {text!r}: {role} is one column")
        mapped.append(ColumnsOf(role, names))
    return mapped


def stage(config: CollectConfig) -> Stage:
    """Return the stage. It adds the columns of `SCHEMA`.

    The settings have a hash of each file, and the commit of each hub dataset. Raises FileNotFoundError for an entry that is not there.
    """
    entries = _entries(config)
    settings = {
        "pool": [entry.settings for entry in entries],
        "columns": [str(mapping) for mapping in parse_columns(config.columns)],
        "max_characters": config.max_characters,
    }
    return Stage("collect", VERSION, settings, lambda rows: _collect(config, entries))


class RawRow(NamedTuple):
    """A row as a source gives it."""

    file: str
    line: int
    columns: dict[str, Any] | UserError
    """Its columns, or why it has none."""
    original: str | dict[str, Any]
    """What a rejected row keeps: the text of its line, or its columns."""


class Entry(NamedTuple):
    """Some rows of the pool that share a name."""

    source: str
    """The source of its rows that name none."""
    settings: dict[str, Any]
    """What the rows depend on."""
    read: Callable[[], Iterator[RawRow]]
    is_mapped: bool = True
    """Whether `CollectConfig.columns` applies."""


def _entries(config: CollectConfig) -> list[Entry]:
    """Return the entries of a pool, one for each file, dataset or source."""
    if not config.pool:
        raise UserError("the stage collect needs --collect.pool: a file, a directory, a hub dataset, or s1:all")
    entries = []
    for name in config.pool:
        path = Path(name)
        if sources := _s1_names(name):
            entries += [_s1_entry(source, config.seed) for source in sources]
        elif path.is_dir():
            entries += [_file_entry(file) for file in training_files(path)]
        elif path.is_file():
            entries.append(_file_entry(path))
        elif (
            match := re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([^:]*))?(?::([^:]+))?", name)
        ) and path.suffix not in FILE_SUFFIXES:
            entries.append(_hub_entry(HubRows(match[1], match[3] or "train", match[2] or "")))
        else:
            raise FileNotFoundError(
                f"the pool has no {name}: give a .jsonl or .parquet file, a directory of them, a hub dataset (ORG/NAME, ORG/NAME:SUBSET or "
                "ORG/NAME:SUBSET:SPLIT), or s1:NAME"
            )
    return entries


def _s1_names(entry: str) -> list[str]:
    """Return the sources of s1 that an entry means, none if it means something else. Raises UserError for an unknown one."""
    prefix, _, name = entry.partition(":")
    if prefix != "s1":
        return []
    if name not in ("all", *SOURCES):
        raise UserError(f"pool has {entry}: the sources of s1 are {', '.join(SOURCES)}, and all")
    return [*SOURCES] if name == "all" else [name]


def _file_entry(path: Path) -> Entry:
    name = short_path(str(path))
    check_text(f"the name of the file {name!r}", name)

    def read() -> Iterator[RawRow]:
        for _, line, columns, text in raw_rows(str(path)):
            yield RawRow(name, line, columns, columns if isinstance(columns, dict) and not text else text)

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(path.stem, {"file": name, "sha256": digest}, read)


def _hub_entry(rows: HubRows) -> Entry:
    revision = hub_revision(rows.dataset)

    def read() -> Iterator[RawRow]:
        for line, columns in rows.read(revision):
            yield RawRow(rows.name, line, columns, columns)

    name = rows.dataset.partition("/")[2]
    return Entry(name, {"dataset": rows.name, "revision": revision}, read)


def _s1_entry(name: str, seed: int) -> Entry:
    source = SOURCES[name]
    revisions = {dataset: hub_revision(dataset) for dataset in source.datasets}

    def read() -> Iterator[RawRow]:
        for file, line, original, columns in source_rows(name, revisions, seed):
            yield RawRow(file, line, columns, original)

    settings = {"s1": name, "revisions": revisions} | ({"seed": seed} if source.draw else {})
    return Entry(name, settings, read, is_mapped=False)


@dataclass
class _Seen:
    """What the rows so far had."""

    names: set[str] = field(default_factory=set)
    """The columns of this entry."""
    questions: dict[str, tuple[int, str]] = field(default_factory=dict)
    """The line and the hash of the question of each id of this entry."""
    num_system_prompts: int = 0
    """Rows of this entry with a system prompt."""
    applied: set[ColumnsOf] = field(default_factory=set)
    """The mappings whose columns some row of the pool had."""


def _collect(config: CollectConfig, entries: Sequence[Entry]) -> Iterator[pa.Table]:
    """Yield the rows of the pool in parts of `PART_ROWS`.

    Raises UserError at the end if a mapping applied to no row, or if no row is usable.
    """
    applied: set[ColumnsOf] = set()
    reasons: Counter[str | None] = Counter()
    numbered = enumerate(_rows(config, entries, applied))
    while part := [{"row": number} | row for number, row in itertools.islice(numbered, PART_ROWS)]:
        reasons.update(row["reason"] for row in part)
        yield pa.table({name: pa.array([row[name] for row in part], kind) for name, kind in SCHEMA.items()})
    for mapping in parse_columns(config.columns):
        if mapping not in applied:
            raise UserError(f"columns has '{mapping}', but no row of the pool has {' and '.join(mapping.names)}")
    if not reasons[None]:
        found = (
            "; ".join(f"{reason} ({count} x)" for reason, count in reasons.most_common(4) if reason) or "it is empty"
        )
        raise UserError(f"the pool {', '.join(config.pool)} holds no usable row: {found}")


def _rows(config: CollectConfig, entries: Sequence[Entry], applied: set[ColumnsOf]) -> Iterator[dict[str, Any]]:
    """Yield the columns of each row but its number."""
    mapped = parse_columns(config.columns)
    for entry in entries:
        seen = _Seen(applied=applied)
        for raw in entry.read():
            try:
                yield _row(raw, entry, mapped if entry.is_mapped else (), seen, config.max_characters)
            except UserError as error:
                yield _rejected(raw, entry, str(error))
        read = {*POOL_COLUMNS, "id", *DETAIL_COLUMNS["source"], *DETAIL_COLUMNS["domain"]}
        log_unread(entry.source, seen.names, read.union(*(mapping.names for mapping in mapped)))
        if seen.num_system_prompts:
            with_prompts = counted(seen.num_system_prompts, "row")
            logger.warning(
                "%s: %s with a system prompt: it is left out, the chat format has its own", entry.source, with_prompts
            )


def _row(raw: RawRow, entry: Entry, mapped: Sequence[ColumnsOf], seen: _Seen, max_characters: int) -> dict[str, Any]:
    """Return a usable row. Raises UserError, with the reason, if it must be rejected."""
    if isinstance(raw.columns, UserError):
        raise raw.columns
    seen.names |= raw.columns.keys()
    columns = _renamed(raw.columns, mapped, seen.applied) if mapped else raw.columns
    parts = find_pool_parts(columns)
    for name in ("question", "reference", "thinking", "answer"):
        if (length := len(getattr(parts, name))) > max_characters:
            raise UserError(
                f"{name} is too long: it has {length:,} characters, and max_characters is {max_characters:,}"
            )
    digest = hashlib.sha256(parts.question.encode()).hexdigest()[:16]
    _check_id(columns, digest, raw.line, seen)
    row = {
        "reason": None,
        "detail": None,
        "id": digest,
        "question": parts.question,
        "reference": parts.reference,
        "source": _detail(columns, "source") or entry.source,
        "domain": _detail(columns, "domain"),
        "thinking": parts.thinking,
        "answer": parts.answer,
        "file": raw.file,
        "line": raw.line,
        "raw": None,
    }
    seen.num_system_prompts += parts.has_system_prompt
    return row


def _detail(columns: dict[str, Any], role: str) -> str:
    name = first_column(columns, DETAIL_COLUMNS[role])
    return "" if name is None else text_of(name, columns[name])


def _check_id(columns: dict[str, Any], digest: str, line: int, seen: _Seen) -> None:
    """Raise UserError if this entry used a row's id for another question."""
    row_id = text_of("id", columns.get("id"), number=True).strip()
    if row_id and seen.questions.setdefault(row_id, (line, digest))[1] != digest:
        raise UserError(f"id of another question: {shortened(row_id)} is that of line {seen.questions[row_id][0]}")


def _rejected(raw: RawRow, entry: Entry, fault: str) -> dict[str, Any]:
    """Return a rejected row. What differs from row to row is the detail, so that reasons can be counted."""
    reason, _, detail = fault.partition(": ")
    original = raw.original if isinstance(raw.original, str) else _as_json(raw.original)
    empty = dict.fromkeys(_TEXTS, "")
    place = {"source": entry.source, "file": raw.file, "line": raw.line}
    return empty | place | {"reason": reason, "detail": detail or None, "raw": original}


def _as_json(columns: dict[str, Any]) -> str:
    """Return columns as JSON. Values that JSON does not know, such as dates, become text."""
    return json.dumps(columns, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()


def _renamed(row: dict[str, Any], mapped: Sequence[ColumnsOf], applied: set[ColumnsOf]) -> dict[str, Any]:
    """Return a row in which mapped columns have the names of their roles. Other columns that could be the same are left out."""
    mine = [mapping for mapping in mapped if all(name in row for name in mapping.names)]
    applied.update(mine)
    by_role = {mapping.role: mapping.names for mapping in reversed(mine)}
    # The columns of a question may only be read as its parts.
    left_out = {*by_role.get("question", ()), *(name for role in by_role for name in REPLACED.get(role, ()))}
    values = {role: _joined(row, role, names) for role, names in by_role.items()}
    return {name: value for name, value in row.items() if name not in left_out} | values


def _joined(row: dict[str, Any], role: str, names: tuple[str, ...]) -> Any:
    if len(names) == 1:
        return row[names[0]]
    texts = (text_of(name, row[name], number=role != "question", lines=True).strip() for name in names)
    return "\n\n".join(filter(None, texts))
