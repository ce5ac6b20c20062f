"""Scheduling: which request decodes in which row, and when its forked answers are decoded.

A request waits for a row, thinks, may wait to fork, and answers. It may arrive or be cancelled between any two steps.

The admission policy:

1. A fixed number of rows decode together, in equal groups of neighbouring rows. A group holds one prompt, which is prefilled for it and
   whose cache its rows share. So samples of a prompt sit side by side.
2. Within a prompt, requests get rows in the order of arrival. An idle row takes the next request of its group's prompt at the next step.
3. A group whose rows are all idle, and whose prompt has no request left, takes the prompt that has waited longest and that no group holds.
   If there is none, it takes the prompt with the most waiting requests, too. So no whole group idles while a request waits.
4. While requests wait, a step ends once an eighth of the rows are done, so that they are refilled. Otherwise it ends once all are done.
5. A finished trace whose request wants answers at other points keeps its row and waits to fork. Such traces fork together, once no row
   decodes. If requests wait for rows, they fork once they fill a quarter of the rows. They also fork before the cache would have to grow
   for them alone. Forks read their traces' caches in place, or copies if at most half of the rows fork. All answers of a fork are decoded
   within one step; rows that still think wait for them.

`Shapes` decide what is compiled. They are chosen from all waiting requests when requests have arrived and no row is in use. A request that
arrives later and needs a larger bucket makes that bucket grow. Nothing else about a request compiles anything.

Invariant: neither the number of rows nor the other requests nor the time of arrival change a token, as far as `loop.py` can promise it.
"""

import itertools
from collections import deque
from typing import NamedTuple

import numpy as np

from s1jax.data.condition import Limits
from s1jax.decode.batch import Log, RowBatch
from s1jax.decode.budget import End, Phase, find_end
from s1jax.decode.loaded import LoadedModel
from s1jax.decode.loop import MAX_STEPS
from s1jax.decode.prefill import (
    Prompts,
    empty_prompts,
    grow_prompts,
    prefill_batches,
    prefill_prompts,
    prompt_bucket,
    put_prompts,
    round_up,
    round_up_finely,
    take_rows,
)
from s1jax.decode.request import OF_PLACE, Completion, Request
from s1jax.model.cache import KVCache
from s1jax.runtime.errors import UserError

Results = tuple[int, tuple[Completion, ...]]
"""A ticket, and the completions of its request: one per point, or one of the whole trace if it has no points."""


class Shapes(NamedTuple):
    """What decides which programs are compiled."""

    per_prompt: int = 0
    """Rows per group."""
    prompt_capacity: int = 0
    string_width: int = 0
    """Tokens of an ignore string or a forced delimiter."""
    max_tokens: int = 0
    """Tokens of a row since the prompt."""
    after_thinking: int = 0
    """Tokens of a row after its thinking."""


