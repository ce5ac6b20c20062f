"""Budget forcing (paper section 3): (row settings, row state, sampled token) -> (what the row does, row state), for B rows at once.

A row thinks, writes the answer delimiter, answers, and is done. At `max_thinking_tokens` the delimiter with the final ids is forced.
While ignores are left or the minimum is not reached, an attempt to end thinking is replaced by an ignore string ("Wait").
Everything is integers: this file knows no model, cache or tokenizer.

An end may have several tokens (`ends.py`). While it is incomplete, its tokens are emitted but do not count yet. When it is complete, it was
tried where its first token stands, and its tokens are taken back. If it does not become complete, they count. A match may begin before
the budget and go on past it: then the row decodes on until the match is decided, and takes back what lies past the budget.

Invariants:
- `num_thinking` counts every token between the think and the answer delimiter, sampled or injected. It never exceeds
  `max_thinking_tokens`, and equals it if the budget ended the thinking. A swapped-out end is not part of the trace.
- Tokens that count are never taken back. Fewer tokens than `ends` has states are emitted and do not count.
- Attempts to end stand at ascending places: the step after an ignored one may not begin an end.
"""

import functools
import itertools
import operator
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from s1jax.data.condition import Limits
from s1jax.decode.ends import Ends, follow


class Phase(IntEnum):
    """Phase of a row. In FORCE it writes the answer delimiter."""

    THINK = 0
    FORCE = 1
    ANSWER = 2
    DONE = 3


class Vocabulary(NamedTuple):
    """The ids that decoding must know, under one tokenizer."""

    exists: Bool[Array, " V"]
    """Whether the tokenizer has this id of the model. No other id is drawn."""
    ends: Ends
    ends_answer: Bool[Array, " V"]
    ends_in_newline: Bool[Array, " V"]
    answer: Int[Array, " A"]
    """Delimiter after thinking that ended by itself."""
    newline: Int[Array, " n"]
    """Written before the final ids unless the last token's text ends in a newline."""
    pad: Int[Array, ""]


class RowSettings(NamedTuple):
    """Budget-forcing settings of each row; all int32."""

    max_thinking_tokens: Int[Array, " B"]
    min_thinking_tokens: Int[Array, " B"]
    num_ignore: Int[Array, " B"]
    ignore_ids: Int[Array, "B W"]
    """The ignore string, padded on the right."""
    ignore_length: Int[Array, " B"]
    """Length of the ignore string. If it is 0, another token is drawn instead."""
    final_ids: Int[Array, "B W"]
    """Delimiter after thinking that the budget ended, padded on the right."""
    final_length: Int[Array, " B"]
    max_answer_tokens: Int[Array, " B"]


class RowState(NamedTuple):
    """Budget-forcing state of each row."""

    phase: Int[Array, " B"]
    num_tokens: Int[Array, " B"]
    """Tokens since the prompt."""
    num_thinking: Int[Array, " B"]
    """Thinking tokens that count."""
    num_ignored: Int[Array, " B"]
    """Attempts to end thinking that were swapped or redrawn."""
    num_answer: Int[Array, " B"]
    """Sampled answer tokens, without the one that ends the answer."""
    queue: Int[Array, "B Q"]
    """Tokens to force: the rest of a delimiter or of an ignore string."""
    queue_length: Int[Array, " B"]
    queue_index: Int[Array, " B"]
    match: Int[Array, " B"]
    """State of the match in progress (`ends.py`). It begins after the last ignored attempt."""
    recent: Int[Array, "B S"]
    """The last tokens, the newest last."""
    may_not_begin_end: Bool[Array, " B"]
    """Whether the next token may not begin an end: the last one ended an ignore string, or an end was taken out to draw again."""
    stopped: Bool[Array, " B"]
    """Whether the model ended the answer. False if its limit did."""


class Tries(IntEnum):
    """Whether a step is an attempt to end thinking, and which delimiter belongs to it."""

    NOT = 0
    NATURAL = 1
    FORCED = 2


class Step(NamedTuple):
    """What each row does in a step."""

    token: Int[Array, " B"]
    emits: Bool[Array, " B"]
    """False if the row is done, or if it only takes an end of several tokens back, to draw again."""
    place: Int[Array, " B"]
    """Index of the token, counted from the prompt. The row's tokens from there on are taken back first."""
    forced: Bool[Array, " B"]
    """Whether the token was not sampled."""
    tries: Int[Array, " B"]
    """A `Tries`. The attempt stands at `place`, ignored or not."""


