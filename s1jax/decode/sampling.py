"""Sampling: logits -> token, by row settings (greedy, temperature, top-k, top-p, min-p) under a vocabulary mask.

Every setting is a [B] array, so one compiled program serves any mixture. The draw is the Gumbel-max trick. Its key is folded from (seed,
problem, sample, position), so a draw does not depend on the row's neighbours, its slot or its budget.

Invariant: an id whose `allowed` is False is never drawn (the padding rows of Qwen2.5's vocabulary have no text).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

NEVER = -1e30


class SamplingSettings(NamedTuple):
    """Sampling settings of each row."""

    temperature: Float[Array, " B"]
    """0 is greedy; the filters then have no effect."""
    top_k: Int[Array, " B"]
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: Float[Array, " B"]
    """Keep the likeliest tokens until their probability reaches p; 1 keeps all."""
    min_p: Float[Array, " B"]
    """Drop tokens less likely than p times the likeliest; 0 drops none."""


def row_keys(seed: Int[Array, " B"], problem: Int[Array, " B"], sample: Int[Array, " B"]) -> Key[Array, " B"]:
    """Return one PRNG key per row; fold in the position before each draw."""

    def key(seed, problem, sample):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), problem), sample)

    return jax.vmap(key)(seed, problem, sample)


def filter_scores(scores: Float[Array, "B V"], settings: SamplingSettings) -> Float[Array, "B V"]:
    """Return log-probability scores with the tokens that top-k, top-p or min-p drop set to NEVER.

    Filters apply in that order to the distribution after temperature, as in Hugging Face transformers; the likeliest token always stays.
    """
    V = scores.shape[-1]
    descending = -jnp.sort(-scores, axis=-1)
    k = jnp.where(settings.top_k > 0, settings.top_k, V).clip(1, V)
    kth = jnp.take_along_axis(descending, (k - 1)[:, None], axis=1)
    kept = jnp.where(descending >= kth, descending, NEVER)
    probabilities = jax.nn.softmax(kept, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    num_kept = jnp.sum((before < settings.top_p[:, None]) & (kept > NEVER), axis=-1).clip(1)
    last = jnp.take_along_axis(descending, (num_kept - 1)[:, None], axis=1)
    floor = descending[:, :1] + jnp.log(jnp.maximum(settings.min_p, 1e-30))[:, None]
    return jnp.where((scores >= last) & (scores >= floor), scores, NEVER)


def draw(
    logits: Float[Array, "B V"], allowed: Bool[Array, "M V"], keys: Key[Array, " B"], settings: SamplingSettings
) -> Int[Array, "M B"]:
    """Return one token per row under each of M masks, all from the same noise.

    Sorting is skipped while no row filters, and noise while every row is greedy.
    """

    def greedy() -> Int[Array, "M B"]:
        return jnp.argmax(jnp.where(allowed[:, None], logits, NEVER), axis=-1)

    def sampled() -> Int[Array, "M B"]:
        scaled = logits / jnp.maximum(settings.temperature, 1e-6)[:, None]
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (logits.shape[-1],)))(keys)
        filters = jnp.any((settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0))
        scores = jnp.where(allowed[:, None], scaled, NEVER)
        filter_all = jax.vmap(functools.partial(filter_scores, settings=settings))
        scores = jax.lax.cond(filters, filter_all, lambda x: x, scores)
        drawn = jnp.argmax(jnp.where(scores > NEVER, scores + noise, NEVER), axis=-1)
        return jnp.where(settings.temperature > 0, drawn, greedy())

    return jax.lax.cond(jnp.all(settings.temperature <= 0), greedy, sampled).astype(jnp.int32)
