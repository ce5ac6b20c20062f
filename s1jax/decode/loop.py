"""Budget-forced decoding on the device: `prefill` of prompts, then `advance`, one compiled `lax.while_loop` over rows of any settings.

Every step of the loop turns the last hidden states into logits, draws a token per row (`sampling.py`), asks `budget.transition` which token
to emit, and runs the model on it. Budgets, ignore strings and sampling settings are [B] arrays, so none of them recompiles anything, and
nothing goes to the host per token. A row's own tokens lie in its slots of the cache; what came before them (the prompt, and for a forked
answer the trace) is read in place from caches it shares with its neighbours. `scheduler.py` decides which request sits in which row.

Invariant: a row's tokens depend on its own prompt, settings and (seed, problem, sample) only, never on its batch-mates or its slot.
So far as rounding allows: programs of other shapes may differ in a number's last bit. In float32 no test saw that become a token, nor in
bfloat16 (a small model's forks on a CPU); with a cache in 8 bits it now and then does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s1jax.data.chat import Delimiters
from s1jax.decode import budget, sampling
from s1jax.decode.budget import Phase, RowSettings, RowState, Vocabulary
from s1jax.decode.sampling import SamplingSettings
from s1jax.model.cache import KVCache, pin, with_row, without_row
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params, graphdef, init_cache
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import ShardingRules

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Columns of `Emitted`: the most steps of one call.
MOST_STEPS = 256


class Prompts(NamedTuple):
    """Prefilled prompts, P of them, each for B / P consecutive rows."""

    cache: KVCache
    hidden: Float[Array, "P D"]
    """Final hidden state of each prompt's last token."""
    last_token: Int[Array, " P"]
    length: Int[Array, " P"]


class Rows(NamedTuple):
    """What each row is to do; all but `seeds` may differ at every call."""

    settings: RowSettings
    sampling: SamplingSettings
    seeds: Int[Array, "B 3"]
    """Seed, problem and sample: what the randomness of a row is drawn from."""
    prefix_end: Int[Array, " B"]
    """Of what came before, the row sees what lies before this position."""


class Emitted(NamedTuple):
    """What a call emitted: column i is its step i. A row's tokens are the columns up to where it was done."""

    tokens: Int[Array, "B C"]
    forced: Bool[Array, "B C"]
    ignored: Bool[Array, "B C"]
    """Whether the step ignored an attempt to end thinking."""
    logprobs: Float[Array, "B C"]
    """Of the emitted tokens, 0 where forced; zeros unless asked for, as `end_logprobs`."""
    end_logprobs: Float[Array, "B C"]
    """Of all ids that end thinking together."""


class DecodeState(NamedTuple):
    """The carry of the loop."""

    cache: KVCache
    hidden: Float[Array, "B D"]
    """Final hidden state of each row's last token."""
    position: Int[Array, " B"]
    """Where each row's next token goes."""
    num_emitted: Int[Array, " B"]
    """Tokens since the prompt: what the draw of the next one is folded with."""
    row: RowState
    num_steps: Int[Array, ""]
    """Steps of this call."""
    is_finite: Bool[Array, " B"]
    """Whether each row's hidden states were, as long as it was decoding."""
    emitted: Emitted


def make_vocabulary(
    delimiters: Delimiters, ends_in_newline: Bool[np.ndarray, " num_tokens"], vocab_size: int
) -> tuple[Vocabulary, Bool[Array, " V"]]:
    """Return what budget forcing knows of a tokenizer, and the mask of ids that exist in it.

    `vocab_size` is the model's, at least the tokenizer's `len(ends_in_newline)`; the ids in between have no text and are never drawn.
    """
    num_tokens = len(ends_in_newline)
    if num_tokens > vocab_size:
        raise UserError(f"the tokenizer has {num_tokens} ids, the model only {vocab_size}: they don't belong together")

    def one_hot(ids: Sequence[int]) -> jax.Array:
        return jnp.zeros(vocab_size, bool).at[jnp.array(ids)].set(True)

    vocabulary = Vocabulary(
        ends_thinking=one_hot(delimiters.end_thinking),
        ends_answer=one_hot(delimiters.end_answer),
        ends_in_newline=jnp.pad(jnp.array(ends_in_newline), (0, vocab_size - num_tokens)),
        answer=jnp.array(delimiters.answer, jnp.int32),
        newline=jnp.array(delimiters.newline, jnp.int32),
        final_answer=jnp.array(delimiters.final_answer, jnp.int32),
        pad=jnp.array(delimiters.pad, jnp.int32),
    )
    return vocabulary, jnp.arange(vocab_size) < num_tokens