class Scheduler:
    """Requests on their way through a fixed number of rows."""

    def __init__(self, model: LoadedModel, num_rows: int, scores: bool):
        # Rows are split evenly over the devices of the batch axes.
        split = model.rules.num_shards("batch", model.mesh.shape)
        self.model, self.scores, self.num_rows = model, scores, -(-num_rows // split) * split
        # At most this many traces fork as copies at a time.
        self.fork_rows = -(-self.num_rows // (4 * split)) * split
        self.tickets = itertools.count()
        self.unfinished: dict[int, Log] = {}
        """Unfinished requests, by ticket."""
        self.waiting: dict[tuple[int, ...], deque[Log]] = {}
        """Requests without a row, by prompt. No queue is empty."""
        self.num_tokens = 0
        """Tokens decoded so far."""
        self.has_arrivals = False
        """Whether requests came since shapes were chosen."""
        self.shapes = Shapes()
        self.groups: list[tuple[int, ...]] = []
        """The prompt that each group of rows holds, or (). The first step makes groups, rows and prompts."""
        self.traces: RowBatch
        self.prompts: Prompts

    def submit(self, request: Request, fits: bool = False) -> int:
        """Queue a request and return its ticket: 0, 1, 2... If it `fits` the shapes that are chosen, they stay."""
        log = Log(next(self.tickets), request)
        self.unfinished[log.ticket] = log
        self.waiting.setdefault(request.prompt, deque()).append(log)
        self.has_arrivals |= not fits
        return log.ticket

    def cancel(self, ticket: int) -> None:
        """Drop an unfinished request. Raises UserError for any other ticket."""
        log = self.unfinished.pop(ticket, None)
        if log is None:
            raise UserError(f"ticket {ticket} is no unfinished request")
        if log in self.logs:
            self.traces.free(self.logs.index(log))
        else:
            self._dequeue(log)

    @property
    def logs(self) -> list[Log | None]:
        """The log of each row in use. Before the first step there are no rows."""
        return self.traces.logs if self.groups else []

    @property
    def running(self) -> list[Log]:
        """The requests that have a row and are not done."""
        return [log for log in self.logs if log is not None and log.phase != Phase.DONE]

    def progress(self) -> dict[int, Completion]:
        """Return the tokens so far of each unfinished trace that has a row, by ticket."""
        return {log.ticket: log.completion() for log in self.logs if log is not None}

    def step(self, max_steps: int) -> list[Results]:
        """Fill idle rows, decode for at most `max_steps` steps and return what finished."""
        if not self.unfinished:
            return []
        self._choose_shapes()
        self._fill_groups()
        traces = self.traces
        if traces.live:
            refill_at = max(1, self.num_rows // 8) if self.waiting else self.num_rows
            self.num_tokens += traces.run(self.prompts, (self.prompts.cache,), max_steps, refill_at)
        results: list[Results] = []
        forking: dict[int, Log] = {}
        for row, log in enumerate(traces.logs):
            if log is None or log.phase != Phase.DONE:
                continue
            if set(ends := _ends(log)) == {_own_end(log)}:
                results.append(self._finish(row, log, (log.completion(),) * len(ends)))
            else:
                forking[row] = log
        fork_at = self.fork_rows if self.waiting else self.num_rows
        if forking and (
            not traces.live or len(forking) >= fork_at or max(traces.ages[list(forking)]) >= traces.max_capacity
        ):
            results += self._fork(forking)
        return results

    def _finish(self, row: int, log: Log, completions: tuple[Completion, ...]) -> Results:
        self.traces.free(row)
        del self.unfinished[log.ticket]
        return log.ticket, completions

    def _choose_shapes(self) -> None:
        """Choose new shapes if requests arrived and no row is in use; else enlarge the buckets that are too small for them."""
        if not (self.has_arrivals and self.waiting):
            return
        self.has_arrivals, in_use = False, any(self.logs)
        requests = [log.request for queue in self.waiting.values() for log in queue]
        needed = Shapes(
            0 if in_use else self._rows_per_prompt(),
            prompt_bucket(max(len(request.prompt) for request in requests)),
            round_up(max(1, *(len(ids) for request in requests for ids in (request.ignore_ids, request.final_ids))), 8),
            max(self.model.num_new_tokens(request) for request in requests),
            max(self.model.num_after_thinking(request) for request in requests),
        )
        shapes = Shapes(*map(max, self.shapes, needed)) if in_use else needed
        before, self.shapes = self.shapes, shapes
        if in_use:
            self.traces.make_room(shapes.max_tokens, shapes.string_width)
            if shapes.prompt_capacity > before.prompt_capacity:
                self.prompts = grow_prompts(self.prompts, shapes.prompt_capacity, self.model.rules)
        elif shapes != before:
            if self.groups:
                del self.traces, self.prompts  # so that the old and the new ones are never held together
            self.groups = [()] * (self.num_rows // shapes.per_prompt)
            self.traces = RowBatch(self.model, self.num_rows, shapes.max_tokens, shapes.string_width, self.scores)
            self.prompts = empty_prompts(
                **self.model.static, num_prompts=len(self.groups), capacity=shapes.prompt_capacity
            )

    def _rows_per_prompt(self) -> int:
        """Return the rows of a group: an even share for each waiting prompt, but no more than a prompt has requests."""
        max_samples = max(len(queue) for queue in self.waiting.values())
        largest = min(max_samples, -(-self.num_rows // len(self.waiting)))
        return max(n for n in range(1, largest + 1) if self.num_rows % n == 0)

    def _fill_groups(self) -> None:
        """Give idle rows the next requests of their prompts (rule 2), and idle groups other prompts, which are prefilled (rule 3)."""
        for group in range(len(self.groups)):
            self._fill_rows(group)
        held, new, size = set(self.groups), [], self.shapes.per_prompt
        for group in range(len(self.groups)):
            if self.waiting and not any(self.logs[group * size : (group + 1) * size]):
                unheld = (prompt for prompt in self.waiting if prompt not in held)
                prompt = next(unheld, None) or max(self.waiting, key=lambda prompt: len(self.waiting[prompt]))
                self.groups[group] = prompt
                self._fill_rows(group)
                held.add(prompt)
                new.append(group)
        for some, num_prompts in prefill_batches(new, self.shapes.prompt_capacity):
            prompts = [self.groups[group] for group in some]
            read = prefill_prompts(self.model, prompts, num_prompts, self.shapes.prompt_capacity)
            places = np.array(some + [len(self.groups)] * (num_prompts - len(some)), np.int32)
            self.prompts = put_prompts(self.prompts, read, places, rules=self.model.rules)

    def _fill_rows(self, group: int) -> None:
        prompt, size = self.groups[group], self.shapes.per_prompt
        for row in range(group * size, (group + 1) * size):
            if self.traces.logs[row] is None and prompt in self.waiting:
                log = self.waiting[prompt][0]
                self._dequeue(log)
                phase = Phase.THINK if log.request.thinks else Phase.ANSWER
                self.traces.start(row, log, log.request.condition.limits, phase)

    def _dequeue(self, log: Log) -> None:
        queue = self.waiting[log.request.prompt]
        queue.remove(log)
        if not queue:
            del self.waiting[log.request.prompt]

    def _fork(self, forking: dict[int, Log]) -> list[Results]:
        """Decode the answers of finished traces, by row, at the ends their points ask for (rule 5); free the rows."""
        traces, rows, rules = self.traces, list(forking), self.model.rules
        if 2 * len(rows) > len(traces.logs):
            return self._decode_forks(forking, list(range(len(traces.logs))), self.prompts, traces.state.cache)
        results = []
        for begin in range(0, len(rows), self.fork_rows):
            some = rows[begin : begin + self.fork_rows]
            of_rows = np.array(some + some[-1:] * (self.fork_rows - len(some)), np.int32)
            prompts = take_rows(self.prompts, of_rows // self.shapes.per_prompt, rules)
            cache = take_rows(traces.state.cache, of_rows, rules)
            results += self._decode_forks({row: forking[row] for row in some}, of_rows.tolist(), prompts, cache)
        return results

    def _decode_forks(
        self, forking: dict[int, Log], rows: list[int], prompts: Prompts, trace_cache: KVCache
    ) -> list[Results]:
        """Decode the forks of some traces. `rows` are the rows whose prompts and caches are given."""
        ends = {row: sorted(set(_ends(trace)) - {_own_end(trace)}) for row, trace in forking.items()}
        per_trace = round_up_finely(max(len(new) for new in ends.values()), 1)
        shapes = self.shapes
        forks = RowBatch(self.model, len(rows) * per_trace, shapes.after_thinking, shapes.string_width, self.scores)
        answers: dict[int, dict[End, Log]] = {}
        for row, trace in forking.items():
            answers[row] = {_own_end(trace): trace}
            for place, end in enumerate(ends[row], rows.index(row) * per_trace):
                log = answers[row][end] = trace.fork(end)
                forks.start(place, log, Limits(end.num_thinking), Phase.FORCE if end.is_natural else Phase.THINK)
        while forks.live:
            self.num_tokens += forks.run(prompts, (prompts.cache, trace_cache), MAX_STEPS, len(forks.logs))
        results = []
        for row, trace in forking.items():
            for end in ends[row]:
                # A fork begins without the hidden state that these log-probabilities are computed from.
                first = slice(end.num_thinking, end.num_thinking + 1)
                for name in OF_PLACE:
                    getattr(answers[row][end], name)[first] = getattr(trace, name)[first]
            completions = tuple(answers[row][end].completion() for end in _ends(trace))
            results.append(self._finish(row, trace, completions))
        return results


def _own_end(log: Log) -> End:
    """Return where a finished trace ended."""
    return find_end(log.request.condition.limits, log.attempts)


def _ends(log: Log) -> list[End]:
    """Return where the request's points end the finished trace; without points, where it ended."""
    return [find_end(point, log.attempts) for point in log.request.points] or [_own_end(log)]
