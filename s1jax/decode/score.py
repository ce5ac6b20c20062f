"""Scoring: (prompt, continuation) pairs of ids -> for each id of the continuation its log-probability, and whether it is the likeliest.

The log-probabilities are a float32 log-softmax over the model's whole vocabulary, as in Hugging Face transformers, without temperature,
filters or a mask of ids. A prompt that several pairs share is read once per `MAX_CONTINUATIONS` of them. Its continuations sit side by side
and read its cache in place, as in decoding. Logits exist for few positions at a time.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from s1jax.decode.loaded import LoadedModel, fetch
from s1jax.decode.prefill import (
    PREFILL_TOKENS,
    empty_prompts,
    power_of_two,
    prefill_batches,
    prefill_prompts,
    prompt_bucket,
)
from s1jax.model.cache import KVCache
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params, graphdef
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import ShardingRules

Pair = tuple[Sequence[int], Sequence[int]]
"""Ids of a prompt and of its continuation."""
MAX_CONTINUATIONS = 8
"""Continuations per copy of a prompt."""
MAX_LOGITS = 256
"""Positions whose logits exist at a time."""


class Scores(NamedTuple):
    """What the model says about the ids of one continuation."""

    logprobs: Float[np.ndarray, " n"]
    is_greedy: Bool[np.ndarray, " n"]
    """Whether greedy decoding would choose the id at its place. Of ids that are equally likely, it chooses the lowest."""


class _Shapes(NamedTuple):
    """What decides which program is compiled."""

    num_continuations: int
    prompt_capacity: int
    capacity: int
    """Slots per continuation."""


def score_all(model: LoadedModel, pairs: Sequence[Pair]) -> list[Scores]:
    """Return the scores of each continuation. Call it under the model's mesh.

    Raises UserError for an empty prompt, for an id that the model does not have, or for a pair that is longer than its context. The last
    id needs no position, since nothing comes after it.
    """
    context, vocab_size = model.config.context_length, model.config.vocab_size
    for prompt, continuation in pairs:
        if not len(prompt):
            raise UserError("the prompt is empty: a continuation is scored after at least one id")
        if (total := len(prompt) + len(continuation) - 1) > context:
            raise UserError(
                f"a prompt and its continuation need {total} positions; the model has {context}: shorten one of them"
            )
        if outside := [i for i in (*prompt, *continuation) if not 0 <= i < vocab_size]:
            raise UserError(f"the model has ids from 0 to {vocab_size - 1}; {outside[0]} is none of them")
    scores = [
        Scores(np.zeros(n, np.float32), np.zeros(n, bool)) for n in (len(continuation) for _, continuation in pairs)
    ]
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, continuation) in enumerate(pairs):
        if len(continuation):
            by_prompt.setdefault(tuple(prompt), []).append(i)
    by_shapes: dict[_Shapes, list[tuple[tuple[int, ...], list[int]]]] = {}
    for prompt, indices in by_prompt.items():
        for begin in range(0, len(indices), MAX_CONTINUATIONS):
            group = indices[begin : begin + MAX_CONTINUATIONS]
            longest = max(len(pairs[i][1]) for i in group)
            shapes = _Shapes(power_of_two(len(group)), prompt_bucket(len(prompt)), prompt_bucket(longest))
            by_shapes.setdefault(shapes, []).append((prompt, group))
    for shapes, groups in by_shapes.items():
        capacity = shapes.num_continuations * (shapes.prompt_capacity + shapes.capacity)
        for some, size in prefill_batches(groups, capacity):
            continuations = [[pairs[i][1] for i in indices] for _, indices in some]
            found = _score_batch(model, [prompt for prompt, _ in some], continuations, size, shapes)
            for place, (_, indices) in enumerate(some):
                for row, i in enumerate(indices, place * shapes.num_continuations):
                    length = len(pairs[i][1])
                    scores[i] = Scores(found.logprobs[row, :length], found.is_greedy[row, :length])
    return scores


def _score_batch(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    num_prompts: int,
    shapes: _Shapes,
) -> Scores:
    """Return the scores of the continuations of each prompt, row by row: arrays [B, S]. Values past their ends have no meaning."""
    num_rows = num_prompts * shapes.num_continuations
    tokens = np.zeros((num_rows, shapes.capacity), np.int32)
    prompt_lengths, lengths = np.zeros((2, num_rows), np.int32)
    for place, of_prompt in enumerate(continuations):
        for row, ids in enumerate(of_prompt, place * shapes.num_continuations):
            tokens[row, : len(ids)], lengths[row], prompt_lengths[row] = ids, len(ids), len(prompts[place])
    read = prefill_prompts(model, prompts, num_prompts, shapes.prompt_capacity)
    hidden = jnp.repeat(read.hidden, shapes.num_continuations, axis=0)
    cache = empty_prompts(**model.static, num_prompts=num_rows, capacity=shapes.capacity).cache
    scores = []
    for begin in range(0, int(lengths.max()), PREFILL_TOKENS):
        piece = tokens[:, begin : begin + PREFILL_TOKENS]
        *found, hidden, cache = _score_piece(
            model.params, read.cache, prompt_lengths, cache, hidden, piece, lengths,
            **model.static, attention=model.attention,
        )  # fmt: skip
        scores.append(found)
    logprobs, is_greedy = (np.concatenate(pieces, axis=1) for pieces in zip(*fetch(scores), strict=True))
    return Scores(logprobs, is_greedy)


@functools.partial(jax.jit, static_argnames=("config", "rules", "attention"), donate_argnames="cache")
def _score_piece(
    params: Params,
    prompts: KVCache,
    prompt_lengths: Int[Array, " B"],
    cache: KVCache,
    hidden_before: Float[Array, "B D"],
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    *,
    config: ModelConfig,
    rules: ShardingRules,
    attention: CacheBackend | None,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Float[Array, "B D"], KVCache]:
    """Score the next T tokens of continuations: return their log-probabilities, whether each is the likeliest, the last hidden state and
    the cache, which is donated.

    `hidden_before` is the final hidden state of the token before the first of them. `lengths` are whole continuations.
    """
    B, T = tokens.shape
    model = nnx.merge(graphdef(config, rules, "per_layer"), params)
    place = cache.num_written + jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    segment_ids = (place < lengths[:, None]).astype(jnp.int32)
    positions = prompt_lengths[:, None] + place
    hidden, cache = model(tokens, positions, segment_ids, cache, (prompts,), prompt_lengths, attention=attention)
    before = jnp.concatenate([hidden_before[:, None], hidden[:, :-1]], axis=1)
    width = math.gcd(T, max(1, MAX_LOGITS // B))

    def score(begin: Int[Array, ""]) -> tuple[Float[Array, "B C"], Bool[Array, "B C"]]:
        here = [jax.lax.dynamic_slice_in_dim(x, begin, width, axis=1) for x in (before, tokens)]
        logits = model.logits(here[0])
        of_token = jnp.take_along_axis(logits, here[1][:, :, None], axis=2)[:, :, 0]
        return of_token - jax.nn.logsumexp(logits, axis=-1), logits.argmax(axis=-1) == here[1]

    pieces = jax.lax.map(score, jnp.arange(0, T, width))
    logprobs, is_greedy = (piece.swapaxes(0, 1).reshape(B, T) for piece in pieces)
    return logprobs, is_greedy, hidden[:, -1], cache
