"""The stage domains of curation: the question of a row -> the label of a taxonomy that fits it best.

With a model, each label x of a question q has the score

    log P(x | q, instruction) - log P(x | instruction)

and the largest score wins; of equal ones, the first in the taxonomy. This is the domain-conditional pointwise mutual information of
Holtzman et al. 2021 (arXiv 2104.08315). Without the second term, names that are likely anywhere would win too often.

Each question is scored alone, with all labels side by side, so that no other question can change its scores, not even by rounding. Its
scores are appended to `domains.jsonl` in the folder of calls as they come, and no question in that file is scored again.

With an endpoint, the model reads all labels and replies with one. Replies stay in `domains-replies.jsonl`. A row whose reply is no label is
rejected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa

from data_tools.curation.stage import Rows, Stage, in_parts, verdicts
from data_tools.curation.taxonomy import MSC, Label, read_taxonomy
from s1jax.checkpoint.source import load_tokenizer, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.thinking_format import NONE
from s1jax.decode.engine import Engine, load_engine
from s1jax.runtime import jsonl
from s1jax.runtime.chat_protocol import Prompt, Reply
from s1jax.runtime.endpoint import Endpoint, EndpointLimits
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types
from s1jax.runtime.files import short_path
from s1jax.runtime.lock import Lock
from s1jax.runtime.precision import DType
from s1jax.runtime.processes import everywhere, from_first_process, is_first_process
from s1jax.runtime.progress import progress
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig

VERSION = 1
INSTRUCTION = "Which field is this question about? Answer with the name of the field alone."
"""Stands behind the question, after a blank line."""
_PROMPT = """These are fields:
{fields}

Which of these fields is the following question about? Do not answer the question itself. Give a short reason. Then write a last line that
is the name of the field alone.

Question:
{question}"""
_DIGITS = 4
"""Decimals of a score in the file. Scores that differ by less are equal."""


@dataclass(frozen=True)
class DomainsConfig:
    """Who says which domain a question belongs to, and which domains there are."""

    model: InputPath = ""
    """Directory, hub id (ID@REVISION) or our own checkpoint of a model that scores the names of all domains."""
    endpoint: str = ""
    """In place of `model`: the address of a language model that names a domain, such as http://localhost:8000/v1."""
    endpoint_model: str = ""
    """Name of that model."""
    limits: EndpointLimits = field(default_factory=EndpointLimits)
    """How hard the endpoint is worked, and what it costs."""
    taxonomy: InputPath = MSC
    """The domains: msc, or a file of labels. A .json or .jsonl file has objects with a `name` and perhaps a `code` and `topics`. Any other
    text file has a name per line, perhaps with a code and a tab before it."""
    dtype: DType = "bfloat16"
    """Dtype of weights, cache and compute."""
    mesh: MeshConfig = DECODING_MESH
    """Mesh axes, as in evaluation."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.model and self.endpoint:
            raise UserError("domains has a model and an endpoint: give one of them")
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise UserError("endpoint and endpoint_model belong together: give both or neither")


def stage(config: DomainsConfig, calls: Path) -> Stage:
    """Return the stage. It replaces `domain` by the name of a label.

    `calls` is the folder for the scores and replies. Raises UserError if there is neither model nor endpoint, if the model is not found,
    and for a bad taxonomy.
    """
    labels = read_taxonomy(config.taxonomy)
    if config.endpoint:
        asked = {"labels": [asdict(label) for label in labels], "endpoint_model": config.endpoint_model}
        return Stage("domains", VERSION, asked, partial(_ask_endpoint, config, labels, calls))
    if not config.model:
        raise UserError("the stage domains needs --domains.model or --domains.endpoint. Or leave the stage out")
    source = resolve_source(config.model, weights=False)
    names = [label.name for label in labels]
    settings = {
        "labels": names,
        "weights": source.fingerprint,
        "tokenizer": source.tokenizer_fingerprint,
        "dtype": config.dtype,
    }
    return Stage("domains", VERSION, settings, partial(_score, config, names, settings, calls))


# With a model


def _score(
    config: DomainsConfig, names: Sequence[str], settings: Mapping[str, object], calls: Path, rows: Rows
) -> Iterator[pa.Table]:
    table = rows.table("question")
    questions = table["question"].to_pylist()
    scored_by = json.dumps([VERSION, INSTRUCTION, settings], sort_keys=True)
    keys = {question: hashlib.sha256(f"{scored_by} {question}".encode()).hexdigest()[:16] for question in questions}
    file = calls / "domains.jsonl"
    with Lock(file):
        known = from_first_process(lambda: read_domains(file))
        missing = [question for question, key in keys.items() if key not in known]
        too_long: set[str] = set()
        if missing:
            source = resolve_source(config.model)
            chat = everywhere(lambda: ChatFormat.of(load_tokenizer(source), NONE))
            engine, _ = load_engine(source, config.dtype, config.mesh, chat=chat)
            scorer = Scorer(engine, chat, names)
            with (
                jsonl.Appender(file) as appender,
                progress(
                    len(keys), "domains", "question", initial=len(keys) - len(missing), hidden=not is_first_process()
                ) as bar,
            ):
                for question in missing:
                    if (scores := scorer.score(question)) is None:
                        too_long.add(question)
                    else:
                        known[keys[question]] = names[scores.index(max(scores))]
                        if is_first_process():
                            row = {"key": keys[question], "domain": known[keys[question]], "scores": scores}
                            appender.append([row])
                    bar.update()
    reason = f"the question is too long for {short_path(config.model)}"
    reasons = [reason if question in too_long else None for question in questions]
    domains = [known.get(keys[question], "") for question in questions]
    yield from in_parts(verdicts(table, reasons, domain=pa.array(domains, pa.string())), rows)


class Scorer:
    """Scores all labels of a taxonomy for one question after another."""

    def __init__(self, engine: Engine, chat: ChatFormat, names: Sequence[str]):
        self._engine, self._chat = engine, chat
        self._names = [chat.encode_text(name) for name in names]
        self._room = engine.model.config.context_length + 1 - max(map(len, self._names))  # the last id is not read
        self._without_question = self._log_likelihoods(chat.encode_prompt(INSTRUCTION))

    def score(self, question: str) -> list[float] | None:
        """Return the score of each label, None if the question does not fit the model's context."""
        prompt = self._chat.encode_prompt(f"{question.rstrip()}\n\n{INSTRUCTION}")
        if len(prompt) > self._room:
            return None
        found = self._log_likelihoods(prompt)
        return [round(a - b, _DIGITS) for a, b in zip(found, self._without_question, strict=True)]

    def _log_likelihoods(self, prompt: list[int]) -> list[float]:
        scores = self._engine.score_all([(prompt, name) for name in self._names])
        return [float(score.logprobs.sum(dtype=float)) for score in scores]


