"""What a run decodes: its inputs, its conditions, and which of them share a thinking trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import tyro

from s1jax.data.condition import Condition, Limits, TraceSettings, check_integer
from s1jax.data.encoder import check_text
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, OutputPath, check_types
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig, ShardingRules


@dataclass(frozen=True)
class DecodingConfig:
    """The inputs and the output of a run, and how devices share its work. What can change an answer is in the `Condition`."""

    model: InputPath
    """Hugging Face directory or hub id (ID@REVISION: a branch, tag or commit), or one of our own checkpoints."""
    benchmark: InputPath
    """aime24, aime25, math500, gpqa_diamond, gsm8k, a JSONL or Parquet file of questions and answers, or a hub dataset (ORG/NAME)."""
    output: OutputPath
    """JSONL file of sample rows. It may hold other models, benchmarks and conditions. Rows that it has are not decoded again."""
    columns: tuple[str, ...] = ()
    """Which columns of the benchmark are its question, answer, id and choices, if they have other names: question=prompt answer=target.
    A plus joins columns: question=context+question, choices=a+b+c. If the answer is a column of the choices, these are shuffled."""
    subset: str | None = None
    """Subset (configuration) of a hub dataset."""
    split: str | None = None
    """Split of a hub dataset. Default: test."""
    limit: int | None = None
    """Number of problems, counted from the first. Default: all."""
    seed: int = 0
    """Seed of the random draws at a temperature above 0."""
    record_tokens: bool = False
    """Record each token of an answer with its log-probabilities, in a file beside the output: OUTPUT.tokens, 11 bytes per token."""
    num_rows: int = 64
    """Largest number of sequences that are decoded together. A finished one makes room for the next."""
    attention: CacheBackend | None = None
    """Backend of attention over caches. Default: `pallas` on a GPU, `xla` elsewhere. `xla` runs on every device."""
    mesh: MeshConfig = DECODING_MESH
    """Mesh axes. By default as many devices split each layer (tensor) as its key/value heads allow; groups of them share the sequences."""
    rules: ShardingRules = field(default_factory=ShardingRules)
    """Which mesh axes split which dimension."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.output:
            raise UserError("output is empty; name the file of sample rows")
        if isinstance(self.model, str):  # it may be missing: the command line gives it
            check_text("the name of the model", self.model)
        for name in ("num_rows", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        check_integer("seed", self.seed)


@dataclass(frozen=True)
class EvaluateConfig:
    """One condition on one benchmark."""

    # Without a name, fields have flags without a prefix, so that a setting has one flag in all commands.
    decoding: Annotated[DecodingConfig, tyro.conf.arg(name="")]
    condition: Annotated[Condition, tyro.conf.arg(name="")]
    num_samples: int = 1
    """Samples per problem. More than one needs a temperature above 0."""

    def __post_init__(self) -> None:
        check_types(self)
        check_num_samples(self.num_samples, self.condition)


@dataclass(frozen=True)
class Trace:
    """Conditions whose answers are decoded from one thinking trace, or from one series of traces under rejection sampling.

    They differ only in their limits, and in being forced: methods that ask for the same in the prompt. Each ignore text has a trace of its
    own.
    """

    conditions: tuple[Condition, ...]

    def __post_init__(self) -> None:
        if any(_shared(condition) != _shared(self.conditions[0]) for condition in self.conditions):
            raise ValueError("the conditions of one trace may differ only in their limits, and in being forced")

    @property
    def is_series(self) -> bool:
        """Whether traces are drawn until one is short enough."""
        return self.conditions[0].method == "rejection_sampling"

    @property
    def condition(self) -> Condition:
        """The condition of the trace itself: each limit is the largest of all conditions."""
        largest = Limits(*(max(values) for values in zip(*(c.limits for c in self.conditions), strict=True)))
        if self.is_series:
            return replace(self.conditions[0], **largest._asdict())
        # Its prompt is encoded already. Only budget forcing accepts all limits.
        forcing = replace(self.conditions[0], method="budget_forcing", requested="")
        return replace(forcing, **largest._asdict())


def traces_of(conditions: Iterable[Condition]) -> list[Trace]:
    """Return the fewest traces that serve all conditions, in the order of their first conditions."""
    traces: dict[tuple[Any, ...], list[Condition]] = {}
    for condition in conditions:
        traces.setdefault(_shared(condition), []).append(condition)
    return [Trace(tuple(group)) for group in traces.values()]


def _shared(condition: Condition) -> tuple[Any, ...]:
    """Return what the conditions of one trace have in common."""
    settings = tuple(getattr(condition, field.name) for field in fields(TraceSettings))
    return (
        *settings,
        condition.ignore_text,
        condition.prompt,
        condition.method == "rejection_sampling",
        condition.max_tries,
    )


def check_num_samples(num_samples: int, condition: TraceSettings) -> None:
    """Raise UserError if so many samples per problem make no sense under this condition."""
    check_integer("num_samples", num_samples, least=1)
    if num_samples > 1 and condition.temperature == 0:
        raise UserError(f"num_samples {num_samples} at temperature 0 would be copies of one answer")
