"""Attention that holds all scores at once: for short rows, and for queries over caches where XLA computes them.

All parts (a row's own cache and its prefixes) share one softmax, which is normalised at the end.
"""

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
    """Return softmax(q k^T / sqrt(H)) v over the keys that each query sees in all `caches` together.

    `masks[i]` [B, T, S] says which slots of `caches[i]` each query sees. A cache of A rows serves B / A consecutive rows each.
    """
    B, T, N, H = q.shape
    q = q.reshape(B, T, caches[0].k.shape[1], -1, H)
    parts = [_Part(q, cache, mask) for cache, mask in zip(caches, masks, strict=True)]
    largest = jax.lax.stop_gradient(jnp.stack([part.largest() for part in parts]).max(axis=0))
    sums, outputs = zip(*[part.weighted(largest) for part in parts], strict=True)
    return (sum(outputs) / sum(sums)[..., None]).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q.dtype)


class _Part:
    """The scores of queries [B, T, K, G, H] for one cache. G = N / K is the number of query heads per key/value head."""

    def __init__(self, q: Float[Array, "B T K G H"], cache: KeysValues, mask: Bool[Array, "B T S"]):
        B, T, K, G, H = q.shape
        A, self.v, self.shape = cache.k.shape[0], cache.v, (B, K, G, T)
        self.folded = (A, K, B // A, G, T)
        # All queries of a key/value head form one matrix [B / A * G * T, H], because batched products of this plain form are fast.
        self.dtype, (keys, scale) = q.dtype, values_and_scale(cache.k)
        q = q.reshape(A, B // A, T, K, G, H).transpose(0, 3, 1, 4, 2, 5).reshape(A, K, -1, H)
        scores = jnp.einsum("AKQH,AKHS->AKQS", q, keys.astype(q.dtype), preferred_element_type=jnp.float32) * H**-0.5
        if scale is not None:
            scores *= scale
        mask = mask.reshape(A, 1, B // A, 1, T, -1)
        self.scores = jnp.where(mask, scores.reshape(*self.folded, -1), MASKED_SCORE)

    def largest(self) -> Float[Array, "B K G T"]:
        """Return each query's largest score."""
        return self._unfold(self.scores.max(axis=-1))

    def weighted(self, largest: Float[Array, "B K G T"]) -> tuple[Float[Array, "B K G T"], Float[Array, "B K G T H"]]:
        """Return the sum of the weights exp(score - largest) and the sum of the weighted values."""
        A, K, F, G, T = self.folded
        weights = jnp.exp(self.scores - largest.reshape(A, F, K, G, T).swapaxes(1, 2)[..., None])
        values, scale = values_and_scale(self.v)
        flat = weights.reshape(A, K, F * G * T, -1)
        if scale is not None:
            flat *= scale.swapaxes(2, 3)
        output = jnp.einsum(
            "AKQS,AKSH->AKQH", flat.astype(self.dtype), values.astype(self.dtype), preferred_element_type=jnp.float32
        )
        return self._unfold(weights.sum(axis=-1)), self._unfold(output.reshape(*self.folded, -1))

    def _unfold(self, x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2).reshape(*self.shape, *x.shape[5:])