@functools.partial(jax.jit, static_argnames=("config", "rules", "num_prompts", "capacity"))
def empty_prompts(*, config: ModelConfig, rules: ShardingRules, num_prompts: int, capacity: int) -> Prompts:
    """Return room for prompts of at most `capacity` tokens."""
    zeros = jnp.zeros(num_prompts, jnp.int32)
    hidden = jnp.zeros((num_prompts, config.embed_dim), config.dtype)
    return pin(Prompts(init_cache(config, num_prompts, capacity, rules), hidden, zeros, zeros), rules)


@functools.partial(jax.jit, static_argnames=("config", "rules", "attention"), donate_argnames="prompts")
def prefill(
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "P T"],
    lengths: Int[Array, " P"],
    *,
    config: ModelConfig,
    rules: ShardingRules,
    attention: CacheBackend | None = None,
) -> Prompts:
    """Run the model on the next T tokens of right-padded prompts of these lengths; `prompts` holds what came before, and is donated."""
    P, T = tokens.shape
    model = nnx.merge(graphdef(config, rules, "per_layer"), params)
    begin = prompts.cache.num_written
    positions = jnp.broadcast_to(begin + jnp.arange(T, dtype=jnp.int32), (P, T))
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    hidden, cache = model(tokens, positions, segment_ids, prompts.cache, attention=attention)
    last = (lengths - 1 - begin)[:, None].clip(0, T - 1)
    is_here = (lengths > begin) & (lengths <= begin + T)
    prompts = Prompts(
        cache=cache,
        hidden=jnp.where(is_here[:, None], jnp.take_along_axis(hidden, last[:, :, None], axis=1)[:, 0], prompts.hidden),
        last_token=jnp.where(is_here, jnp.take_along_axis(tokens, last, axis=1)[:, 0], prompts.last_token),
        length=lengths,
    )
    return pin(prompts, rules)


@functools.partial(jax.jit, static_argnames="rules", donate_argnames="prompts")
def put_prompts(prompts: Prompts, new: Prompts, places: Int[Array, " M"], *, rules: ShardingRules) -> Prompts:
    """Put prompts into these places; one whose place is past the end is left out. `prompts` is donated."""

    def put(held: jax.Array, added: jax.Array) -> jax.Array:
        return held.at[places].set(added, mode="drop") if held.ndim else held

    return pin(jax.tree.map(put, prompts, new), rules)


@functools.partial(jax.jit, static_argnames=("config", "rules", "num_rows", "capacity", "ignore_width"))
def empty_state(
    vocabulary: Vocabulary,
    *,
    config: ModelConfig,
    rules: ShardingRules,
    num_rows: int,
    capacity: int,
    ignore_width: int,
) -> DecodeState:
    """Return a state whose rows are all done, with room for `capacity` tokens a row and ignore strings of `ignore_width`."""
    B = num_rows
    ints = jnp.zeros(B, jnp.int32)
    settings = RowSettings(ints, ints, ints, jnp.zeros((B, ignore_width), jnp.int32), ints, ints)
    row = budget.init_state(vocabulary, settings, ints, ints + Phase.DONE, ints)
    state = DecodeState(
        cache=init_cache(config, B, capacity, rules),
        hidden=jnp.zeros((B, config.embed_dim), config.dtype),
        position=ints,
        num_emitted=ints,
        row=row,
        num_steps=jnp.zeros((), jnp.int32),
        is_finite=ints == 0,
        emitted=_nothing_emitted(B),
    )
    return pin(state, rules)


def _nothing_emitted(num_rows: int) -> Emitted:
    ints, floats = (jnp.zeros((num_rows, MOST_STEPS), dtype) for dtype in (jnp.int32, jnp.float32))
    return Emitted(ints, ints > 0, ints > 0, floats, floats)