class Attempt(NamedTuple):
    """An attempt to end thinking."""

    num_thinking: int
    """Thinking tokens before it."""
    is_natural: bool
    """Whether the natural delimiter belongs to it. False for an end after which the forced delimiter is written."""


class End(NamedTuple):
    """Where and how a thinking trace ends."""

    num_thinking: int
    num_ignored: int
    is_natural: bool
    """Whether the natural delimiter follows. False if the budget ended it, or an end that the forced delimiter follows."""


def find_end(limits: Limits, attempts: Sequence[Attempt]) -> End:
    """Return where a trace ends under `limits`, given the attempts to end it, ascending.

    The trace may have been decoded under higher limits: up to this end they change nothing. So one trace serves every lower limit.
    """
    for num_ignored, (place, is_natural) in enumerate(attempts):
        if place >= limits.max_thinking_tokens:
            return End(limits.max_thinking_tokens, num_ignored, False)
        if num_ignored >= limits.num_ignore and place >= limits.min_thinking_tokens:
            return End(place, num_ignored, is_natural)
    return End(limits.max_thinking_tokens, len(attempts), False)


def init_state(
    vocabulary: Vocabulary,
    settings: RowSettings,
    last_token: Int[Array, " B"],
    phase: Int[Array, " B"] | int,
    num_thinking: Int[Array, " B"] | int,
    num_ignored: Int[Array, " B"] | int = 0,
) -> RowState:
    """Return the state of rows that begin in `phase` after `num_thinking` thinking tokens; `last_token` is the one before.

    FORCE begins the delimiter of thinking that the model ended. THINK at the budget will force the other delimiter.
    """
    zeros = jnp.zeros_like(settings.max_thinking_tokens)
    is_natural_end = zeros + phase == Phase.FORCE
    answer = _as_queue(vocabulary.answer, queue_width(vocabulary, settings.ignore_ids.shape[1]))
    return RowState(
        phase=zeros + phase,
        num_tokens=zeros + num_thinking,
        num_thinking=zeros + num_thinking,
        num_ignored=zeros + num_ignored,
        num_answer=zeros,
        queue=jnp.where(is_natural_end[:, None], answer, zeros[:, None]),
        queue_length=jnp.where(is_natural_end, vocabulary.answer.shape[0], zeros),
        queue_index=zeros,
        match=zeros,
        recent=jnp.repeat(zeros[:, None] + last_token[:, None], vocabulary.ends.num_states, axis=1),
        may_not_begin_end=zeros > 0,
        stopped=zeros > 0,
    )


def queue_width(vocabulary: Vocabulary, string_width: int) -> int:
    """Return the longest queue: a delimiter, if ignore strings and final ids have at most `string_width` ids."""
    return max(vocabulary.newline.shape[0] + string_width, vocabulary.answer.shape[0])


