"""Sequences that decode together, as the host sees them: which request each serves, and what it has emitted so far.

`RowBatch` keeps the arrays of `loop.py` on the device and a `Log` per row on the host. `scheduler.py` decides which request gets a row.

Invariant: the cache has more slots than the age of any row in use, in steps, so no row's tokens are overwritten. It grows before that
would happen, and shrinks when half of it is enough.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s1jax.data.condition import Limits
from s1jax.decode.budget import Attempt, End, Phase, Tries, queue_width
from s1jax.decode.loaded import LoadedModel, fetch
from s1jax.decode.loop import Emitted, advance, change_rows, empty_rows, empty_state, widen_queue
from s1jax.decode.prefill import Prompts, round_up, round_up_finely
from s1jax.decode.request import OF_PLACE, PER_TOKEN, SCORES, Completion, FinishReason, Request
from s1jax.model.cache import KVCache, resize
from s1jax.runtime.errors import UserError

# Why caches grow, shrink, and end at 1.5 times a power of two: a step reads every slot. A 135M model in float32 with 8 rows on a 2-core CPU
# takes 88 ms per step with 128 slots, 90 with 384, 122 with 512 and 197 with 1,024 (the fastest of six calls of four steps, noisy machine).
SMALLEST_CAPACITY = 64


@dataclass(eq=False)
class Log:
    """A request, and the tokens since the prompt that its row has emitted and not taken back."""

    ticket: int
    request: Request
    tokens: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    """The attempts to end thinking, with the one that ended it."""
    logprobs: list[float] = field(default_factory=list)
    end_logprobs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    num_thinking: int = 0
    num_ignored: int = 0
    num_answer: int = 0
    finish_reason: FinishReason = "unfinished"
    phase: Phase = Phase.THINK

    def fork(self, end: End) -> "Log":
        """Return the log of a fork that takes over the tokens before `end`."""
        n = end.num_thinking
        taken_over = {name: getattr(self, name)[:n] for name in PER_TOKEN}
        return Log(self.ticket, self.request, **taken_over, num_thinking=n, num_ignored=end.num_ignored)

    def put(self, emitted: Emitted, row: int, columns: Any, scores: bool) -> None:
        """Put the tokens of some columns, which have neighbouring places, at these places; what was there and after it is dropped."""
        begin = int(emitted.places[row, columns[0]])
        for name in PER_TOKEN:
            if scores or name not in SCORES:
                held = getattr(self, name)
                # If this place was drawn before, that was from the hidden state that belongs to it.
                drawn_before = held[begin : begin + 1] if name in OF_PLACE else []
                held[begin:] = getattr(emitted, name)[row, columns].tolist()
                held[begin : begin + len(drawn_before)] = drawn_before

    def cut_at_stop_string(self, to_text: Callable[[Sequence[int]], str]) -> bool:
        """Cut the answer after the first token with which its text contains a stop string; return whether there is one.

        The cut does not depend on how many tokens were there at an earlier look: if the text of some first tokens contains a string, so
        does the text of more.
        """
        begin = len(self.tokens) - self.num_answer - (self.finish_reason == "stop")
        answer = self.tokens[begin : begin + self.num_answer]

        def contains_stop(num_tokens: int) -> bool:
            text = to_text(answer[:num_tokens])
            return any(stop in text for stop in self.request.stop)

        if not contains_stop(len(answer)):
            return False
        self.num_answer = bisect.bisect_left(range(len(answer) + 1), True, key=contains_stop)
        for name in PER_TOKEN:
            del getattr(self, name)[begin + self.num_answer :]
        self.finish_reason, self.phase = "stop_string", Phase.DONE
        return True

    def completion(self) -> Completion:
        """Return the log as a completion. While the row thinks, tokens that do not count yet are left out."""
        n = self.num_thinking if self.phase == Phase.THINK else len(self.tokens)
        per_token: dict[str, Any] = {name: tuple(getattr(self, name)[:n]) for name in PER_TOKEN}
        counts: dict[str, Any] = dict(
            num_thinking=self.num_thinking, num_ignored=self.num_ignored, num_answer=self.num_answer
        )
        return Completion(**per_token, **counts, finish_reason=self.finish_reason)


class RowBatch:
    """Rows that decode together, each with its log."""

    def __init__(self, model: LoadedModel, num_rows: int, max_tokens: int, string_width: int, scores: bool):
        self.model, self.scores = model, scores
        self.max_capacity = capacity_for(max_tokens)
        self.logs: list[Log | None] = [None] * num_rows
        """The log of each row in use: one that decodes, or that is done and must keep its tokens."""
        capacity = min(2 * SMALLEST_CAPACITY, self.max_capacity)
        sizes = dict(num_rows=num_rows, capacity=capacity, string_width=string_width)
        self.state = empty_state(model.vocabulary, **model.static, **sizes)
        self.rows = empty_rows(num_rows, string_width)
        self.starts, self.ends = np.zeros(num_rows, bool), np.zeros(num_rows, bool)
        """Rows that the host started or ended, as the device does not know yet."""
        self.ages = np.zeros(num_rows, np.int32)
        """Steps since each row began."""
        self.phase, self.num_thinking, self.num_ignored, self.last_token = np.zeros((4, num_rows), np.int32)

    @property
    def live(self) -> dict[int, Log]:
        """The logs of the rows that are decoding, by row."""
        return {row: log for row, log in enumerate(self.logs) if log is not None and log.phase != Phase.DONE}

    def make_room(self, max_tokens: int, string_width: int) -> None:
        """Make room for requests of `max_tokens` tokens with ignore strings and forced delimiters of `string_width` tokens."""
        self.max_capacity = max(self.max_capacity, capacity_for(max_tokens))
        settings, row = self.rows.settings, self.state.row
        if (more := string_width - settings.ignore_ids.shape[1]) > 0:
            ignore_ids, final_ids = np.pad((settings.ignore_ids, settings.final_ids), ((0, 0), (0, 0), (0, more)))
            self.rows = self.rows._replace(settings=settings._replace(ignore_ids=ignore_ids, final_ids=final_ids))
            width = queue_width(self.model.vocabulary, string_width)
            queue = widen_queue(row.queue, width=width, rules=self.model.rules)
            self.state = self.state._replace(row=row._replace(queue=queue))

    def start(self, row: int, log: Log, limits: Limits, phase: Phase) -> None:
        """Let a row decode what comes after the tokens of `log`."""
        self.logs[row] = log
        request, count = log.request, len(log.tokens)
        settings, sampling = self.rows.settings, self.rows.sampling
        (settings.max_thinking_tokens[row], settings.min_thinking_tokens[row], settings.num_ignore[row]) = limits
        settings.ignore_ids[row, : len(request.ignore_ids)] = request.ignore_ids
        settings.ignore_length[row] = len(request.ignore_ids)
        settings.final_ids[row, : len(request.final_ids)] = request.final_ids
        settings.final_length[row] = len(request.final_ids)
        settings.max_answer_tokens[row] = request.condition.max_answer_tokens
        for name, array in sampling._asdict().items():
            array[row] = getattr(request.condition, name)
        self.rows.seeds[row] = request.seed, request.problem, request.sample
        self.rows.prefix_end[row] = len(request.prompt) + count
        self.starts[row], self.ends[row], self.ages[row] = True, False, 0
        log.phase = self.phase[row] = phase
        self.num_thinking[row], self.num_ignored[row] = count, log.num_ignored
        self.last_token[row] = (log.tokens or request.prompt)[-1]

    def free(self, row: int) -> None:
        """Drop a row's log, and its work if it still decodes."""
        self.starts[row], self.ends[row], self.logs[row] = False, True, None

    def run(self, prompts: Prompts, prefixes: tuple[KVCache, ...], max_steps: int, max_new_done: int) -> int:
        """Decode for `max_steps` steps, or until `max_new_done` rows have become done, and log what the rows emitted.

        Returns the number of emitted tokens. Raises UserError if a hidden state is not finite.
        """
        model, live = self.model, self.live
        if self.starts.any() or self.ends.any():
            self.state = change_rows(
                model.vocabulary, self.rows, prompts, self.state, self.starts, self.ends,
                self.phase, self.num_thinking, self.num_ignored, self.last_token, rules=model.rules,
            )  # fmt: skip
            # Not in place: the device may still read the old arrays.
            self.starts, self.ends = np.zeros_like(self.starts), np.zeros_like(self.ends)
        oldest = max(int(self.ages[row]) for row, log in enumerate(self.logs) if log is not None)
        # For at least one more step. A row that took tokens back is older than it has tokens.
        largest = max(self.max_capacity, capacity_for(oldest + 1))
        capacity = min(round_up(oldest + 1, 2 * SMALLEST_CAPACITY), largest)
        held = self.state.cache.capacity
        if capacity > held or 2 * capacity <= held:
            self.state = self.state._replace(cache=resize(self.state.cache, capacity, model.rules))
        self.state = advance(
            model.params, model.vocabulary, self.rows, prefixes, self.state,
            np.int32(min(max_steps, self.state.cache.capacity - oldest)),
            np.int32(len(self.logs) - len(live) + max_new_done),
            **model.static, scores=self.scores, attention=model.attention,
        )  # fmt: skip
        return self._read(live)

    def _read(self, live: dict[int, Log]) -> int:
        """Put what the last call of `advance` emitted into the logs of the rows that were live; return the number of tokens."""
        state = self.state
        emitted, row, num_steps, is_finite = fetch((state.emitted, state.row, state.num_steps, state.is_finite))
        self.ages += num_steps
        num_tokens = 0
        for i, log in live.items():
            places, tries = emitted.places[i], emitted.tries[i, :num_steps]
            log.attempts += [Attempt(int(places[c]), bool(tries[c] == Tries.NATURAL)) for c in np.flatnonzero(tries)]
            columns = np.flatnonzero(emitted.tokens[i, :num_steps] >= 0)
            num_tokens += len(columns)
            for run in np.split(columns, np.flatnonzero(np.diff(places[columns]) != 1) + 1):
                if len(run):
                    log.put(emitted, i, run, self.scores)
            log.num_thinking, log.num_answer = int(row.num_thinking[i]), int(row.num_answer[i])
            log.num_ignored, log.phase = int(row.num_ignored[i]), Phase(int(row.phase[i]))
            if log.phase == Phase.DONE:
                log.finish_reason = "stop" if row.stopped[i] else "length"
            if log.request.stop and log.num_answer:
                assert self.model.to_text is not None
                self.ends[i] = log.cut_at_stop_string(self.model.to_text)
            if not is_finite[i]:
                raise UserError(
                    f"NaN or infinity for request {log.ticket}: the weights are damaged or too large for the dtype"
                )
        return num_tokens


def capacity_for(max_tokens: int) -> int:
    """Return the slots per row that a cache for rows of at most `max_tokens` tokens grows to."""
    return max(SMALLEST_CAPACITY, round_up_finely(max_tokens, SMALLEST_CAPACITY // 2))
