"""Budget forcing (paper section 3): (row settings, row state, sampled token) -> (emitted token, row state), for B rows at once.

A row thinks, writes the answer delimiter, answers, and is done. At `max_thinking_tokens` the delimiter with "Final Answer:" is forced.
While ignores are left or the minimum is not reached, an attempt to end thinking is replaced by an ignore string ("Wait").
Everything is integers: this file knows no model, cache or tokenizer.

Invariant: `num_thinking` counts every token between the think and the answer delimiter, sampled or injected. It never exceeds
`max_thinking_tokens`, and equals it if the budget ended the thinking. A swapped-out token is not part of the trace.
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
    ends_thinking: Bool[Array, " V"]
    ends_answer: Bool[Array, " V"]
    ends_in_newline: Bool[Array, " V"]
    answer: Int[Array, " A"]
    """Delimiter after thinking that ended by itself."""
    newline: Int[Array, " n"]
    """Written before `final_answer` unless the last token's text ends in a newline."""
    final_answer: Int[Array, " F"]
    """Delimiter after thinking that the budget ended."""
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
    max_answer_tokens: Int[Array, " B"]


class RowState(NamedTuple):
    """Budget-forcing state of each row."""

    phase: Int[Array, " B"]
    num_thinking: Int[Array, " B"]
    num_ignored: Int[Array, " B"]
    """Attempts to end thinking that were swapped or redrawn."""
    num_answer: Int[Array, " B"]
    """Sampled answer tokens, without the one that ends the answer."""
    queue: Int[Array, "B Q"]
    """Tokens to force: the rest of a delimiter or of an ignore string."""
    queue_length: Int[Array, " B"]
    queue_index: Int[Array, " B"]
    ends_in_newline: Bool[Array, " B"]
    """Whether the text of the last token ends in a newline."""
    just_injected: Bool[Array, " B"]
    """Whether the last token ended an ignore string: the next may not end thinking."""
    stopped: Bool[Array, " B"]
    """Whether the model ended the answer. False if its limit did."""


class End(NamedTuple):
    """Where and how a thinking trace ends."""

    num_thinking: int
    num_ignored: int
    is_natural: bool
    """Whether the model ended it. False if the budget did."""


def find_end(limits: Limits, attempts: Sequence[int]) -> End:
    """Return where a trace ends under `limits`, given how many tokens stood before each attempt to end it, ascending.

    The trace may have been decoded under higher limits: up to this end they change nothing. So one trace serves every lower limit.
    """
    for num_ignored, position in enumerate(attempts):
        if position >= limits.max_thinking_tokens:
            return End(limits.max_thinking_tokens, num_ignored, False)
        if num_ignored >= limits.num_ignore and position >= limits.min_thinking_tokens:
            return End(position, num_ignored, True)
    return End(limits.max_thinking_tokens, len(attempts), False)


def init_state(
    vocabulary: Vocabulary,
    settings: RowSettings,
    last_token: Int[Array, " B"],
    phase: Int[Array, " B"] | int,
    num_thinking: Int[Array, " B"] | int,
) -> RowState:
    """Return the state of rows that begin in `phase` after `num_thinking` thinking tokens; `last_token` is the one before.

    FORCE begins the delimiter of thinking that the model ended. THINK at the budget will force the other delimiter.
    """
    zeros = jnp.zeros_like(settings.max_thinking_tokens)
    is_natural_end = zeros + phase == Phase.FORCE
    longest_forced = vocabulary.newline.shape[0] + vocabulary.final_answer.shape[0]
    longest_queue = max(longest_forced, vocabulary.answer.shape[0], settings.ignore_ids.shape[1])
    return RowState(
        phase=zeros + phase,
        num_thinking=zeros + num_thinking,
        num_ignored=zeros,
        num_answer=zeros,
        queue=jnp.where(is_natural_end[:, None], _as_queue(vocabulary.answer, longest_queue), zeros[:, None]),
        queue_length=jnp.where(is_natural_end, vocabulary.answer.shape[0], zeros),
        queue_index=zeros,
        ends_in_newline=vocabulary.ends_in_newline[last_token],
        just_injected=zeros > 0,
        stopped=zeros > 0,
    )


