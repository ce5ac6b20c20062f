"""The stage traces of curation: questions without a trace -> a model's own traces, kept if the answer agrees with the reference.

The model is one of ours: then its answers are sample rows, as evaluation writes them. Or it runs behind an endpoint: then its replies are
rows of `runtime/endpoint.py`. Both files are in the folder `calls` and outlive the stage. So no answered question is asked again if an
earlier stage changes, or if a run is killed.

The endpoint may fail to answer some rows. They are rejected, and the next run of the same config asks about them again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.curation.attempts import NO_REFERENCE, NO_REPLY, NO_ROOM, PartOfPool, choose_part
from data_tools.curation.quality import stated_answers
from data_tools.curation.stage import Rows, Stage, verdicts
from s1jax.checkpoint.source import Source, load_tokenizer, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition
from s1jax.data.thinking_format import AUTO
from s1jax.evaluate.conditions import DecodingConfig, check_num_samples
from s1jax.evaluate.run import write_samples
from s1jax.results.samples import row_key
from s1jax.runtime import jsonl
from s1jax.runtime.endpoint import Endpoint, EndpointLimits, Failure, Prompt
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types
from s1jax.runtime.lock import Lock
from s1jax.runtime.precision import DType
from s1jax.runtime.processes import from_first_process
from s1jax.runtime.progress import progress
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig

logger = logging.getLogger("data_tools.curation")

VERSION = 1
_UNKNOWN = "unknown"
"""Stands for the answer of a question without one: an evaluation needs some."""
_ROOM = 64
"""More tokens than delimiters and the wrap-up need beside question, thinking and answer."""


@dataclass(frozen=True)
class TracesConfig:
    """Which model writes traces, and how."""

    model: InputPath = ""
    """Model that answers the questions: a directory, a hub id, or one of our own checkpoints."""
    endpoint: str = ""
    """Address of a model that answers instead, such as http://localhost:8000/v1. It speaks the OpenAI protocol. OPENAI_API_KEY is sent
    along."""
    endpoint_model: str = ""
    """Name of that model."""
    limits: EndpointLimits = field(default_factory=EndpointLimits)
    """How hard the endpoint is worked, and what it costs."""
    replace: bool = False
    """Ask about all rows, also about those that have a trace."""
    verify: bool = True
    """Keep only an answer that agrees with the reference. Otherwise the first answer that ends is kept, right or wrong, as in the paper."""
    num_samples: int = 4
    """Answers per question. The first one that agrees with the reference is kept."""
    temperature: float = 0.7
    """Temperature of the answers; 0 is greedy, and needs `num_samples` 1."""
    max_thinking_tokens: int = 16384
    """Thinking budget. A trace that reaches it is not kept. The endpoint's limit is this and `max_answer_tokens` together."""
    max_answer_tokens: int = 2048
    """Longest answer. One that reaches it is not kept."""
    num_ignore: int = 0
    """How many attempts to end thinking are replaced by `ignore_text`. Not with an endpoint."""
    ignore_text: str = "Wait"
    """Text that replaces an attempt to end thinking."""
    thinking_format: str = AUTO
    """What opens and ends thinking, as in `evaluate.py`. none: the model answers without thinking, and its answer is the trace."""
    prompt_suffix: str = ""
    """Text behind each question, after a blank line."""
    system_prompt: str = ""
    """System prompt. If empty, the chat template writes its own, or none."""
    dtype: DType = "bfloat16"
    """Dtype of weights, cache and compute."""
    num_rows: int = 64
    """Largest number of answers that are decoded together."""
    seed: int = 0
    """Seed of the random draws. An endpoint gets the seed plus the index of the sample, and may ignore it."""
    mesh: MeshConfig = DECODING_MESH
    """Mesh axes, as in `evaluate.py`."""

    def __post_init__(self) -> None:
        check_types(self)
        check_num_samples(self.num_samples, self.condition)
        if self.model and self.endpoint:
            raise UserError("traces has both a model and an endpoint: give one of them")
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise UserError("traces: endpoint and endpoint_model belong together: give both or neither")
        if self.endpoint and (self.num_ignore or self.thinking_format != AUTO):
            raise UserError("traces: num_ignore and thinking_format have no effect with an endpoint: leave them out")

    @property
    def condition(self) -> Condition:
        """The condition under which our engine answers."""
        names = ("max_thinking_tokens", "max_answer_tokens", "num_ignore", "ignore_text", "temperature", "dtype",
                 "thinking_format", "prompt_suffix", "system_prompt")  # fmt: skip
        return Condition(**{name: getattr(self, name) for name in names})

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of a request to an endpoint."""
        seed = {"seed": self.seed} if self.temperature else {}
        return {"temperature": self.temperature, "max_tokens": self.max_thinking_tokens + self.max_answer_tokens} | seed


class _Question(NamedTuple):
    """What a model is asked about a row."""

    problem_id: str
    """A hash of the question and of the answer that its reference states: an edited reference makes another problem."""
    question: str
    answer: str


_Asked = dict[int, _Question]
"""The question of each row that needs a trace and has a reference, by the number of the row."""


class _Answers(NamedTuple):
    """What came back."""

    file: Path
    places: dict[int, list[int]]
    """For each row where its attempts begin in the file, in the order of their indices."""
    faults: dict[int, tuple[str, str | None]]
    """Reason and detail for rows of which not every attempt could be made."""


def stage(config: TracesConfig, calls: Path) -> Stage:
    """Return the stage, which keeps answers in the folder `calls`. It replaces `thinking` and `answer`, and adds `correct`.

    Raises UserError if the model is not found, or if its context has no room for a question.
    """
    settings: dict[str, Any] = {
        "replace": config.replace, "verify": config.verify, "num_samples": config.num_samples,
    }  # fmt: skip
    if config.model:
        source = resolve_source(config.model, weights=False)
        if _room(config, source) < 1:
            raise UserError(
                f"traces: max_thinking_tokens {config.max_thinking_tokens} and max_answer_tokens {config.max_answer_tokens} leave no room "
                f"for a question in the model's context of {source.model_config().context_length} tokens: lower one of them"
            )
        models = {"model": source.fingerprint, "tokenizer": source.tokenizer_fingerprint}
        settings |= models | {"condition": asdict(config.condition), "seed": config.seed if config.temperature else 0}
    elif config.endpoint:
        texts = {"prompt_suffix": config.prompt_suffix, "system_prompt": config.system_prompt}
        settings |= {"model": config.endpoint_model, "sampling": config.sampling} | texts
    else:
        raise UserError("the stage traces needs --traces.model or --traces.endpoint. Or leave the stage out")
    return Stage("traces", VERSION, settings, partial(_run, config, calls))


def _run(config: TracesConfig, calls: Path, rows: Rows) -> Iterable[pa.Table]:
    needy = _needy(config, rows)
    if not any(needy):
        # Without `thinking` and `answer`, those of the stages before count.
        return (_untouched(rows.part(i, ())) for i in range(rows.num_parts))
    asked, faults = _questions(config, rows, needy)
    ask = _ask_endpoint if config.endpoint else _ask_engine
    answers = ask(config, calls, asked) if asked else _Answers(calls, {}, {})
    return _verdicts(config, rows, needy, answers._replace(faults=answers.faults | faults))


def _untouched(rows: pa.Table) -> pa.Table:
    return verdicts(rows, [None] * len(rows), correct=pa.nulls(len(rows), pa.bool_()))


def _needy(config: TracesConfig, rows: Rows) -> list[list[int]]:
    """Return the numbers of the rows that need a trace, for each part."""
    if not (config.model or config.endpoint):
        return [[] for _ in range(rows.num_parts)]
    parts = (rows.part(i, ("thinking",)) for i in range(rows.num_parts))
    if config.replace:
        return [part["row"].to_pylist() for part in parts]
    return [part.filter(pc.equal(pc.utf8_trim_whitespace(part["thinking"]), ""))["row"].to_pylist() for part in parts]


def _questions(
    config: TracesConfig, rows: Rows, needy: list[list[int]]
) -> tuple[_Asked, dict[int, tuple[str, str | None]]]:
    """Return the questions to ask, and reason and detail of the rows that cannot be asked about."""
    misfit = _misfit(config)
    asked: _Asked = {}
    faults: dict[int, tuple[str, str | None]] = {}
    for index, numbers in enumerate(needy):
        wanted = set(numbers)
        for row in rows.part(index, ("id", "question", "reference")).to_pylist() if wanted else ():
            if row["row"] not in wanted:
                continue
            # Several readings: the last one is the answer of the problem. The choice among attempts knows them all.
            stated = [answer for answer in stated_answers(row["reference"]) if answer.strip()]
            if not stated and not config.verify:
                stated = [_UNKNOWN]
            if not stated:
                faults[row["row"]] = NO_REFERENCE, None
            elif (detail := misfit(row["question"])) is not None:
                faults[row["row"]] = NO_ROOM, detail
            else:
                content = json.dumps([row["id"], stated[-1]])
                problem_id = hashlib.sha256(content.encode()).hexdigest()[:16]
                asked[row["row"]] = _Question(problem_id, row["question"], stated[-1])
    return asked, faults


def _misfit(config: TracesConfig) -> Callable[[str], str | None]:
    """Return a function that says why our model has no room for a question; it returns None for others, and for all with an endpoint."""
    if not config.model:
        return lambda question: None
    source = resolve_source(config.model, weights=False)
    chat = ChatFormat.of(load_tokenizer(source), config.thinking_format, config.system_prompt, config.prompt_suffix)
    room = _room(config, source)

    def misfit(question: str) -> str | None:
        length = len(chat.encode_chat(question))
        return f"{length} tokens, and there is room for {room}" if length > room else None

    return misfit


def _room(config: TracesConfig, source: Source) -> int:
    """Return the longest prompt, in tokens, for which our model has room."""
    return source.model_config().context_length - config.max_thinking_tokens - config.max_answer_tokens - _ROOM


def _ask_engine(config: TracesConfig, calls: Path, asked: _Asked) -> _Answers:
    """Let our engine answer what its file of sample rows lacks."""
    problems = {question.problem_id: question for question in asked.values()}
    benchmark = calls / "traces-problems.jsonl"
    lines = [dict(id=q.problem_id, question=q.question, answer=q.answer) for q in problems.values()]
    from_first_process(lambda: jsonl.write(benchmark, lines))
    decoding = DecodingConfig(
        model=config.model,
        benchmark=str(benchmark),
        output=str(calls / "traces-samples.jsonl"),
        seed=config.seed,
        num_rows=config.num_rows,
        mesh=config.mesh,
    )
    output, keys = write_samples(decoding, [config.condition], config.num_samples)
    # The file may hold answers of other configs, too.
    found: dict[str, dict[int, int]] = {}
    for begin, _, row in jsonl.places(output):
        if row["problem_id"] in problems and row_key(row | {"int8": tuple(row["int8"])}) in keys:
            found.setdefault(row["problem_id"], {})[row["sample_index"]] = begin
    places = {number: [found[q.problem_id][i] for i in range(config.num_samples)] for number, q in asked.items()}
    return _Answers(output, places, {})


def _ask_endpoint(config: TracesConfig, calls: Path, asked: _Asked) -> _Answers:
    """Let the endpoint answer what its file of replies lacks. In a run of several processes the first one asks."""
    file = calls / "traces-replies.jsonl"
    with Lock(file):
        return from_first_process(partial(_ask_all, config, file, asked))


def _ask_all(config: TracesConfig, file: Path, asked: _Asked) -> _Answers:
    def prompt(question: str, sample: int) -> Prompt:
        text = f"{question.rstrip()}\n\n{config.prompt_suffix}" if config.prompt_suffix else question
        return Prompt(text, config.system_prompt, sample)

    questions = list(dict.fromkeys(question.question for question in asked.values()))
    prompts: Iterator[Prompt] = (prompt(question, i) for question in questions for i in range(config.num_samples))
    failed: dict[str, Failure] = {}
    with (
        Endpoint(config.endpoint, config.endpoint_model, file, config.limits, config.sampling) as endpoint,
        progress(len(questions) * config.num_samples, "traces", "call") as bar,
    ):
        for index, result in endpoint.ask_all(prompts):
            if isinstance(result, Failure):
                failed.setdefault(questions[index // config.num_samples], result)
            bar.update()
        places = {}
        for number, question in asked.items():
            found = (endpoint.place_of(prompt(question.question, i)) for i in range(config.num_samples))
            places[number] = [place for place in found if place is not None]
    if waiting := [failure for failure in failed.values() if not failure.is_final]:
        raise endpoint.error(
            f"{waiting[0].reason} ({len(waiting)} of {len(questions)} questions wait; run the same command again to ask for these)"
        )
    faults: dict[int, tuple[str, str | None]] = {
        number: (NO_REPLY, failed[question.question].reason)
        for number, question in asked.items()
        if question.question in failed
    }
    return _Answers(file, places, faults)


def _verdicts(config: TracesConfig, rows: Rows, needy: list[list[int]], answers: _Answers) -> Iterator[pa.Table]:
    """Yield the verdicts on each part. Worker processes read the attempts and grade them."""
    parts = [
        PartOfPool(
            sources=[(result.part(index), result.columns) for result in rows.results],
            places={number: answers.places.get(number, []) for number in numbers},
            faults={number: answers.faults[number] for number in numbers if number in answers.faults},
        )
        for index, numbers in enumerate(needy)
    ]
    yield from rows.workers.map(partial(choose_part, answers.file, bool(config.endpoint), config.verify), parts)
