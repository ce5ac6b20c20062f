"""Budget-forced decoding on the device: `advance` decodes sequences in one compiled `lax.while_loop`.

Each step of the loop computes logits from the last hidden states and draws one token per sequence (`sampling.py`). `budget.transition` then
decides which token to emit, and the model runs on it. Budgets, ignore strings and sampling settings are [B] arrays. So none of them
recompiles anything, and no token goes to the host before the call ends. A sequence's own tokens lie in its slots of the cache. The tokens
before them (the prompt, and for a forked answer the trace) are read in place from caches that neighbouring sequences share.

A step may take back the last tokens of a sequence. Their slots become free, and the sequence goes on as if they had never been there.

Invariant: a sequence's tokens depend only on its own prompt, settings and (seed, problem, sample), never on its neighbours or its slot.
Programs of other shapes may round differently. No test saw this change a token, in float32 or in bfloat16 (forks of a small model on a
CPU). With a cache in 8 bits it sometimes does.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from s1jax.decode import budget, logprobs, sampling
from s1jax.decode.budget import Phase, RowSettings, RowState, Vocabulary
from s1jax.decode.prefill import Prompts
from s1jax.decode.sampling import SamplingSettings
from s1jax.model.cache import KVCache, init_cache, pin, with_row, without_row
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params, graphdef
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.sharding import ShardingRules

MAX_STEPS = 256
"""Steps of one call of `advance` at most, and so the columns of `Emitted`."""


class Rows(NamedTuple):
    """Settings of each sequence. All but `seeds` may change from call to call."""

    settings: RowSettings
    sampling: SamplingSettings
    seeds: Int[Array, "B 3"]
    """Seed, problem and sample: the only sources of a sequence's randomness."""
    prefix_end: Int[Array, " B"]
    """Exclusive end, in positions, of the part of the prefixes that the sequence may attend to."""


class Emitted(NamedTuple):
    """What one call of `advance` emitted. Column i is step i."""

    tokens: Int[Array, "B C"]
    """-1 if the step emitted nothing."""
    places: Int[Array, "B C"]
    """Index of the token, counted from the prompt. The sequence's earlier tokens from there on are taken back."""
    forced: Bool[Array, "B C"]
    tries: Int[Array, "B C"]
    """Whether the step is an attempt to end thinking at this place, and of which kind (`budget.Tries`)."""
    logprobs: Float[Array, "B C"]
    """Log-probability of each emitted token, 0 if it was forced. All zeros without `scores`, like the next two."""
    end_logprobs: Float[Array, "B C"]
    """Log-probability of drawing any id that completes an end of thinking."""
    confidences: Float[Array, "B C"]
    """Mean log-probability of the 20 likeliest ids."""


class DecodeState(NamedTuple):
    """State of all sequences: the carry of the loop."""

    cache: KVCache
    hidden: Float[Array, "B S D"]
    """Final hidden states of each sequence's last tokens, the newest last. S is the number of states of `ends.py`."""
    position: Int[Array, " B"]
    """Position of each sequence's next token."""
    row: RowState
    num_steps: Int[Array, ""]
    """Steps of this call so far."""
    is_finite: Bool[Array, " B"]
    """Whether all hidden states were finite while the sequence was decoding."""
    emitted: Emitted


def empty_rows(num_rows: int, string_width: int) -> Rows:
    """Return rows with nothing to do, as numpy arrays that their owner fills in.

    Ignore strings and forced delimiters may have `string_width` tokens.
    """

    def ints(*shape: int) -> Any:
        return np.zeros((num_rows, *shape), np.int32)

    strings = ints(string_width), ints(), ints(string_width), ints()
    settings = RowSettings(ints(), ints(), ints(), *strings, ints())
    floats: list[Any] = [np.full(num_rows, value, np.float32) for value in (0, 1, 0)]
    sampling_settings = SamplingSettings(floats[0], ints(), top_p=floats[1], min_p=floats[2])
    return Rows(settings, sampling_settings, seeds=ints(3), prefix_end=ints())


@functools.partial(jax.jit, static_argnames=("config", "rules", "num_rows", "capacity", "string_width"))
def empty_state(
    vocabulary: Vocabulary,
    *,
    config: ModelConfig,
    rules: ShardingRules,
    num_rows: int,
    capacity: int,
    string_width: int,
) -> DecodeState:
    """Return a state whose sequences are all done, with `capacity` slots each and room for strings of `string_width` ids."""
    ints = jnp.zeros(num_rows, jnp.int32)
    counts, flags, floats = (jnp.zeros((num_rows, MAX_STEPS), dtype) for dtype in (jnp.int32, bool, jnp.float32))
    state = DecodeState(
        cache=init_cache(config, num_rows, capacity, rules),
        hidden=jnp.zeros((num_rows, vocabulary.ends.num_states, config.embed_dim), config.dtype),
        position=ints,
        row=budget.init_state(vocabulary, empty_rows(num_rows, string_width).settings, ints, Phase.DONE, 0),
        num_steps=jnp.zeros((), jnp.int32),
        is_finite=ints == 0,
        emitted=Emitted(counts, counts, flags, counts, floats, floats, floats),
    )
    return pin(state, rules)


