"""Evaluation: a model, problems and conditions -> sample rows in a JSONL file.

Each condition, problem and sample makes one row, which is appended when it is decoded and graded. Grading runs beside decoding.
Conditions that differ only in their limits, or in being forced, share a thinking trace (`Trace`), from which their answers are forked. A
run computes the rows whose keys (`row_key`) the file lacks, so an interrupted run resumes, and one file can hold a whole study. If there
are several processes, the first one reads and writes the file. It holds the lock of the file meanwhile.

Invariant: the randomness of a row is a function of (seed, problem, sample) and positions, so no other row changes it.
"""

from __future__ import annotations

import logging
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from s1jax.checkpoint.source import Source, load_tokenizer, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition
from s1jax.decode.engine import Engine, load_engine
from s1jax.decode.questions import request_of
from s1jax.decode.request import Completion, Request
from s1jax.evaluate.conditions import DecodingConfig, Trace, traces_of
from s1jax.evaluate.problems import Problem, read_problems
from s1jax.grading.pool import Grade, Grader
from s1jax.results.samples import COLUMNS, SampleRow, graded, is_whole, read_samples, row_key
from s1jax.results.tables import format_thinking_table
from s1jax.results.token_records import TokenAppender, check_records, has_records, to_records, tokens_path
from s1jax.runtime import jsonl
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable, short_path
from s1jax.runtime.git import commit
from s1jax.runtime.lock import Lock
from s1jax.runtime.preemption import Preemption
from s1jax.runtime.processes import check_same, everywhere, from_first_process, is_first_process, start_processes
from s1jax.runtime.progress import progress
from s1jax.runtime.terminal import for_stream, shortened

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """One trace to decode: the conditions of one problem and sample whose rows are missing."""

    problem: Problem
    sample_index: int
    trace: Trace


Keys = set[tuple[Any, ...]]
"""What `row_key` returns, for each of some rows."""


def evaluate(config: DecodingConfig, conditions: Sequence[Condition], num_samples: int = 1) -> None:
    """Join the processes of the run, write the rows of `write_samples`, and print the curves of these rows."""
    start_processes()
    output, asked = write_samples(config, conditions, num_samples)
    if is_first_process():
        with Preemption() as preemption, preemption.nothing_to_save("printing"):
            preemption.saved = f"all rows are in {output}"
            rows = read_samples(output)
            shown = [row for row in rows if row_key(row) in asked]
            print(for_stream(sys.stdout, format_thinking_table(shown)))
            if others := len(rows) - len(shown):
                logger.info("%s also holds %s: plot.py shows all", output, counted(others, "row") + " of other runs")


def write_samples(config: DecodingConfig, conditions: Sequence[Condition], num_samples: int = 1) -> tuple[Path, Keys]:
    """Decode and grade what `config.output` lacks of every condition, problem and sample, and append its rows.

    Returns the file, and the keys of all rows that were asked for, whether the file had them before or not.

    A signal ends the process at once, since rows are saved as they are finished. Raises UserError if the file cannot be written, is
    written by another process, is not one of sample rows, or has the earlier format, if a problem was edited since its rows were written,
    or if a request does not fit the model.
    """
    output = Path(config.output)
    from_first_process(lambda: check_writable(output))
    if config.record_tokens:
        from_first_process(lambda: check_writable(tokens_path(output)))
    with Preemption() as preemption, preemption.nothing_to_save("decoding"), Lock(output):
        return output, _write_missing(config, conditions, num_samples, preemption)


