"""The stage difficulty of curation: a row is rejected if a model solves its question already (paper, section 2.2).

Each model answers each question once. Its answers are the rows of an evaluation (`s1jax/evaluate/run.py`) in the folder of calls, one file
per model. So the work resumes, spreads over hosts and is never done twice.

A row is solved if the answer states what the reference states, by any reading of the two (`stated_answers`). A judge may decide where
the rules find no reading that agrees. A row without a reference is kept, and no model is asked: nobody could tell whether it is solved.
The rule `reference` of the stage quality rejects such rows.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import tyro

from data_tools.curation.problems import AskedQuestion, prompt_room, write_problems
from data_tools.curation.quality import agrees, stated_answers
from data_tools.curation.stage import Rows, Stage, in_parts, verdicts
from s1jax.checkpoint.source import resolve_source
from s1jax.data.condition import Condition
from s1jax.data.thinking_format import NONE
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.regrade import ask_judge
from s1jax.evaluate.run import write_samples
from s1jax.grading.judge import JUDGE_LIMITS, Judge
from s1jax.grading.letters import choice_letter
from s1jax.grading.pool import Grader
from s1jax.results.samples import SampleRow, read_samples, row_key
from s1jax.runtime.command import counted
from s1jax.runtime.endpoint import EndpointLimits
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types
from s1jax.runtime.files import short_path
from s1jax.runtime.lock import Lock
from s1jax.runtime.processes import everywhere, from_first_process
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig

logger = logging.getLogger("data_tools.curation")

VERSION = 1


@dataclass(frozen=True)
class DifficultyConfig:
    """Which models must fail. The paper's are Qwen2.5-7B-Instruct and Qwen2.5-32B-Instruct."""

    models: tuple[InputPath, ...] = ()
    """Directories, hub ids (ID@REVISION) or our own checkpoints. A row that any of them solves is rejected."""
    condition: Annotated[Condition, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Condition(0, max_answer_tokens=4096, thinking_format=NONE)
    )
    """How they answer. By default they do so at once, without thinking, and greedily. The paper's temperature is 0.05."""
    judge: str = ""
    """Address of a language model that compares the answers that the rules do not find equal, such as http://localhost:8000/v1. It speaks
    the OpenAI protocol; OPENAI_API_KEY is sent along. Default: the rules alone."""
    judge_model: str = ""
    """Name of that model."""
    limits: EndpointLimits = JUDGE_LIMITS
    """How hard the judge is worked, and what it costs."""
    seed: int = 0
    """Seed of the random draws at a temperature above 0."""
    num_rows: int = 64
    """Largest number of sequences that are decoded together."""
    mesh: MeshConfig = DECODING_MESH
    """Mesh axes, as in evaluation."""

    def __post_init__(self) -> None:
        check_types(self)
        if len(set(self.models)) < len(self.models):
            raise UserError(f"models {', '.join(self.models)}: one is there twice")
        if bool(self.judge) != bool(self.judge_model):
            raise UserError("judge and judge_model belong together: give both or neither")
        DecodingConfig("model", "benchmark", "output", seed=self.seed, num_rows=self.num_rows)


def stage(config: DifficultyConfig, calls: Path) -> Stage:
    """Return the stage. It adds `solved_by`. `calls` is the folder for the models' answers.

    Raises UserError if no model is given, or if one is not found.
    """
    if not config.models:
        raise UserError(
            "the stage difficulty needs --difficulty.models: a row that one of them solves is rejected. Or leave the stage out"
        )
    sources = [resolve_source(model, weights=False) for model in config.models]
    settings = {
        "models": [
            {"name": short_path(model), "weights": source.fingerprint, "tokenizer": source.tokenizer_fingerprint}
            for model, source in zip(config.models, sources, strict=True)
        ],
        "condition": asdict(config.condition),
        "seed": config.seed if config.condition.temperature else 0,
        "judge_model": config.judge_model,
    }
    return Stage("difficulty", VERSION, settings, partial(_run, config, calls))


