"""The stage traces of curation: questions without a trace -> a model's own traces, kept if the answer agrees with the reference.

The model is one of ours: then its answers are sample rows, as evaluation writes them. Or it runs behind an endpoint: then its replies are
rows of `runtime/endpoint.py`. Both files are in the folder `calls` and outlive the stage. So no answered question is asked again if an
earlier stage changes, or if a run is killed.

If the endpoint does not answer some questions, the stage ends with an error, and the next run asks about these alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from data_tools.curation.attempts import NO_REFERENCE, NO_REPLY, NO_ROOM, PartOfPool, choose_part
from data_tools.curation.problems import AskedQuestion, prompt_room, write_problems
from data_tools.curation.stage import Rows, Stage, verdicts
from s1jax.checkpoint.source import resolve_source
from s1jax.data.condition import Condition
from s1jax.evaluate.conditions import DecodingConfig, check_num_samples
from s1jax.evaluate.run import write_samples
from s1jax.results.samples import row_key
from s1jax.runtime import jsonl
from s1jax.runtime.chat_protocol import Prompt
from s1jax.runtime.endpoint import Endpoint, EndpointLimits, Failure
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types
from s1jax.runtime.lock import Lock
from s1jax.runtime.processes import from_first_process
from s1jax.runtime.progress import progress
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig

VERSION = 1
_SENT = ("max_thinking_tokens", "max_answer_tokens", "temperature", "top_p", "prompt_suffix", "system_prompt")
"""Fields of the condition that an endpoint is told. Its limit is both limits together."""


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
    condition: Annotated[Condition, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Condition(16384, max_answer_tokens=2048, temperature=0.7)
    )
    """How the model answers. A trace or an answer that reaches its limit is not kept. Under the thinking format none, the answer is the
    trace."""
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
        untold = [
            f.name for f in fields(Condition) if f.name not in _SENT and f.default != getattr(self.condition, f.name)
        ]
        if self.endpoint and untold:
            raise UserError(f"traces: {untold[0]} has no effect with an endpoint: leave it out")

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of a request to an endpoint."""
        condition = self.condition
        told: dict[str, Any] = {"temperature": condition.temperature}
        if condition.top_p < 1:
            told["top_p"] = condition.top_p
        told["max_tokens"] = condition.max_thinking_tokens + condition.max_answer_tokens
        return told | ({"seed": self.seed} if condition.temperature else {})


_Asked = dict[int, AskedQuestion]
"""The question of each row that needs a trace, by the number of the row."""


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
        if prompt_room(source, config.condition)[0] < 1:
            raise UserError(
                f"traces: max_thinking_tokens {config.condition.max_thinking_tokens} and max_answer_tokens "
                f"{config.condition.max_answer_tokens} leave no room for a question in the model's context of "
                f"{source.model_config().context_length} tokens: lower one of them"
            )
        models = {"model": source.fingerprint, "tokenizer": source.tokenizer_fingerprint}
        settings |= models | {
            "condition": asdict(config.condition),
            "seed": config.seed if config.condition.temperature else 0,
        }
    elif config.endpoint:
        texts = {name: getattr(config.condition, name) for name in ("prompt_suffix", "system_prompt")}
        settings |= {"model": config.endpoint_model, "sampling": config.sampling} | texts
    else:
        raise UserError("the stage traces needs --traces.model or --traces.endpoint. Or leave the stage out")
    return Stage("traces", VERSION, settings, partial(_run, config, calls))


def _run(config: TracesConfig, calls: Path, rows: Rows) -> Iterable[pa.Table]:
    to_ask = _rows_to_ask(config, rows)
    if not any(to_ask):
        # Without `thinking` and `answer`, those of the stages before count.
        return (_untouched(rows.part(i, ())) for i in range(rows.num_parts))
    asked, faults = _questions(config, rows, to_ask)
    ask = _ask_endpoint if config.endpoint else _ask_engine
    answers = ask(config, calls, asked) if asked else _Answers(calls, {}, {})
    return _verdicts(config, rows, to_ask, answers._replace(faults=answers.faults | faults))


def _untouched(rows: pa.Table) -> pa.Table:
    return verdicts(rows, [None] * len(rows), correct=pa.nulls(len(rows), pa.bool_()))


def _rows_to_ask(config: TracesConfig, rows: Rows) -> list[list[int]]:
    """Return the numbers of the rows that need a trace, for each part."""
    parts = (rows.part(i, ("thinking",)) for i in range(rows.num_parts))
    if config.replace:
        return [part["row"].to_pylist() for part in parts]
    return [part.filter(pc.equal(pc.utf8_trim_whitespace(part["thinking"]), ""))["row"].to_pylist() for part in parts]


def _questions(
    config: TracesConfig, rows: Rows, to_ask: list[list[int]]
) -> tuple[_Asked, dict[int, tuple[str, str | None]]]:
    """Return the questions to ask, and reason and detail of the rows that cannot be asked about."""
    room, length = (
        prompt_room(resolve_source(config.model, weights=False), config.condition) if config.model else (0, None)
    )
    asked: _Asked = {}
    faults: dict[int, tuple[str, str | None]] = {}
    for index, numbers in enumerate(to_ask):
        wanted = set(numbers)
        for row in rows.part(index, ("question", "reference")).to_pylist() if wanted else ():
            if row["row"] not in wanted:
                continue
            question = AskedQuestion.of(row["question"], row["reference"])
            if config.verify and not question.has_gold:
                faults[row["row"]] = NO_REFERENCE, None
            elif length is not None and (num_tokens := length(question.question)) > room:
                faults[row["row"]] = NO_ROOM, f"{num_tokens} tokens, and there is room for {room}"
            else:
                asked[row["row"]] = question
    return asked, faults


def _ask_engine(config: TracesConfig, calls: Path, asked: _Asked) -> _Answers:
    """Let our engine answer what its file of sample rows lacks."""
    problems = {question.problem_id: question for question in asked.values()}
    benchmark = calls / "traces-problems.jsonl"
    from_first_process(lambda: write_problems(benchmark, problems.values()))
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
        suffix = config.condition.prompt_suffix
        text = f"{question.rstrip()}\n\n{suffix}" if suffix else question
        return Prompt(text, config.condition.system_prompt, sample)

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


def _verdicts(config: TracesConfig, rows: Rows, to_ask: list[list[int]], answers: _Answers) -> Iterator[pa.Table]:
    """Yield the verdicts on each part. Worker processes read the attempts and grade them."""
    parts = [
        PartOfPool(
            sources=[(result.part(index), result.columns) for result in rows.results],
            places={number: answers.places.get(number, []) for number in numbers},
            faults={number: answers.faults[number] for number in numbers if number in answers.faults},
        )
        for index, numbers in enumerate(to_ask)
    ]
    yield from rows.workers.map(partial(choose_part, answers.file, bool(config.endpoint), config.verify), parts)