def transition(
    vocabulary: Vocabulary, settings: RowSettings, state: RowState, token: Int[Array, " B"], redraw: Int[Array, " B"]
) -> tuple[Step, RowState]:
    """Return what each row does, and its next state.

    `token` was sampled from the row's logits, `redraw` from the same logits with the ids masked that begin an end.
    """
    as_queue = functools.partial(_as_queue, width=state.queue.shape[1])
    num_states = vocabulary.ends.num_states
    thinking = state.phase == Phase.THINK
    answering = state.phase == Phase.ANSWER
    token = jnp.where(thinking & state.may_not_begin_end, redraw, token)
    match, num_before = follow(vocabulary.ends, state.match, state.recent, token)
    first = state.num_tokens - num_before  # place of the first token of the match
    # An end that begins at the budget or after it was not tried: the tokens past the budget do not exist.
    tries_to_end = (match >= num_states) & (first < settings.max_thinking_tokens)
    may_not_end = (state.num_ignored < settings.num_ignore) | (first < settings.min_thinking_tokens)

    # One step per token: the first case that holds decides.
    cases = [
        state.phase == Phase.DONE,  # 1. done: pad
        state.phase == Phase.FORCE,  # 2. inside the delimiter: its next id
        thinking & (state.num_thinking == settings.max_thinking_tokens),  # 3. out of budget: begin the forced delimiter
        thinking & (state.queue_index < state.queue_length),  # 4. inside an ignore string: its next id
        thinking & tries_to_end & may_not_end & (settings.ignore_length > 0),  # 5a. swap the end for the ignore string
        thinking & tries_to_end & may_not_end,  # 5b. the ignore string is empty: draw again
        thinking & tries_to_end & (match > num_states),  # 6a. ends by itself: begin the forced delimiter
        thinking & tries_to_end,  # 6b. ends by itself: begin the natural delimiter
    ]  # 7. else the sampled token
    *decided, any_case = [jnp.zeros_like(thinking), *itertools.accumulate(cases, operator.or_)]
    done, in_delimiter, out_of_budget, in_ignore, swap, draw_again, forced_end, natural_end = (
        case & ~before for case, before in zip(cases, decided, strict=True)
    )
    model_ends = forced_end | natural_end
    tries = swap | draw_again | model_ends

    num_past_budget = state.num_tokens - state.num_thinking
    num_taken_back = jnp.select([out_of_budget, tries], [num_past_budget, num_before], 0)
    place = state.num_tokens - num_taken_back
    token_before = jnp.take_along_axis(state.recent, num_states - 1 - num_taken_back[:, None], axis=1)[:, 0]
    only_takes_back = draw_again & (num_before > 0)
    emits = ~done & ~only_takes_back

    # What each case that begins a delimiter or an ignore string puts into the queue.
    begins_forced = out_of_budget | forced_end
    after_newline = vocabulary.ends_in_newline[token_before]
    newline = jnp.broadcast_to(vocabulary.newline, (len(token), *vocabulary.newline.shape))
    with_newline = jnp.concatenate([newline, settings.final_ids], axis=1)
    forced_delimiter = jnp.where(after_newline[:, None], as_queue(settings.final_ids), as_queue(with_newline))
    forced_length = settings.final_length + jnp.where(after_newline, 0, vocabulary.newline.shape[0])
    queue = jnp.select(
        [begins_forced[:, None], swap[:, None], natural_end[:, None]],
        [forced_delimiter, as_queue(settings.ignore_ids), as_queue(vocabulary.answer)],
        state.queue,
    )
    queue_length = jnp.select(
        [begins_forced, swap, natural_end],
        [forced_length, settings.ignore_length, vocabulary.answer.shape[0]],
        state.queue_length,
    )
    begins = begins_forced | swap | natural_end
    queue_index = jnp.where(begins, 0, state.queue_index)
    forced = begins | in_delimiter | in_ignore
    from_queue = jnp.take_along_axis(queue, jnp.minimum(queue_index, queue.shape[1] - 1)[:, None], axis=1)[:, 0]
    emitted = jnp.select([done, forced, draw_again], [vocabulary.pad, from_queue, redraw], token)
    queue_index = queue_index + forced
    queue_ends = forced & (queue_index == queue_length)

    in_match = thinking & ~any_case & (match > 0)
    counted = jnp.where(in_match, first, place + (emits & ~model_ends))
    stops = answering & vocabulary.ends_answer[emitted]
    num_answer = state.num_answer + (answering & ~stops)
    reaches_limit = answering & (num_answer == settings.max_answer_tokens)
    phase = jnp.select(
        [stops | reaches_limit, (in_delimiter | out_of_budget | model_ends) & queue_ends, out_of_budget | model_ends],
        [Phase.DONE, Phase.ANSWER, Phase.FORCE],
        state.phase,
    )
    state = RowState(
        phase=phase,
        num_tokens=place + emits,
        num_thinking=jnp.where(
            thinking & ~out_of_budget, jnp.minimum(counted, settings.max_thinking_tokens), state.num_thinking
        ),
        num_ignored=state.num_ignored + (swap | draw_again),
        num_answer=num_answer,
        queue=queue,
        queue_length=queue_length,
        queue_index=queue_index,
        match=jnp.where(in_match & (match < num_states), match, 0),
        recent=jnp.concatenate([state.recent[:, 1:], emitted[:, None]], axis=1),
        may_not_begin_end=((swap | in_ignore) & queue_ends) | only_takes_back,
        stopped=state.stopped | stops,
    )
    tried = jnp.select([tries & (match > num_states), tries], [Tries.FORCED, Tries.NATURAL], Tries.NOT)
    return Step(emitted, emits, place, forced, tried), state


def _as_queue(ids: Int[Array, "... n"], width: int) -> Int[Array, "... Q"]:
    return jnp.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, width - ids.shape[-1])])