def _write_missing(
    config: DecodingConfig, conditions: Sequence[Condition], num_samples: int, preemption: Preemption
) -> Keys:
    """Do the work of `write_samples`; return the keys of all rows that were asked for."""
    output, writes = Path(config.output), is_first_process()
    check_same((config, conditions, num_samples), "config")
    source = everywhere(lambda: resolve_source(config.model, weights=False))
    every_problem = everywhere(lambda: read_problems(config.benchmark, config.columns, config.subset, config.split))
    check_same(every_problem, "problems")
    problems = every_problem[: config.limit]
    weights, tokenizer = everywhere(lambda: (source.fingerprint, source.tokenizer_fingerprint))
    check_same((weights, tokenizer), "model")
    chat = everywhere(lambda: _chat_format(source, conditions))
    traces = traces_of(replace(condition, thinking_format=chat.thinking.name) for condition in conditions)
    shared = dict(
        model=short_path(config.model), weights=weights, tokenizer=tokenizer, seed=config.seed, commit=commit()
    )
    every_job = [
        _Job(problem, sample, trace) for trace in traces for problem in problems for sample in range(num_samples)
    ]
    done, asked = from_first_process(lambda: _read_keys(config, every_problem)), set()
    jobs = []
    for job in every_job:
        keys = [row_key(_key_columns(job, condition, shared)) for condition in job.trace.conditions]
        asked.update(keys)
        if missing := [c for c, key in zip(job.trace.conditions, keys, strict=True) if key not in done]:
            jobs.append(replace(job, trace=Trace(tuple(missing))))
    num_done = len(asked) - sum(len(job.trace.conditions) for job in jobs)
    preemption.saved = f"{num_done} of {len(asked)} rows are in {output}"
    if not jobs:
        logger.info("%s has all %d rows already", output, len(asked))
        return asked
    # The longest traces begin first, so that none is left alone at the end.
    jobs.sort(key=lambda job: -job.trace.condition.max_thinking_tokens)
    engine, requests = _prepare(config, source, chat, jobs)
    waiting: list[list[tuple[SampleRow, Future[Grade]]]] = []  # rows that are decoded, and perhaps not graded yet
    with (
        jsonl.Appender(output) as file,
        TokenAppender(output) as token_file,
        Grader() as grader,
        progress(
            len(asked),
            "decode",
            "row",
            initial=num_done,
            hidden=not writes,
            # The rows that are decoded together end at about the same time, and the first ones early.
            estimate_after=min(config.num_rows * len(jobs[0].trace.conditions), (len(asked) - num_done) // 2),
        ) as bar,  # fmt: skip
    ):

        def append_graded(wait: bool = False) -> None:
            nonlocal num_done, waiting
            every, waiting = waiting, []
            for rows in every:
                if not (wait or all(grade.done() for _, grade in rows)):
                    waiting.append(rows)
                    continue
                file.append(graded(row, grade.result()) for row, grade in rows)
                num_done += len(rows)
                preemption.saved = f"{num_done} of {len(asked)} rows are in {output}"

        def show_tokens(num_tokens: int, longest: int) -> None:
            bar.show_tokens(num_tokens, longest)
            append_graded()  # rows whose comparison took longer than the step in which they were decoded

        stream = engine.stream(requests, num_rows=config.num_rows, scores=config.record_tokens, show_tokens=show_tokens)
        for index, completions in stream:
            if writes:
                job, rows = jobs[index], []
                places: Sequence[int | None] = [None] * len(completions)
                if config.record_tokens:
                    places = _record(token_file, completions)
                for condition, completion, place in zip(job.trace.conditions, completions, places, strict=True):
                    row = _sample_row(chat, job, condition, completion, place, shared)
                    rows.append((row, grader.submit(row["answer_text"], job.problem.answer)))
                waiting.append(rows)
                append_graded()
            bar.update(len(completions))
        append_graded(wait=True)
    return asked


def _key_columns(job: _Job, condition: Condition, shared: dict[str, Any]) -> SampleRow:
    """Return the columns of a row that are known before it is decoded; `shared` are those that all rows of the run share."""
    return {
        "problem_id": job.problem.problem_id,
        "benchmark": job.problem.benchmark,
        "problem": job.problem.digest,
        "sample_index": job.sample_index,
        **vars(condition),
        **shared,
    }


def _record(file: TokenAppender, completions: Sequence[Completion]) -> list[int]:
    """Record the tokens of some completions; return the index of the first record of each."""
    return file.append([to_records(c.tokens, c.forced, c.logprobs, c.confidences, c.end_logprobs) for c in completions])


def _sample_row(
    chat: ChatFormat,
    job: _Job,
    condition: Condition,
    completion: Completion,
    tokens_at: int | None,
    shared: dict[str, Any],
) -> SampleRow:
    """Return a row that is not graded yet. `tokens_at` is the index of its first token record, None if it has none."""
    thinking, answer_text = chat.split_completion(completion.tokens, completion.num_thinking)
    return {
        **_key_columns(job, condition, shared),
        "num_thinking_tokens": completion.num_thinking,
        "num_forced_tokens": completion.num_forced,
        "num_ignored": completion.num_ignored,
        "num_answer_tokens": completion.num_answer,
        "finish_reason": completion.finish_reason,
        "num_tries": completion.num_tries,
        "num_rejected_tokens": completion.num_rejected_tokens,
        "tokens_at": tokens_at,
        "num_tokens": None if tokens_at is None else len(completion.tokens),
        "thinking": thinking,
        "answer_text": answer_text,
    }


def _read_keys(config: DecodingConfig, problems: Sequence[Problem]) -> Keys:
    """Return the keys of the rows that the output holds. Raises UserError if rows cannot be added to it (`write_samples`)."""
    output = Path(config.output)
    # No rows are in a file that is missing, empty or torn inside its first row.
    is_empty = not output.exists() or jsonl.is_torn(output.read_bytes(), start=f'{{"{next(iter(COLUMNS))}": '.encode())
    rows = [] if is_empty else read_samples(output)
    if not all(is_whole(row) for row in rows):
        raise UserError(
            f"{output} holds rows of an earlier format, whose settings are not all known: give another --output"
        )
    if config.record_tokens:
        check_records(output, rows)
    num_recorded = sum(map(has_records, rows))
    if num_recorded < len(rows) and (config.record_tokens or num_recorded):
        lacking = f"{len(rows) - num_recorded} of {counted(len(rows), 'row')} in {output}"
        logger.info("%s have no token records. They are not decoded again", lacking)
    if num_recorded and not config.record_tokens:
        logger.info("new rows in %s will have no token records: this run does not --record-tokens", output)
    digests = {(problem.benchmark, problem.problem_id): problem.digest for problem in problems}
    benchmarks = {problem.benchmark for problem in problems}
    answered = {(row["benchmark"], row["problem_id"]): row["problem"] for row in rows if row["benchmark"] in benchmarks}
    edited = [key for key, digest in answered.items() if digests.get(key, digest) != digest]
    if answered and not answered.keys() & digests.keys():
        edited = list(answered)
    if edited:
        benchmark, problem_id = edited[0]
        raise UserError(
            f"problem {shortened(problem_id)} of benchmark {benchmark} has another question or answer than in the rows of {output}, or is "
            "none of its problems: undo the edit of the benchmark, rename one of two benchmarks of that name, or give another --output"
        )
    return {row_key(row) for row in rows}


def _chat_format(source: Source, conditions: Sequence[Condition]) -> ChatFormat:
    """Return the format of all conditions, which differ in their methods and limits. Raises UserError if methods need several."""
    tokenizer = load_tokenizer(source)
    by_format = {condition.thinking_format: condition for condition in conditions}
    (first, one), *others = (
        (ChatFormat.of(tokenizer, name, c.system_prompt, c.prompt_suffix), c.method) for name, c in by_format.items()
    )
    for chat, other in others:
        if chat.thinking != first.thinking:
            raise UserError(
                f"{one} needs the thinking format {first.thinking.name}, and {other} {chat.thinking.name}: run them one after another, "
                "with one output"
            )
    return first


def _prepare(
    config: DecodingConfig, source: Source, chat: ChatFormat, jobs: Sequence[_Job]
) -> tuple[Engine, list[Request]]:
    """Return the engine, and a request for each job. Raises UserError if a request does not fit the model."""
    condition = jobs[0].trace.condition  # whose dtype and storage are those of all
    engine, _ = load_engine(
        source, condition.dtype, config.mesh, config.rules, condition.int8, config.attention, chat=chat
    )
    ask = cache(partial(request_of, chat))  # a problem may have many samples
    requests = []
    for job in jobs:
        request = replace(
            ask(job.problem.question, job.trace.conditions[0]),
            condition=job.trace.condition,
            points=tuple(point.limits for point in job.trace.conditions) if chat.thinking.thinks else (),
            seed=config.seed,
            # A number of the problem itself, so that its place in the list changes nothing.
            problem=zlib.crc32(job.problem.problem_id.encode()) & 0x7FFFFFFF,
            sample=job.sample_index,
        )
        try:
            engine.check(request)
        except UserError as error:
            raise UserError(f"problem {job.problem.problem_id}: {error}") from None
        requests.append(request)
    return engine, requests