@functools.partial(jax.jit, static_argnames="rules", donate_argnames="state")
def change_rows(
    vocabulary: Vocabulary,
    rows: Rows,
    prompts: Prompts,
    state: DecodeState,
    starts: Bool[Array, " B"],
    ends: Bool[Array, " B"],
    phase: Int[Array, " B"],
    num_thinking: Int[Array, " B"],
    num_ignored: Int[Array, " B"],
    last_token: Int[Array, " B"],
    *,
    rules: ShardingRules,
) -> DecodeState:
    """Start the sequences that `starts` names, in `phase` and after `num_thinking` tokens, and end those that `ends` names.

    All else stays as it is, the caches of ended sequences included. `state` is donated. `last_token` is the one before the next. A
    sequence with 0 tokens starts after its prompt. One with more is a fork. Its first tokens are forced, so it needs no hidden state.
    """
    hidden = jnp.repeat(prompts.hidden, len(starts) // len(prompts.hidden), axis=0)
    new = budget.init_state(vocabulary, rows.settings, last_token, phase, num_thinking, num_ignored)

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(starts.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    row = jax.tree.map(pick, new, state.row)
    state = state._replace(
        cache=state.cache._replace(segment_ids=pick(jnp.zeros((), jnp.int32), state.cache.segment_ids)),
        hidden=pick(hidden[:, None], state.hidden),
        position=pick(rows.prefix_end, state.position),
        row=row._replace(phase=jnp.where(ends, Phase.DONE, row.phase)),
        is_finite=starts | state.is_finite,
    )
    return pin(state, rules)


@functools.partial(jax.jit, static_argnames=("width", "rules"))
def widen_queue(queue: Int[Array, "B Q"], *, width: int, rules: ShardingRules) -> Int[Array, "B W"]:
    """Return the queues of forced ids with room for `width` ids."""
    return pin(jnp.pad(queue, ((0, 0), (0, width - queue.shape[1]))), rules)


@functools.partial(jax.jit, static_argnames=("config", "rules", "scores", "attention"), donate_argnames="state")
def advance(
    params: Params,
    vocabulary: Vocabulary,
    rows: Rows,
    prefixes: tuple[KVCache, ...],
    state: DecodeState,
    max_steps: Int[Array, ""],
    max_done: Int[Array, ""],
    *,
    config: ModelConfig,
    rules: ShardingRules,
    scores: bool = False,
    attention: CacheBackend | None = None,
) -> DecodeState:
    """Decode until all sequences are done, or `max_done` of them, or for `max_steps` steps; return the new state. `state` is donated.

    `prefixes` hold the tokens before the sequences' own, one cache per group of sequences (`ops/attention.py`). With `scores` the
    log-probabilities are kept too.
    """
    model = nnx.merge(graphdef(config, rules, "per_layer"), params)
    row_keys = sampling.row_keys(*rows.seeds.T)
    ends = vocabulary.ends
    masks = jnp.stack([vocabulary.exists, vocabulary.exists & (ends.next_state[0] == 0)])

    def unfinished(state: DecodeState) -> jax.Array:
        num_done = jnp.sum(state.row.phase == Phase.DONE)
        return (num_done < rows.seeds.shape[0]) & (num_done < max_done) & (state.num_steps < max_steps)

    def step(state: DecodeState) -> DecodeState:
        state = state._replace(cache=with_row(state.cache))
        logits = model.logits(state.hidden[:, -1:])[:, 0]
        keys = jax.vmap(jax.random.fold_in)(row_keys, state.row.num_tokens)
        token, redraw = sampling.draw(logits, masks, keys, rows.sampling)
        now, row = budget.transition(vocabulary, rows.settings, state.row, token, redraw)
        num_taken_back = state.row.num_tokens - now.place
        position = state.position - num_taken_back
        live = now.emits.astype(jnp.int32)
        new = [jnp.where(now.emits, now.token, -1), now.place, now.forced, now.tries]
        if scores:
            of_token, *others = logprobs.of_step(logits, vocabulary.exists, ends, state.row.match, now.token)
            new += [jnp.where(now.forced, 0, of_token), *others]
        written = [
            jax.lax.dynamic_update_slice_in_dim(held, column[:, None], state.num_steps, axis=1)
            for held, column in zip(state.emitted, new, strict=False)
        ]
        kept = state.cache.positions < position[:, None]
        cache = state.cache._replace(segment_ids=jnp.where(kept, state.cache.segment_ids, 0))
        inputs = (now.token[:, None], position[:, None], live[:, None])
        hidden, cache = model(*inputs, cache, prefixes, rows.prefix_end, attention=attention)
        # A sequence that emits nothing draws its next token from the state before the tokens that it took back.
        earlier = jnp.take_along_axis(state.hidden, ends.num_states - 1 - num_taken_back[:, None, None], axis=1)
        hidden = jnp.where(now.emits[:, None, None], hidden, earlier)
        is_finite = jnp.isfinite(state.hidden[:, -1]).all(axis=-1) | (state.row.phase == Phase.DONE)
        return DecodeState(
            cache=without_row(cache),
            hidden=jnp.concatenate([state.hidden[:, 1:], hidden], axis=1),
            position=position + live,
            row=row,
            num_steps=state.num_steps + 1,
            is_finite=state.is_finite & is_finite,
            emitted=Emitted(*written, *state.emitted[len(written) :]),
        )

    state = state._replace(cache=without_row(state.cache), num_steps=jnp.zeros((), jnp.int32))
    state = jax.lax.while_loop(unfinished, step, state)
    return pin(state._replace(cache=with_row(state.cache)), rules)