@functools.partial(jax.jit, static_argnames="rules", donate_argnames="state")
def start_rows(
    vocabulary: Vocabulary,
    rows: Rows,
    prompts: Prompts,
    state: DecodeState,
    starts: Bool[Array, " B"],
    phase: Int[Array, " B"],
    num_thinking: Int[Array, " B"],
    last_token: Int[Array, " B"],
    *,
    rules: ShardingRules,
) -> DecodeState:
    """Let the rows that `starts` names begin anew in `phase` after `num_thinking` tokens, the others go on. `state` is donated.

    A row at 0 tokens begins after its prompt. A later one is a fork, whose first tokens are forced: it needs no hidden state, but the
    `last_token` of its trace.
    """
    per_prompt = starts.shape[0] // prompts.length.shape[0]
    length, prompt_token, hidden = (
        jnp.repeat(x, per_prompt, axis=0) for x in (prompts.length, prompts.last_token, prompts.hidden)
    )
    last_token = jnp.where(num_thinking > 0, last_token, prompt_token)
    new = budget.init_state(vocabulary, rows.settings, last_token, phase, num_thinking)

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(starts.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    state = state._replace(
        cache=state.cache._replace(segment_ids=pick(jnp.zeros((), jnp.int32), state.cache.segment_ids)),
        hidden=pick(hidden, state.hidden),
        position=pick(length + num_thinking, state.position),
        num_emitted=pick(num_thinking, state.num_emitted),
        row=jax.tree.map(pick, new, state.row),
    )
    return pin(state, rules)


@functools.partial(jax.jit, static_argnames=("config", "rules", "scores", "attention"), donate_argnames="state")
def advance(
    params: Params,
    vocabulary: Vocabulary,
    allowed: Bool[Array, " V"],
    rows: Rows,
    prefixes: tuple[KVCache, ...],
    state: DecodeState,
    most_steps: Int[Array, ""],
    most_done: Int[Array, ""],
    *,
    config: ModelConfig,
    rules: ShardingRules,
    scores: bool = False,
    attention: CacheBackend | None = None,
) -> DecodeState:
    """Decode until every row is done, `most_steps` steps are made or `most_done` rows are done; the state is donated.

    `prefixes` hold the tokens before the rows' own, one cache per group of rows (`ops/attention.py`). With
    `scores` the log-probabilities are kept too.
    """
    model = nnx.merge(graphdef(config, rules, "per_layer"), params)
    row_keys = sampling.row_keys(*rows.seeds.T)
    masks = jnp.stack([allowed, allowed & ~vocabulary.ends_thinking])

    def unfinished(state: DecodeState) -> jax.Array:
        num_done = jnp.sum(state.row.phase == Phase.DONE)
        return (num_done < rows.seeds.shape[0]) & (num_done < most_done) & (state.num_steps < most_steps)

    def step(state: DecodeState) -> DecodeState:
        state = state._replace(cache=with_row(state.cache))
        logits = model.logits(state.hidden[:, None])[:, 0]
        keys = jax.vmap(jax.random.fold_in)(row_keys, state.num_emitted)
        token, redraw = sampling.draw(logits, masks, keys, rows.sampling)
        token, forced, row = budget.transition(vocabulary, rows.settings, state.row, token, redraw)
        live = (state.row.phase != Phase.DONE).astype(jnp.int32)
        told = [token, forced, row.num_ignored > state.row.num_ignored]
        if scores:
            of_token, of_end = _log_probabilities(logits, allowed, vocabulary.ends_thinking, token)
            told += [jnp.where(forced, 0, of_token), of_end]
        written = [
            jax.lax.dynamic_update_slice_in_dim(held, new[:, None], state.num_steps, axis=1)
            for held, new in zip(state.emitted, told, strict=False)
        ]
        now = (token[:, None], state.position[:, None], live[:, None])
        hidden, cache = model(*now, state.cache, prefixes, rows.prefix_end, attention=attention)
        return DecodeState(
            cache=without_row(cache),
            hidden=hidden[:, 0],
            position=state.position + live,
            num_emitted=state.num_emitted + live,
            row=row,
            num_steps=state.num_steps + 1,
            is_finite=state.is_finite & (jnp.isfinite(state.hidden).all(axis=-1) | (live == 0)),
            emitted=Emitted(*written, *state.emitted[len(written) :]),
        )

    state = state._replace(cache=without_row(state.cache), num_steps=jnp.zeros((), jnp.int32))
    state = jax.lax.while_loop(unfinished, step, state)
    return pin(state._replace(cache=with_row(state.cache)), rules)


def _log_probabilities(logits, allowed, ends_thinking, token) -> tuple[jax.Array, jax.Array]:
    """Return the log-probabilities [B] of the tokens, and of all ids that end thinking together."""
    logprobs = jax.nn.log_softmax(jnp.where(allowed, logits, sampling.NEVER), axis=-1)
    of_token = jnp.take_along_axis(logprobs, token[:, None], axis=1)[:, 0]
    return of_token, jax.nn.logsumexp(jnp.where(ends_thinking, logprobs, sampling.NEVER), axis=-1)
