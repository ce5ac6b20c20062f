"""Attention: q, k, v, positions and segments -> output, behind one call with one mask contract.

A query sees a key exactly when both are of the same segment and the key's position is not after the query's. Segment 0 is padding. That
one rule serves packed training (several segments a row), padded prefill, and decoding from a cache whose unwritten slots are of segment 0.
A query of segment 0 gets finite values that mean nothing.

Rows of queries may share what came before them: a `Prefix` row serves several consecutive rows, which read it in place and see of it
only what lies before a position of their own. So samples share a prompt, and answers a thinking trace.

Keys and values may be quantized (`quantization.py`), with a scale for each of the S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from s1jax.quantization import values_and_scale

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

MASKED_SCORE = -1e30


class Prefix(NamedTuple):
    """Keys and values shared by rows of queries: row `a` serves the rows `a * B / A` to `(a + 1) * B / A` of the B."""

    k: Float[Array, "A K H S"]
    v: Float[Array, "A K S H"]
    positions: Int[Array, "A S"]
    segment_ids: Int[Array, "A S"]


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K H S"],
    v: Float[Array, "B K S H"],
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    q_segment_ids: Int[Array, "B T"],
    kv_segment_ids: Int[Array, "B S"],
    prefixes: Sequence[Prefix] = (),
    prefix_end: Int[Array, " B"] | None = None,
) -> Float[Array, "B T N H"]:
    """Return softmax(q k^T / sqrt(H)) v under the module's mask, each key/value head serving N / K query heads.

    Of the prefixes a row sees the keys of its segment at positions before `prefix_end`, which is needed if there are any. Scores and
    softmax are float32; the output has the dtype of `q`.
    """
    B, T, N, H = q.shape
    q = q.reshape(B, T, k.shape[1], -1, H)
    causal = kv_positions[:, None, :] <= q_positions[:, :, None]
    parts = [_Part(q, k, v, causal & (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]))]
    for prefix in prefixes:
        if prefix_end is None:
            raise ValueError("prefixes need a prefix_end")
        shared = B // prefix.k.shape[0]
        positions, segment_ids = (jnp.repeat(x, shared, axis=0) for x in (prefix.positions, prefix.segment_ids))
        before = positions[:, None, :] < prefix_end[:, None, None]
        mask = before & (q_segment_ids[:, :, None] == segment_ids[:, None, :])
        parts.append(_Part(q, prefix.k, prefix.v, mask))
    # One softmax over all parts, normalised at the end.
    largest = jax.lax.stop_gradient(jnp.stack([part.largest() for part in parts]).max(axis=0))
    sums, outputs = zip(*[part.weigh(largest) for part in parts], strict=True)
    return (sum(outputs) / sum(sums)[..., None]).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q.dtype)


class _Part:
    """Scores of the queries [B, T, K, G, H] for keys [A, K, H, S] and values [A, K, S, H]; what it returns is [B, K, G, T, ...]."""

    def __init__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Bool[Array, "B T S"]):
        B, T, K, G, H = q.shape
        A, self.v, self.shape = k.shape[0], v, (B, K, G, T)
        self.folded = (A, K, B // A, G, T)
        # All queries of a key/value head form one matrix [B / A * G * T, H]: batched products of this plain form are the fast ones.
        self.dtype, (keys, scale) = q.dtype, values_and_scale(k)
        q = q.reshape(A, B // A, T, K, G, H).transpose(0, 3, 1, 4, 2, 5).reshape(A, K, -1, H)
        scores = jnp.einsum("AKQH,AKHS->AKQS", q, keys.astype(q.dtype), preferred_element_type=jnp.float32) * H**-0.5
        if scale is not None:
            scores *= scale
        mask = mask.reshape(A, 1, B // A, 1, T, -1)
        self.scores = jnp.where(mask, scores.reshape(*self.folded, -1), MASKED_SCORE)

    def largest(self) -> jax.Array:
        """Return each query's largest score [B, K, G, T]."""
        return self._unfold(self.scores.max(axis=-1))

    def weigh(self, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the sum of the weights exp(score - largest) [B, K, G, T], and of the weighted values [B, K, G, T, H]."""
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
