"""Evaluation: (model, problems, points) -> sample rows in a JSONL file, resumable.

A point is one decoding condition; each point x problem x sample is one row, and the whole condition is in the row's columns
(`metrics.SampleRow`). Points that differ only in what ends the thinking are answers forked from one trace (`Trace`). Rows are appended
as they are finished, so a killed run goes on where it stopped. Of several processes the first writes, and knows what is there already.

Invariant: a row's randomness is its own (seed, problem, sample), so neither what it was decoded beside nor the other points change it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from s1jax.data.chat import encode_prompt, encode_text, split_completion
from s1jax.data.condition import Condition
from s1jax.decode.load import load_engine
from s1jax.decode.request import Completion, Request
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig, Point, Trace
from s1jax.evaluate.problems import Problem, read_problems
from s1jax.grading.grade import grade
from s1jax.results.samples import SampleRow, read_samples
from s1jax.runtime.config import config_hash
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable
from s1jax.runtime.git import commit
from s1jax.runtime.processes import check_same, everywhere, from_first_process, is_first_process
from s1jax.runtime.progress import progress

FIRST_COLUMN = b'{"problem_id": "'


def evaluate(config: EvaluateConfig) -> Path:
    """Decode and grade one point; return the file of sample rows."""
    return write_samples(config.decoding, [Trace((config.point,))])


def write_samples(config: DecodingConfig, traces: Sequence[Trace]) -> Path:
    """Decode every point x problem x sample that `config.output` lacks, grade it and append its row; return the file.

    Raises UserError where the file cannot be written or holds rows of another run, or a request does not fit the model.
    """
    # Here, so that reading rows needs no checkpoint formats.
    from s1jax.checkpoint.source import fingerprint, tokenizer_fingerprint

    output, writes = Path(config.output), is_first_process()
    every_problem = everywhere(lambda: read_problems(config.benchmark))
    check_same((config, traces), "config")
    check_same(every_problem, "problems")
    problems = every_problem[: config.limit]
    # What changes no more than the last bit of a number; the benchmark is told by its problems.
    neutral = ("output", "limit", "num_rows", "attention", "mesh", "rules", "benchmark")
    identity = config_hash(
        replace(config, int8=tuple(sorted(set(config.int8)))),
        exclude=neutral,
        problems=repr(every_problem),
        weights=fingerprint(config.model),
        tokenizer=tokenizer_fingerprint(config.model),
    )
    cells = [
        (trace, problem, sample, point)
        for trace in traces
        for problem in problems
        for sample in range(max(point.num_samples for point in trace.points))
        for point in trace.points
        if sample < point.num_samples
    ]
    keys = [(problem.problem_id, *_setting(point), sample) for _, problem, sample, point in cells]
    is_missing = _find_missing(output, identity, keys)
    jobs = [
        (problem, Trace(tuple(cell[3] for cell in group)), sample)
        for (_, problem, sample), group in itertools.groupby(
            itertools.compress(cells, is_missing), key=lambda cell: cell[:3]
        )
    ]
    num_done = len(keys) - sum(is_missing)
    if not jobs:
        if writes:
            print(f"{output} has all {num_done} rows already", file=sys.stderr)
        return output
    engine, tokenizer = load_engine(
        config.model, config.dtype, config.mesh, config.rules, config.int8, config.attention
    )
    # The longest traces begin first, so that none is left alone at the end.
    jobs.sort(key=lambda job: -job[1].limits.max_thinking_tokens)
    prompts = {problem.problem_id: tuple(encode_prompt(tokenizer, problem.question)) for problem in problems}
    requests = [_request(tokenizer, prompts[job[0].problem_id], *job, config) for job in jobs]
    for (problem, *_), request in zip(jobs, requests, strict=True):
        try:
            engine.check(request)
        except ValueError as error:
            raise UserError(f"problem {problem.problem_id}: {error}") from None

    columns = dict(model=config.model, seed=config.seed, config_hash=identity, commit=commit())
    file = None
    with ExitStack() as stack:
        bar = stack.enter_context(progress(len(keys), "decode", "row", initial=num_done, hidden=not writes))
        for index, completions in engine.stream(requests, num_rows=config.num_rows):
            problem, trace, sample = jobs[index]
            if writes:
                # Not before the first row, so that a run which fails earlier leaves nothing.
                file = file or stack.enter_context(_open(output))
                for point, completion in zip(trace.points, completions, strict=True):
                    row = _sample_row(tokenizer, problem, point, sample, completion, columns)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            bar.update(len(completions))
        if file:
            os.fsync(file.fileno())
    return output


def _find_missing(output: Path, identity: str, keys: Sequence[tuple[Any, ...]]) -> list[bool]:
    """Return which of the rows with these keys the file lacks, as the first process finds it; where that fails, all raise."""

    def find() -> list[bool]:
        check_writable(output)
        done = _rows_done(output, identity)
        return [key not in done for key in keys]

    return from_first_process(find)


def _open(output: Path) -> TextIO:
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.open("a", encoding="utf-8")


def _setting(point: Point) -> tuple[Any, ...]:
    return (*point.limits, point.ignore_text, point.temperature)


def _rows_done(output: Path, identity: str) -> set[tuple[Any, ...]]:
    """Return the keys of the rows in the file, once they are known as ours; then a last line torn by a kill is mended or cut off."""
    text = output.read_bytes() if output.exists() else b""
    if not text:
        return set()
    num_whole = text.rfind(b"\n") + 1
    is_first_torn = not num_whole and (text.startswith(FIRST_COLUMN) or FIRST_COLUMN.startswith(text))
    rows = [] if is_first_torn and not _parses(text) else read_samples(output)
    others = {row["config_hash"] for row in rows} - {identity}
    if others:
        raise UserError(
            f"{output} holds rows of another config, or of other problems, weights or tokenizer files ({', '.join(sorted(others))}); "
            "give another --output, or remove it"
        )
    if num_whole < len(text):
        with output.open("r+b") as file:
            if _parses(text[num_whole:]):
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(num_whole)
    return {
        (
            row["problem_id"],
            row["max_thinking_tokens"],
            row["min_thinking_tokens"],
            row["num_ignore"],
            row["ignore_text"],
            row["temperature"],
            row["sample_index"],
        )
        for row in rows
    }


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _request(
    tokenizer: Any, prompt: tuple[int, ...], problem: Problem, trace: Trace, sample: int, config: DecodingConfig
) -> Request:
    (ignore_text,), (temperature,) = (
        {getattr(p, name) for p in trace.points} for name in ("ignore_text", "temperature")
    )
    condition = Condition(
        *trace.limits,
        ignore_text=ignore_text,
        max_answer_tokens=config.max_answer_tokens,
        temperature=temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        dtype=config.dtype,
        int8=config.int8,
    )
    return Request(
        prompt,
        condition,
        tuple(encode_text(tokenizer, ignore_text)),
        points=tuple(point.limits for point in trace.points),
        seed=config.seed,
        # A number of the problem itself, not of its place in the list.
        problem=zlib.crc32(problem.problem_id.encode()) & 0x7FFFFFFF,
        sample=sample,
    )


def _sample_row(
    tokenizer: Any, problem: Problem, point: Point, sample: int, completion: Completion, columns: dict[str, Any]
) -> SampleRow:
    thinking, answer_text = split_completion(tokenizer, completion.tokens, completion.num_thinking)
    extracted, correct = grade(answer_text, problem.answer)
    return SampleRow(
        problem_id=problem.problem_id,
        benchmark=problem.benchmark,
        model=columns["model"],
        method="budget_forcing",
        max_thinking_tokens=point.max_thinking_tokens,
        min_thinking_tokens=point.min_thinking_tokens,
        num_ignore=point.num_ignore,
        ignore_text=point.ignore_text,
        temperature=point.temperature,
        sample_index=sample,
        seed=columns["seed"],
        num_thinking_tokens=completion.num_thinking,
        num_forced_tokens=completion.num_forced,
        num_ignored=completion.num_ignored,
        num_answer_tokens=completion.num_answer,
        finish_reason="length" if completion.finish_reason == "length" else "stop",
        thinking=thinking,
        answer_text=answer_text,
        extracted=extracted,
        correct=correct,
        config_hash=columns["config_hash"],
        commit=columns["commit"],
    )
