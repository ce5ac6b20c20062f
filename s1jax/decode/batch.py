"""Rows that decode together, as the host sees them: which request each serves, and what it has emitted.

`RowBatch` keeps the arrays of `decode.py` on the device and a `Log` per row here; `scheduler.py` decides what is put into a row.

Invariant: the cache has more slots than any row that is in use has steps behind it, so that no row's tokens are overwritten; it grows
before they would be. Where half of it would do, it shrinks, so that short rows do not pay for a long one that is gone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from s1jax.data.condition import Limits
from s1jax.decode.budget import End, Phase, Vocabulary
from s1jax.decode.loop import Prompts, advance, empty_rows, empty_state, start_rows
from s1jax.decode.request import Completion, Request
from s1jax.model.cache import KVCache, resize
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import ShardingRules

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

SMALLEST_CAPACITY = 64


class ReadyModel(Protocol):
    """What rows need of a `scheduler.Decoder`."""

    config: ModelConfig
    params: Params
    rules: ShardingRules
    mesh: jax.sharding.Mesh
    attention: CacheBackend | None
    vocabulary: Vocabulary
    allowed: Bool[Array, " V"]


@dataclass
class Log:
    """What a row has emitted since the prompt."""

    index: int
    """Of its request."""
    tokens: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    """Thinking tokens before each ignored attempt to end thinking."""
    logprobs: list[float] = field(default_factory=list)
    end_logprobs: list[float] = field(default_factory=list)
    num_thinking: int = 0
    num_ignored: int = 0
    num_answer: int = 0
    stopped: bool = False
    phase: Phase = Phase.THINK

    def fork(self, end: End) -> Log:
        """Return the log of a fork that takes over the tokens before `end`."""
        n = end.num_thinking
        return Log(
            self.index, self.tokens[:n], self.forced[:n], [], self.logprobs[:n], self.end_logprobs[:n],
            num_thinking=n, num_ignored=end.num_ignored,
        )  # fmt: skip

    def completion(self) -> Completion:
        """Return the log as a completion."""
        return Completion(
            tuple(self.tokens), tuple(self.forced), self.num_thinking, self.num_ignored, self.num_answer, self.stopped,
            tuple(self.logprobs), tuple(self.end_logprobs),
        )  # fmt: skip


class RowBatch:
    """Rows that decode together, with what the host knows of each."""

    def __init__(self, decoder: ReadyModel, num_rows: int, most_tokens: int, ignore_width: int, scores: bool):
        self.decoder, self.scores = decoder, scores
        self.most_capacity = capacity_for(most_tokens)
        self.logs: list[Log | None] = [None] * num_rows
        self.static = dict(config=decoder.config, rules=decoder.rules)
        self.state = empty_state(
            decoder.vocabulary,
            **self.static,
            num_rows=num_rows,
            capacity=self._capacity_for(0),
            ignore_width=ignore_width,
        )
        self.rows = empty_rows(num_rows, ignore_width)
        self.starts, self.phase = np.zeros(num_rows, bool), np.zeros(num_rows, np.int32)
        self.ages = np.zeros(num_rows, np.int32)
        """Steps since each row began."""
        self.num_thinking, self.last_token = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.int32)

    @property
    def live(self) -> list[int]:
        """Rows that are decoding."""
        return [row for row, log in enumerate(self.logs) if log is not None and log.phase != Phase.DONE]

    def _capacity_for(self, oldest: int) -> int:
        """Return the slots that a cache needs for one more step of rows with at most so many behind them."""
        return min(round_up(oldest + 1, 2 * SMALLEST_CAPACITY), self.most_capacity)

    def start(self, row: int, request: Request, log: Log, limits: Limits, phase: Phase) -> None:
        """Put a request into a row, to begin after what `log` holds."""
        self.logs[row] = log
        settings, sampling, count = self.rows.settings, self.rows.sampling, len(log.tokens)
        (settings.max_thinking_tokens[row], settings.min_thinking_tokens[row], settings.num_ignore[row]) = limits
        settings.ignore_ids[row, : len(request.ignore_ids)] = request.ignore_ids
        settings.ignore_length[row] = len(request.ignore_ids)
        settings.max_answer_tokens[row] = request.condition.max_answer_tokens
        for name, array in sampling._asdict().items():
            array[row] = getattr(request.condition, name)
        self.rows.seeds[row] = request.seed, request.problem, request.sample
        self.rows.prefix_end[row] = len(request.prompt) + count
        self.starts[row], self.phase[row], self.num_thinking[row], self.ages[row] = True, phase, count, 0
        self.last_token[row] = log.tokens[-1] if log.tokens else 0
        log.phase = phase

    def run(self, prompts: Prompts, prefixes: tuple[KVCache, ...], most_steps: int, most_new_done: int) -> None:
        """Let the rows decode for some steps, or until so many of them are done, and read what they emitted."""
        decoder, live = self.decoder, self.live
        if self.starts.any():
            self.state = start_rows(
                decoder.vocabulary, self.rows, prompts, self.state,
                self.starts, self.phase, self.num_thinking, self.last_token, rules=decoder.rules,
            )  # fmt: skip
            # Not in place: the device may still read the old one.
            self.starts = np.zeros_like(self.starts)
        oldest = max(int(self.ages[row]) for row, log in enumerate(self.logs) if log is not None)
        capacity, held = self._capacity_for(oldest), self.state.cache.capacity
        if capacity > held or 2 * capacity <= held:
            self.state = self.state._replace(cache=resize(self.state.cache, capacity, decoder.rules))
        state = self.state = advance(
            decoder.params, decoder.vocabulary, decoder.allowed, self.rows, prefixes, self.state,
            np.int32(min(most_steps, self.state.cache.capacity - oldest)),
            np.int32(len(self.logs) - len(live) + most_new_done),
            **self.static, scores=self.scores, attention=decoder.attention,
        )  # fmt: skip
        told = (state.emitted, state.row, state.num_emitted, state.num_steps, state.is_finite)
        emitted, row, num_emitted, num_steps, is_finite = _fetch(told, decoder.mesh)
        self.ages += num_steps
        for i in live:
            log = self.logs[i]
            assert log is not None
            if not is_finite[i]:
                raise UserError(
                    f"the model gives NaN or infinity for request {log.index}: its weights are "
                    f"damaged, or too large for {decoder.config.dtype}"
                )
            begin, new = len(log.tokens), slice(0, int(num_emitted[i]) - len(log.tokens))
            log.tokens += emitted.tokens[i, new].tolist()
            log.forced += emitted.forced[i, new].tolist()
            log.attempts += (begin + np.flatnonzero(emitted.ignored[i, new])).tolist()
            if self.scores:
                log.logprobs += emitted.logprobs[i, new].tolist()
                log.end_logprobs += emitted.end_logprobs[i, new].tolist()
            log.num_thinking, log.num_answer = int(row.num_thinking[i]), int(row.num_answer[i])
            log.num_ignored += int(emitted.ignored[i, new].sum())
            log.stopped, log.phase = bool(row.stopped[i]), Phase(int(row.phase[i]))


def _fetch(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Bring arrays to the host, to every one of several."""
    return jax.device_get(_replicate(mesh)(tree) if jax.process_count() > 1 else tree)


@functools.cache
def _replicate(mesh: jax.sharding.Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def capacity_for(most_tokens: int) -> int:
    """Return the slots of the cache of rows of at most so many tokens, once it has grown."""
    return max(SMALLEST_CAPACITY, round_up_finely(most_tokens, SMALLEST_CAPACITY // 2))


def power_of_two(n: int) -> int:
    """Return the power of two at or above `n`."""
    return 1 << (n - 1).bit_length()


def round_up(n: int, smallest: int = SMALLEST_CAPACITY) -> int:
    """Return the power of two times `smallest` at or above `n`."""
    return smallest * power_of_two(-(-n // smallest))


def round_up_finely(n: int, smallest: int = 1) -> int:
    """Return the power of two times `smallest`, or one and a half of one (from twice `smallest` on), at or above `n`."""
    n = -(-n // smallest)
    return smallest * min(power_of_two(n), 3 * power_of_two(-(-n // 3)))
