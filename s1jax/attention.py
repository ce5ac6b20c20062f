"""Attention: q, k, v, positions and segments -> output, behind one call with one mask contract.

A query sees a key exactly when both are of the same segment and the key's position is not after the query's. Segment 0 is padding. That
one rule serves packed training (several segments a row), padded prefill, and decoding from a cache whose unwritten slots are of segment 0.
A query of segment 0 gets finite values that mean nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

MASKED_SCORE = -1e30


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    q_segment_ids: Int[Array, "B T"],
    kv_segment_ids: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """Return softmax(q k^T / sqrt(H)) v under the module's mask, each key/value head serving N / K query heads.

    Scores and softmax are float32; the output has the dtype of `q`.
    """
    B, T, N, H = q.shape
    K = k.shape[1]
    # All queries of a key/value head form one matrix [G * T, H]: batched matrix products of this plain form are the fast ones everywhere.
    q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores = jnp.einsum("BKQH,BKSH->BKQS", q, k, preferred_element_type=jnp.float32) * H**-0.5
    mask = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (
        kv_positions[:, None, :] <= q_positions[:, :, None]
    )
    scores = jnp.where(mask[:, None, None], scores.reshape(B, K, N // K, T, -1), MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(B, K, N // K * T, -1)
    output = jnp.einsum("BKQS,BKSH->BKQH", weights, v, preferred_element_type=jnp.float32)
    return output.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q.dtype)
