"""The stage duplicates of curation: of rows that ask the same question, one is kept.

Two questions are the same if their texts are equal, if they differ only in spelling, or if they are nearly equal and have the same numbers
(`spelling.py`). Two questions with different numbers are different problems.

A row with a trace is kept before one without, then a row with a reference before one without, then the row whose hash of all texts is
smaller. So the choice depends on the order of the pool only where all texts are equal. Then the first row is kept.

Near equality is not transitive. Rows are taken in that order, and a row goes if it is nearly equal to a row that is *kept*. So each
rejected row names a kept row that is really near to it, and no chain of small changes removes a question that differs much from all others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from data_tools.curation.spelling import (
    Neighbours,
    check_installed,
    check_threshold,
    jaccard,
    signatures,
    spell,
)
from data_tools.curation.stage import Rows, Stage, in_parts, verdicts
from s1jax.runtime.fields import check_types

VERSION = 1

SAME = "another row has the same question"
SAME_BUT_SPELLING = "another row has the same question in another spelling"
NEARLY_SAME = "another row has nearly the same question"


@dataclass(frozen=True)
class DuplicatesConfig:
    """When two questions count as one."""

    near_threshold: float = 0.9
    """Similarity from which two questions with the same numbers count as one: the Jaccard index of their runs of five characters.
    0: near equality does not count."""

    def __post_init__(self) -> None:
        check_types(self)
        check_threshold("near_threshold", self.near_threshold)


def stage(config: DuplicatesConfig) -> Stage:
    """Return the stage. It adds no columns; `detail` names the kept row. Raises UserError if datasketch is missing."""
    if config.near_threshold:
        check_installed("duplicates.near_threshold")
    return Stage("duplicates", VERSION, asdict(config), partial(_find, config.near_threshold))


def _find(near_threshold: float, rows: Rows) -> Iterable[pa.Table]:
    columns = ("question", "thinking", "answer", "reference", "source", "domain")
    found = pa.concat_tables(rows.map(partial(_describe_part, bool(near_threshold)), *columns))
    table = rows.table("id", "question", "file", "line")
    questions = table["question"].to_pylist()
    kept = find_kept(questions, found, near_threshold)
    names = table.select(["id", "file", "line"]).take(pa.array(kept, pa.int64())).to_pylist()
    reasons: list[str | None] = []
    details: list[str | None] = []
    forms = found["form"].to_pylist()
    for i, j in enumerate(kept):
        reason = SAME if questions[i] == questions[j] else SAME_BUT_SPELLING if forms[i] == forms[j] else NEARLY_SAME
        reasons.append(None if i == j else reason)
        details.append(None if i == j else "{id} at {file}:{line}".format(**names[i]))
    return in_parts(verdicts(table, reasons, details), rows)


def _describe_part(near: bool, rows: pa.Table) -> pa.Table:
    """Return for each row hashes of its form and its numbers, its place in the order of choice and, if asked, its MinHash."""
    spelled = [spell(question) for question in rows["question"].to_pylist()]
    places = []
    for row in rows.drop_columns("row").to_pylist():
        # The order of choice: with a trace, with a reference, then by content.
        lacks = bytes([not row["thinking"].strip(), not row["reference"].strip()])
        places.append(lacks + _digest(*(row[name] for name in sorted(row))))
    columns = {
        "form": [_digest(*question.identity) for question in spelled],
        "numbers": [_digest(*question.numbers) for question in spelled],
        "place": places,
        "signature": [line.tobytes() for line in signatures(spelled)] if near else [b""] * len(spelled),
    }
    return pa.table({name: pa.array(values, pa.binary()) for name, values in columns.items()})


def _digest(*texts: str) -> bytes:
    encoded = [text.encode() for text in texts]
    return hashlib.blake2b(b"".join(len(text).to_bytes(8, "big") + text for text in encoded), digest_size=16).digest()


def find_kept(questions: list[str], found: pa.Table, near_threshold: float) -> list[int]:
    """Return for each row the number of the row that is kept in its place: its own number if it is kept.

    `found` has what `_describe_part` returns for each of the questions.
    """
    forms, numbers, places = (found[name].to_pylist() for name in ("form", "numbers", "place"))
    order = sorted(range(len(questions)), key=lambda i: (places[i], i))
    first: dict[bytes, int] = {}
    for i in order:
        first.setdefault(forms[i], i)
    if near_threshold:
        near = _nearly_same(questions, list(first.values()), numbers, found["signature"].to_pylist(), near_threshold)
        first = {form: near.get(i, i) for form, i in first.items()}
    return [first[form] for form in forms]


def _nearly_same(
    questions: list[str], order: list[int], numbers: list[bytes], minhashes: list[bytes], threshold: float
) -> dict[int, int]:
    """Return for each row that is nearly equal to a kept one before it in `order` the first of these."""
    counts = Counter(numbers[i] for i in order)
    kept = Neighbours(threshold)
    near: dict[int, int] = {}
    for place, i in enumerate(order):
        if counts[numbers[i]] == 1:
            continue
        minhash = np.frombuffer(minhashes[i], np.uint32)
        others = [order[other] for other in kept.of(minhash) if numbers[order[other]] == numbers[i]]
        if others:
            question = spell(questions[i])
            others = [other for other in others if jaccard(question, spell(questions[other])) >= threshold]
        if others:
            near[i] = others[0]
        else:
            kept.add(place, minhash)
    return near