def _run(config: DifficultyConfig, calls: Path, rows: Rows) -> Iterator[pa.Table]:
    table = rows.table("question", "reference")
    asked = [AskedQuestion.of(row["question"], row["reference"]) for row in table.to_pylist()]
    if num_unknown := sum(not question.has_gold for question in asked):
        logger.info("difficulty: the model is not asked about %s without a reference", counted(num_unknown, "row"))
    questions = {question.problem_id: question for question in asked if question.has_gold}
    reasons: dict[str, str] = {}
    for model in config.models:
        for problem_id in everywhere(partial(_too_long, config, model, questions)):
            reasons.setdefault(problem_id, f"the question is too long for {short_path(model)}")
    fitting = {problem_id: question for problem_id, question in questions.items() if problem_id not in reasons}
    solvers: dict[str, list[str]] = {problem_id: [] for problem_id in questions}
    if fitting:
        from_first_process(lambda: write_problems(calls / "difficulty.jsonl", fitting.values()))
        for model in config.models:
            for problem_id in _solved(config, calls, model, fitting):
                solvers[problem_id].append(short_path(model))
    reasons |= {problem_id: f"solved by {', '.join(names)}" for problem_id, names in solvers.items() if names}
    ids = [question.problem_id for question in asked]
    solved_by = pa.array([", ".join(solvers.get(problem_id, ())) for problem_id in ids], pa.string())
    result = verdicts(table, [reasons.get(problem_id) for problem_id in ids], solved_by=solved_by)
    yield from in_parts(result, rows)


def _too_long(config: DifficultyConfig, model: str, questions: Mapping[str, AskedQuestion]) -> list[str]:
    """Return the ids of the questions that do not fit the context of a model, with thinking and answer."""
    room, length = prompt_room(resolve_source(model, weights=False), config.condition)
    return [i for i, question in questions.items() if length(question.question) > room]


def _solved(config: DifficultyConfig, calls: Path, model: str, questions: Mapping[str, AskedQuestion]) -> list[str]:
    """Return the ids of the questions that a model solves. It is asked what it has not answered yet."""
    name = re.sub(r"[^\w.-]+", "-", short_path(model)).strip("-")
    decoding = DecodingConfig(
        model,
        str(calls / "difficulty.jsonl"),
        str(calls / f"difficulty-{name}.jsonl"),
        seed=config.seed,
        num_rows=config.num_rows,
        mesh=config.mesh,
    )
    output, asked = write_samples(decoding, [config.condition])
    replies = calls / "difficulty.judge.jsonl"

    def grade() -> list[str]:
        samples = [row for row in read_samples(output) if row_key(row) in asked]
        solved = _agreeing(samples, questions)
        if config.judge:
            solved |= _judged_equal(
                config, replies, [row for row in samples if row["problem_id"] not in solved], questions
            )
        return [problem_id for problem_id in questions if problem_id in solved]

    with Lock(replies):
        return from_first_process(grade)


def _agreeing(samples: Sequence[SampleRow], questions: Mapping[str, AskedQuestion]) -> set[str]:
    """Return the ids of the problems whose answers state what their references state."""
    num_threads = os.cpu_count() or 1
    with Grader(num_threads) as grader, ThreadPoolExecutor(num_threads) as threads:

        def is_solved(row: SampleRow) -> bool:
            return row["correct"] or agrees(row["answer_text"], questions[row["problem_id"]].reference, grader)

        return {
            row["problem_id"] for row, solved in zip(samples, threads.map(is_solved, samples), strict=True) if solved
        }


def _judged_equal(
    config: DifficultyConfig, replies: Path, samples: Sequence[SampleRow], questions: Mapping[str, AskedQuestion]
) -> set[str]:
    """Return the ids of the problems whose answers the judge finds equal to what their references state."""
    pairs = {}
    for row in samples:
        question, stated = questions[row["problem_id"]], stated_answers(row["answer_text"])
        # The rules decide about letters.
        if stated and choice_letter(question.gold) is None:
            pairs[row["problem_id"]] = (question.question, stated[-1], question.gold)
    with Judge(config.judge, config.judge_model, replies, config.limits) as judge:
        decisions = ask_judge(judge, pairs.values())
    return {problem_id for problem_id, pair in pairs.items() if decisions[pair]}
