"""Attention that holds all scores at once: for short rows, and for queries over caches where XLA computes them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from s1jax.ops.blocked_attention import MASKED_SCORE
from s1jax.ops.keys_values import KeysValues
from s1jax.ops.quantization import values_and_scale


def dense_attention(
    q: Float[Array, "B T N H"], caches: Sequence[KeysValues], masks: Sequence[Bool[Array, "B T _"]]
) -> Float[Array, "B T N H"]:
    """Return softmax(q k^T / sqrt(H)) v over the slots of all `caches` together that each query sees by `masks` [B, T, S].

    A cache of A rows serves B / A consecutive rows each.
    """
    scores = [_scores(q, cache, mask) for cache, mask in zip(caches, masks, strict=True)]
    largest = jax.lax.stop_gradient(jnp.stack([_by_row(x.max(axis=-1)) for x in scores]).max(axis=0))
    parts = [_weighted(x, largest, cache, q.dtype) for x, cache in zip(scores, caches, strict=True)]
    sums, outputs = zip(*parts, strict=True)
    return (sum(outputs) / sum(sums)[..., None]).transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


def _scores(q: Float[Array, "B T N H"], cache: KeysValues, mask: Bool[Array, "B T S"]) -> Float[Array, "A K F G T S"]:
    """Return masked scores for the A rows of a cache, each of which serves F = B / A rows with G = N / K query heads per head."""
    (B, T, N, H), (keys, scale) = q.shape, values_and_scale(cache.k)
    A, K = keys.shape[:2]
    # All queries of a key/value head form one matrix [F * G * T, H], because batched products of this plain form are fast.
    q = q.reshape(A, B // A, T, K, N // K, H).transpose(0, 3, 1, 4, 2, 5)
    flat = q.reshape(A, K, -1, H)
    scores = jnp.einsum("AKQH,AKHS->AKQS", flat, keys.astype(q.dtype), preferred_element_type=jnp.float32) * H**-0.5
    if scale is not None:
        scores *= scale
    return jnp.where(mask.reshape(A, 1, B // A, 1, T, -1), scores.reshape(*q.shape[:-1], -1), MASKED_SCORE)


def _weighted(
    scores: Float[Array, "A K F G T S"], largest: Float[Array, "B K G T"], cache: KeysValues, dtype: jnp.dtype
) -> tuple[Float[Array, "B K G T"], Float[Array, "B K G T H"]]:
    """Return the sum of the weights exp(score - largest) and the sum of the weighted values."""
    A, K, F, G, T, S = scores.shape
    weights = jnp.exp(scores - largest.reshape(A, F, K, G, T).swapaxes(1, 2)[..., None])
    values, scale = values_and_scale(cache.v)
    flat = weights.reshape(A, K, F * G * T, S)
    if scale is not None:
        flat *= scale.swapaxes(2, 3)
    output = jnp.einsum("AKQS,AKSH->AKQH", flat.astype(dtype), values.astype(dtype), preferred_element_type=jnp.float32)
    return _by_row(weights.sum(axis=-1)), _by_row(output.reshape(A, K, F, G, T, -1))


def _by_row(x: Float[Array, "A K F ..."]) -> Float[Array, "B K ..."]:
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], *x.shape[3:])
