"""Decoding conditions: what is asked of a model, and how a run decodes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from s1jax.data.condition import Condition, Limits, check_integer
from s1jax.ops.attention import CacheBackend, check_cache_backend
from s1jax.runtime.errors import UserError
from s1jax.runtime.precision import DType, Int8
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig, ShardingRules


@dataclass(frozen=True)
class Point:
    """One decoding condition. Counts are in tokens."""

    max_thinking_tokens: int
    """Thinking budget; at the limit the answer is forced. 0: no thinking."""
    min_thinking_tokens: int = 0
    """Thinking may not end before."""
    num_ignore: int = 0
    """How often an attempt to end thinking is replaced by `ignore_text`."""
    ignore_text: str = "Wait"
    """What replaces it; when empty, another token is drawn instead."""
    temperature: float = 0.0
    """0 is greedy."""
    num_samples: int = 1
    """Samples per problem; more than one needs a temperature."""

    def __post_init__(self):
        Condition(*self.limits, ignore_text=self.ignore_text, temperature=self.temperature)
        check_integer("num_samples", self.num_samples, least=1)
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError(f"num_samples {self.num_samples} at temperature 0 would be copies of one answer")

    @property
    def limits(self) -> Limits:
        """What ends the thinking."""
        return Limits(self.max_thinking_tokens, self.min_thinking_tokens, self.num_ignore)


@dataclass(frozen=True)
class DecodingConfig:
    """What all points of a run share: the model, the problems and how they are decoded."""

    model: str
    """Hugging Face directory or hub id (ID@REVISION: a branch, tag or commit), or one of our own checkpoints."""
    benchmark: str
    """aime24, aime25, math500, gpqa_diamond, gsm8k, or a JSONL file with a question and an answer a line."""
    output: str
    """JSONL file of sample rows; rows that are there already are not decoded again."""
    limit: int | None = None
    """Number of problems, from the first; default: all."""
    max_answer_tokens: int = 512
    """Longest answer, in tokens."""
    top_k: int = 0
    """Keep the k likeliest tokens, 0 all; needs a temperature above 0."""
    top_p: float = 1.0
    """Keep the likeliest tokens until their probability reaches p; needs a temperature above 0."""
    min_p: float = 0.0
    """Drop tokens less likely than p times the likeliest; needs a temperature above 0."""
    seed: int = 0
    """What samples are drawn from."""
    num_rows: int = 64
    """Rows decoded together, at most; a finished one is refilled."""
    dtype: DType = "bfloat16"
    """Dtype of weights, cache and compute."""
    int8: tuple[Int8, ...] = ()
    """What is stored in 8 bits instead: `weights`, `cache` or both."""
    attention: CacheBackend | None = None
    """What computes attention over caches; default: `pallas` on a GPU, elsewhere `xla`, for which any card's shared memory will do."""
    mesh: MeshConfig = DECODING_MESH
    """How devices share the work; by default as many as its key/value heads allow split each layer (tensor), and such groups the rows."""
    rules: ShardingRules = field(default_factory=ShardingRules)
    """Which mesh axes split which dimension."""

    def __post_init__(self):
        if not self.output:
            raise UserError("output is empty; name the file of sample rows")
        for name in ("max_answer_tokens", "num_rows", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        check_integer("max_answer_tokens", self.max_answer_tokens)
        for name in ("top_k", "seed"):
            check_integer(name, getattr(self, name))
        Condition(0, top_p=self.top_p, min_p=self.min_p, int8=self.int8)
        check_cache_backend(self.attention)


@dataclass(frozen=True)
class EvaluateConfig:
    """One point on one benchmark."""

    decoding: DecodingConfig
    point: Point


@dataclass(frozen=True)
class Trace:
    """Points whose answers are decoded from one thinking trace: they differ only in `Limits`."""

    points: tuple[Point, ...]

    @property
    def limits(self) -> Limits:
        """The lowest limits that are above those of every point."""
        return Limits(*(max(values) for values in zip(*(point.limits for point in self.points), strict=True)))
