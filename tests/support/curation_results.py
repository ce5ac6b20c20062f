"""A small curation for tests of what comes after its stages: the results of five stages, two of which change or add columns."""

import hashlib

import pyarrow as pa

from data_tools.curation.selection import SelectionConfig
from data_tools.curation.selection import stage as selection
from data_tools.curation.stage import Rows, Stage, in_parts, verdicts, write_result
from data_tools.curation.workers import Workers

TEXTS = ("id", "question", "reference", "source", "domain", "thinking", "answer", "file", "raw")


def pool_row(i, **changes):
    """The row of the pool with this number, as the stage collect adds it."""
    question = f"What is {i} + {i}?"
    row = dict(
        id=hashlib.sha256(question.encode()).hexdigest()[:16],
        question=question,
        reference=str(2 * i),
        source=["GSM8K", "AIME"][i % 2],
        domain="",
        thinking=f"Twice {i} is {2 * i}. " * (i + 1),
        answer=f"Answer: {2 * i}",
        file=f"data/pool{i // 20}.jsonl",
        line=i % 20 + 1,
        raw=None,
        reason=None,
    )
    return row | changes


def bad_row(i, reason="question is empty"):
    """A row that the stage collect rejects."""
    empty = dict.fromkeys(TEXTS, "")
    return empty | dict(file=f"data/pool{i // 20}.jsonl", line=i % 20 + 1, raw=f'{{"n": {i}}}', reason=reason)


def curated(folder, rows, part_rows=16, select=None):
    """Return the `Rows` that the stages collect, quality, lengths, domains and selection keep of these rows of a pool.

    Quality rejects each row whose reference is a multiple of 14, and a domain is a digit.
    """

    def collect(_):
        for begin in range(0, len(rows), part_rows):
            part = rows[begin : begin + part_rows]
            table = pa.table({"row": pa.array(range(begin, begin + len(part)), pa.int64())})
            texts = {name: pa.array([row[name] for row in part], pa.string()) for name in TEXTS}
            lines = pa.array([row["line"] for row in part], pa.int64())
            yield verdicts(table, [row["reason"] for row in part], line=lines, **texts)

    def quality(before):
        table = before.table("reference")
        bad = [int(text) % 14 == 0 for text in table["reference"].to_pylist()]
        reasons = ["the answer is wrong" if is_bad else None for is_bad in bad]
        details = ["a multiple of 14" if is_bad else None for is_bad in bad]
        yield from in_parts(
            verdicts(table, reasons, details, correct=pa.array([not is_bad for is_bad in bad], pa.bool_())), before
        )

    def lengths(before):
        table = before.table("thinking")
        counts = pa.array([len(text.split()) for text in table["thinking"].to_pylist()], pa.int32())
        yield from in_parts(verdicts(table, [None] * len(table), num_thinking_tokens=counts), before)

    def domains(before):
        table = before.table("reference")
        names = pa.array([text[-1:] for text in table["reference"].to_pylist()], pa.string())
        yield from in_parts(verdicts(table, [None] * len(table), domain=names), before)

    selected = Rows((), Workers(num_processes=1))
    stages = [("collect", collect), ("quality", quality), ("lengths", lengths), ("domains", domains)]
    for stage in [*(Stage(name, 1, {"rows": rows}, run) for name, run in stages), select]:
        stage = stage or selection(SelectionConfig("diverse", 10))
        before = selected.key if selected.results else ""
        selected = Rows((*selected.results, write_result(stage, stage.run(selected), before, folder)), selected.workers)
    return selected