def read_domains(file: Path) -> dict[str, str]:
    """Return the domain of each question that a file of scores has, by its key. Raises UserError if the file holds anything else."""
    if not file.exists():
        return {}
    domains = {}
    for number, row in jsonl.read(file):
        if not isinstance(row, dict) or row.keys() != {"key", "domain", "scores"}:
            raise UserError(f"{file}: line {number} is no row of scores: move the file away")
        domains[row["key"]] = row["domain"]
    return domains


# With an endpoint


def _ask_endpoint(config: DomainsConfig, labels: Sequence[Label], calls: Path, rows: Rows) -> Iterator[pa.Table]:
    table = rows.table("question")
    questions = table["question"].to_pylist()
    file = calls / "domains-replies.jsonl"
    with Lock(file):
        replies = from_first_process(partial(_replies, config, labels, file, list(dict.fromkeys(questions))))
    found = {question: named_label(reply, labels) for question, reply in replies.items()}
    domains = [label.name if (label := found[question]) else "" for question in questions]
    reasons = [None if found[question] else "no domain" for question in questions]
    yield from in_parts(verdicts(table, reasons, domain=pa.array(domains, pa.string())), rows)


def _replies(config: DomainsConfig, labels: Sequence[Label], file: Path, questions: Sequence[str]) -> dict[str, str]:
    """Return the reply about each question. Raises UserError if one is missing; a later run asks for that one alone."""
    replies = {}
    prompts = (Prompt(to_prompt(question, labels)) for question in questions)
    with (
        Endpoint(config.endpoint, config.endpoint_model, file, config.limits) as endpoint,
        progress(len(questions), "domains", "call") as bar,
    ):
        for index, reply in endpoint.ask_all(prompts):
            bar.update()
            if isinstance(reply, Reply):
                replies[questions[index]] = reply.text
            elif reply.is_final:  # for example because the question is too long
                replies[questions[index]] = ""
    if num_missing := len(questions) - len(replies):
        raise UserError(
            f"the endpoint did not answer {num_missing} of {len(questions)} questions: run the same command again to ask for these"
        )
    return replies


def to_prompt(question: str, labels: Sequence[Label]) -> str:
    """Return the prompt that asks for the label of a question. The labels stand first, so that a server may keep them in its cache."""
    lines = []
    for label in labels:
        code = f"{label.code}: " if label.code else ""
        topics = f" ({'; '.join(label.topics)})" if label.topics else ""
        lines.append(f"- {code}{label.name}{topics}")
    return _PROMPT.format(fields="\n".join(lines), question=question)


def named_label(reply: str, labels: Sequence[Label]) -> Label | None:
    """Return the label whose name or code, or both, are the last line of a reply; None if it is no label."""
    last = _bare(reply.strip().rpartition("\n")[2])
    for label in labels:
        if last in {
            _bare(text)
            for text in (label.name, label.code, f"{label.code}: {label.name}", f"{label.code} {label.name}")
            if text
        }:
            return label
    return None


def _bare(text: str) -> str:
    return text.strip(" \t*_`\"'.-").casefold()
