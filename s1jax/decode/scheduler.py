"""Which request sits in which row: requests -> completions, as they finish.

A fixed number of rows decode together. A finished row takes the next request, so no row waits for the longest; samples of one prompt sit
side by side and share one prefill and one cache of it. When traces are done whose requests ask for answers at other points, those
answers are decoded together as forks, which read their trace's cache in place (or a copy of it, where only a few of the rows fork); the
rows that still think wait for them.

Compilations are few: the rows' own caches, which grow as needed, hold powers of two from 64 on, or at last one and a half of one where
the limit asks for no more; prompts are rounded up so too, from 16 on, as are forks per trace; and prompts are prefilled 1, 8 or 64 at a
time. So one number of rows and one rounded prompt need at most ten of the loop up to 32,768 tokens (nineteen, whatever the limits of all
runs), and thirty of the prefill, one for each number of prompts and rounded length of a piece. Forks need two (all rows, or a quarter) for
each of these caches that they read, each rounded number of forks per trace, and each capacity that answers need. Nothing else about a
request compiles anything.

Invariant: neither the number of rows nor the order of the requests changes a token, as far as `decode.py` can promise it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.data.condition import Limits
from s1jax.decode.batch import Log, RowBatch, power_of_two, round_up, round_up_finely
from s1jax.decode.budget import End, Phase, find_end
from s1jax.decode.loop import MOST_STEPS, Prompts, empty_prompts, prefill, put_prompts
from s1jax.decode.request import Completion, Request
from s1jax.model.cache import KVCache, pin
from s1jax.runtime.sharding import ShardingRules

if TYPE_CHECKING:
    from s1jax.decode.engine import Decoder

# Of each prompt at a time.
PREFILL_TOKENS = 512
PREFILL_SIZES = (64, 8, 1)
# Of all prompts prefilled together, since with `xla` each token's scores span its prompt's slots.
MOST_PREFILL_SLOTS = 2**15
Results = tuple[int, tuple[Completion, ...]]


class Run:
    """One call of `Decoder.stream`."""

    def __init__(self, decoder: Decoder, requests: Sequence[Request], num_rows: int, split: int, scores: bool):
        self.decoder, self.requests, self.scores = decoder, requests, scores
        num_rows = -(-num_rows // split) * split
        self.waiting: dict[tuple[int, ...], deque[int]] = {}
        for i, request in enumerate(requests):
            self.waiting.setdefault(request.prompt, deque()).append(i)
        self.next_prompts = deque(self.waiting)
        most_samples = max(len(indices) for indices in self.waiting.values())
        # Rows side by side for one prompt: an even share of all, as many as keep them busy, and no more than it has samples.
        most = min(most_samples, -(-num_rows // len(self.waiting)))
        self.per_prompt = max(n for n in range(1, most + 1) if num_rows % n == 0)
        num_prompts = num_rows // self.per_prompt
        self.groups: list[tuple[int, ...] | None] = [None] * num_prompts
        self.ignore_width = round_up(max(1, *(len(request.ignore_ids) for request in requests)), 8)
        most_tokens = max(decoder.num_new_tokens(request) for request in requests)
        self.traces = RowBatch(decoder, num_prompts * self.per_prompt, most_tokens, self.ignore_width, scores)
        self.prompt_capacity = round_up_finely(max(len(prompt) for prompt in self.waiting), 16)
        self.static = dict(config=decoder.config, rules=decoder.rules)
        self.prompts = empty_prompts(**self.static, num_prompts=num_prompts, capacity=self.prompt_capacity)
        self.unfinished = len(requests)
        # Traces whose answers are decoded together, where not those of most rows are: an even share of the rows for each device.
        self.few = -(-power_of_two(-(-num_rows // 4)) // split) * split

    def round(self, most_steps: int) -> list[Results]:
        """Fill idle rows, decode for some steps and return what is finished."""
        self._fill_groups()
        self._fill_rows()
        self._share_prompts()
        traces, is_more = self.traces, any(self.waiting.values())
        if traces.live:
            # With more requests to come, an eighth of the rows may idle before they are refilled.
            enough = max(1, len(traces.logs) // 8) if is_more else len(traces.logs)
            traces.run(self.prompts, (self.prompts.cache,), most_steps, enough)
        results: list[Results] = []
        forking: dict[int, Log] = {}
        for row, log in enumerate(traces.logs):
            if log is None or log.phase != Phase.DONE:
                continue
            ends = self._ends(log)
            if set(ends) == {self._own_end(log)}:
                results.append((log.index, (log.completion(),) * len(ends)))
                traces.logs[row] = None
            else:
                forking[row] = log
        # Forks are cheaper together: wait for the other traces, unless other requests wait for their rows or the cache would have to
        # grow for them alone.
        enough = min(self.few, len(traces.logs)) if is_more else len(traces.logs)
        if forking and (
            not traces.live or len(forking) >= enough or max(traces.ages[list(forking)]) >= traces.most_capacity
        ):
            results += self._fork(forking)
        self.unfinished -= len(results)
        return results

    def progress(self) -> dict[int, Completion]:
        """Return what the traces at work have emitted so far, by the index of their request."""
        return {log.index: log.completion() for log in self.traces.logs if log is not None}

    def _fill_groups(self) -> None:
        """Give groups of rows whose prompt has no request left the next prompts, and prefill those."""
        new = {}
        for place in range(len(self.groups)):
            rows = self.traces.logs[place * self.per_prompt : (place + 1) * self.per_prompt]
            prompt = self.groups[place]
            if self.next_prompts and not any(rows) and not (prompt and self.waiting[prompt]):
                self.groups[place] = new[place] = self.next_prompts.popleft()
        places = list(new)
        while places:
            fits = [size for size in PREFILL_SIZES if size == 1 or size * self.prompt_capacity <= MOST_PREFILL_SLOTS]
            size = next(size for size in fits if len(places) > size // 2)
            now, places = places[:size], places[size:]
            self._prefill([new[place] for place in now], now, size)

    def _prefill(self, prompts: list[tuple[int, ...]], places: list[int], size: int) -> None:
        tokens, lengths = np.zeros((size, self.prompt_capacity), np.int32), np.ones(size, np.int32)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)], lengths[i] = prompt, len(prompt)
        new = empty_prompts(**self.static, num_prompts=size, capacity=self.prompt_capacity)
        end = round_up_finely(int(lengths.max()), 16)
        for begin in range(0, end, PREFILL_TOKENS):
            chunk = tokens[:, begin : min(begin + PREFILL_TOKENS, end)]
            new = prefill(self.decoder.params, new, chunk, lengths, **self.static, attention=self.decoder.attention)
        nowhere = [len(self.groups)] * (size - len(places))
        self.prompts = put_prompts(self.prompts, new, np.array(places + nowhere, np.int32), rules=self.decoder.rules)

    def _fill_rows(self) -> None:
        """Give idle rows the next requests of their prompts."""
        for row, log in enumerate(self.traces.logs):
            prompt = self.groups[row // self.per_prompt]
            if log is None and prompt and self.waiting[prompt]:
                index = self.waiting[prompt].popleft()
                request = self.requests[index]
                phase = Phase.THINK if request.thinks else Phase.ANSWER
                self.traces.start(row, request, Log(index), request.condition.limits, phase)

    def _share_prompts(self) -> None:
        """Give groups that are still without work a copy of the prompt with the most requests left."""
        for place in range(len(self.groups)):
            if any(self.traces.logs[place * self.per_prompt : (place + 1) * self.per_prompt]):
                continue
            prompt = max(self.waiting, key=lambda prompt: len(self.waiting[prompt]))
            if not self.waiting[prompt]:
                return
            held = _take(self.prompts, np.array([self.groups.index(prompt)], np.int32), self.decoder.rules)
            self.prompts = put_prompts(self.prompts, held, np.array([place], np.int32), rules=self.decoder.rules)
            self.groups[place] = prompt
            self._fill_rows()

    def _own_end(self, log: Log) -> End:
        limits = self.requests[log.index].condition.limits
        return End(log.num_thinking, log.num_ignored, log.num_thinking < limits.max_thinking_tokens)

    def _ends(self, log: Log) -> list[End]:
        """Return where the request's points end the finished trace."""
        own = self._own_end(log)
        attempts = [*log.attempts, *([own.num_thinking] if own.is_natural else [])]
        return [find_end(point, attempts) for point in self.requests[log.index].points] or [own]

    def _fork(self, forking: dict[int, Log]) -> list[Results]:
        """Decode the answers of finished traces, by row, at the ends their points ask for; free the rows.

        Where most rows fork, all their caches are read in place; of a few, copies, so that the others' answers are not computed.
        """
        traces, rows, rules = self.traces, list(forking), self.decoder.rules
        if 2 * len(rows) > len(traces.logs):
            return self._decode_forks(forking, list(range(len(traces.logs))), self.prompts, traces.state.cache)
        results = []
        for begin in range(0, len(rows), self.few):
            some = rows[begin : begin + self.few]
            of_rows = np.array(some + some[-1:] * (self.few - len(some)), np.int32)
            prompts, cache = (
                _take(self.prompts, of_rows // self.per_prompt, rules), _take(traces.state.cache, of_rows, rules)
            )  # fmt: skip
            results += self._decode_forks({row: forking[row] for row in some}, of_rows.tolist(), prompts, cache)
        return results

    def _decode_forks(
        self, forking: dict[int, Log], rows: list[int], prompts: Prompts, trace_cache: KVCache
    ) -> list[Results]:
        traces = self.traces
        ends = {row: sorted(set(self._ends(trace)) - {self._own_end(trace)}) for row, trace in forking.items()}
        per_trace = round_up_finely(max(len(new) for new in ends.values()))
        most_tokens = (
            max(request.condition.max_answer_tokens for request in self.requests) + self.decoder.longest_delimiter + 1
        )
        forks = RowBatch(self.decoder, len(rows) * per_trace, most_tokens, self.ignore_width, self.scores)
        results: dict[int, dict[End, Log]] = {}
        for row, trace in forking.items():
            results[row] = {self._own_end(trace): trace}
            for place, end in enumerate(ends[row], rows.index(row) * per_trace):
                phase = Phase.FORCE if end.is_natural else Phase.THINK
                log = results[row][end] = trace.fork(end)
                forks.start(place, self.requests[trace.index], log, Limits(end.num_thinking), phase)
        while forks.live:
            forks.run(prompts, (prompts.cache, trace_cache), MOST_STEPS, len(forks.logs))
        for row, trace in forking.items():
            for end in ends[row]:
                # A fork begins without the hidden state that this one is computed from.
                first = slice(end.num_thinking, end.num_thinking + 1)
                results[row][end].end_logprobs[first] = trace.end_logprobs[first]
            traces.logs[row] = None
        return [
            (trace.index, tuple(results[row][end].completion() for end in self._ends(trace)))
            for row, trace in forking.items()
        ]


@functools.partial(jax.jit, static_argnames="rules")
def _take(tree: Any, rows: jax.Array, rules: ShardingRules) -> Any:
    """Return these rows of all arrays that have rows."""
    return pin(jax.tree.map(lambda x: jnp.take(x, rows, axis=0) if x.ndim else x, tree), rules)