def transition(
    vocabulary: Vocabulary, settings: RowSettings, state: RowState, token: Int[Array, " B"], redraw: Int[Array, " B"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"], RowState]:
    """Return the token each row emits, whether it was forced, and the row's next state.

    `token` was sampled from the row's logits, `redraw` from the same logits with the ids that end thinking masked.
    """
    as_queue = functools.partial(_as_queue, width=state.queue.shape[1])
    thinking = state.phase == Phase.THINK
    answering = state.phase == Phase.ANSWER
    token = jnp.where(thinking & state.just_injected, redraw, token)
    tries_to_end = vocabulary.ends_thinking[token]
    may_not_end = (state.num_ignored < settings.num_ignore) | (state.num_thinking < settings.min_thinking_tokens)

    # One step per token: the first case that holds decides.
    cases = [
        state.phase == Phase.DONE,  # 1. done: pad
        state.phase == Phase.FORCE,  # 2. inside the delimiter: its next id
        thinking & (state.num_thinking == settings.max_thinking_tokens),  # 3. out of budget: begin the forced delimiter
        thinking & (state.queue_index < state.queue_length),  # 4. inside an ignore string: its next id
        thinking & tries_to_end & may_not_end & (settings.ignore_length > 0),  # 5a. swap the end for the ignore string
        thinking & tries_to_end & may_not_end,  # 5b. the ignore string is empty: draw again
        thinking & tries_to_end,  # 6. ends by itself: begin the natural delimiter
    ]  # 7. else the sampled token
    decided = [jnp.zeros_like(thinking), *itertools.accumulate(cases[:-1], operator.or_)]
    done, in_delimiter, out_of_budget, in_ignore, swap, draw_again, natural_end = (
        case & ~before for case, before in zip(cases, decided, strict=True)
    )

    # What each case that begins a delimiter or an ignore string puts into the queue.
    with_newline = jnp.concatenate([vocabulary.newline, vocabulary.final_answer])
    after_newline = state.ends_in_newline
    forced_delimiter = jnp.where(after_newline[:, None], as_queue(vocabulary.final_answer), as_queue(with_newline))
    forced_length = jnp.where(after_newline, vocabulary.final_answer.shape[0], with_newline.shape[0])
    begins = out_of_budget | swap | natural_end
    queue = jnp.select(
        [out_of_budget[:, None], swap[:, None], natural_end[:, None]],
        [forced_delimiter, as_queue(settings.ignore_ids), as_queue(vocabulary.answer)],
        state.queue,
    )
    queue_length = jnp.select(
        [out_of_budget, swap, natural_end],
        [forced_length, settings.ignore_length, vocabulary.answer.shape[0]],
        state.queue_length,
    )
    queue_index = jnp.where(begins, 0, state.queue_index)
    forced = begins | in_delimiter | in_ignore
    from_queue = jnp.take_along_axis(queue, jnp.minimum(queue_index, queue.shape[1] - 1)[:, None], axis=1)[:, 0]
    emitted = jnp.select([done, forced, draw_again], [vocabulary.pad, from_queue, redraw], token)
    queue_index = queue_index + forced
    queue_ends = forced & (queue_index == queue_length)

    counts_as_thinking = thinking & ~out_of_budget & ~natural_end
    stops = answering & vocabulary.ends_answer[emitted]
    num_answer = state.num_answer + (answering & ~stops)
    reaches_limit = answering & (num_answer == settings.max_answer_tokens)
    phase = jnp.select(
        [stops | reaches_limit, (in_delimiter | out_of_budget | natural_end) & queue_ends, out_of_budget | natural_end],
        [Phase.DONE, Phase.ANSWER, Phase.FORCE],
        state.phase,
    )
    state = RowState(
        phase=phase,
        num_thinking=state.num_thinking + counts_as_thinking,
        num_ignored=state.num_ignored + (swap | draw_again),
        num_answer=num_answer,
        queue=queue,
        queue_length=queue_length,
        queue_index=queue_index,
        ends_in_newline=vocabulary.ends_in_newline[emitted],
        just_injected=(swap | in_ignore) & queue_ends,
        stopped=state.stopped | stops,
    )
    return emitted, forced, state


def _as_queue(ids: Int[Array, "... n"], width: int) -> Int[Array, "... Q"]:
    return jnp.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, width - ids.shape[-1])])
