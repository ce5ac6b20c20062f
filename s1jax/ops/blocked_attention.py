"""Attention of rows over themselves in XLA, forward and backward, with memory that grows linearly with the length.

A row is cut into blocks, and only pairs of blocks are visited that hold a query and a key that may see each other by the mask contract of
`attention.py`. So the cost of a packed row is the cost of its segments. Outputs of padding are finite and have no meaning.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

MASKED_SCORE = -1e30
MAX_BLOCK = 256
"""Tokens per block. Larger blocks waste more work on packed rows; smaller blocks waste more time in the loop over pairs."""
SAVED = "attention"
"""The `checkpoint_name` of the arrays that the forward pass saves for the backward pass, in addition to the inputs."""


def saves_attention(primitive, *_, **params) -> bool:
    """Return whether a backward pass of attention needs this operation's result: a policy for `jax.checkpoint`, for all backends."""
    kernels = ("pallas_call", "dot_product_attention_fwd_wrapper")
    return params.get("name") == SAVED or primitive.name in kernels


class _Blocks(NamedTuple):
    """What the loops over pairs of blocks read. Block `b * n + i` is block `i` of the n blocks of row `b`; s is a block's length."""

    positions: Int[Array, "Bn s"]
    segment_ids: Int[Array, "Bn s"]
    queries: Int[Array, " P"]
    """The query block of each pair. Only the first `num_pairs` of the P pairs are visited."""
    keys: Int[Array, " P"]
    """The key block of each pair."""
    num_pairs: Int[Array, ""]


def blocked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    max_block: int = MAX_BLOCK,
) -> Float[Array, "B T N H"]:
    """Return attention with an online softmax over blocks (arXiv 2205.14135), with the scores of one pair of blocks in memory at a time."""
    (B, T, N, H), K = q.shape, k.shape[1]
    num_blocks = -(-T // max_block)
    size = -(-T // num_blocks)

    def split(x: jax.Array, axis: int) -> jax.Array:
        """Cut the length into blocks and move them to the first dimension. The last block is padded with segment 0."""
        x = jnp.moveaxis(x, axis, 1)
        x = jnp.pad(x, [(0, 0), (0, num_blocks * size - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B * num_blocks, size, *x.shape[2:]), 1, axis)

    # All queries of a key/value head form one matrix. Keys and values have their tokens last, which makes products on CPUs faster.
    q = split(q.reshape(B, T, K, N // K, H), 1).transpose(0, 2, 3, 1, 4).reshape(B * num_blocks, K, -1, H)
    k, v = split(k, 3), split(v.swapaxes(2, 3), 3)
    positions, segment_ids = split(positions, 1), split(segment_ids, 1)
    needed = _needed_pairs(positions, segment_ids, B)
    row, i, j = jnp.nonzero(needed, size=needed.size, fill_value=0)
    blocks = _Blocks(positions, segment_ids, row * num_blocks + i, row * num_blocks + j, needed.sum())
    output = _flash(q, k, v, blocks).reshape(-1, K, N // K, size, H)
    return output.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, H)[:, :T]


def _needed_pairs(positions: Int[Array, "Bn s"], segment_ids: Int[Array, "Bn s"], B: int) -> Bool[Array, "B n n"]:
    """Return which query blocks must visit which key blocks.

    A visible key has a segment between those of the block's first and last query, and comes no later than the last query. The result holds
    every needed pair and, if the segments of a row come in order, no other pair.
    """
    largest = jnp.iinfo(jnp.int32).max
    real = segment_ids > 0
    first, last = jnp.where(real, segment_ids, largest).min(axis=1), jnp.where(real, segment_ids, 0).max(axis=1)
    at_first = jnp.where(segment_ids == first[:, None], positions, largest).min(axis=1)
    at_last = jnp.where(segment_ids == last[:, None], positions, -largest).max(axis=1)
    q_first, q_last, q_at_last = (x.reshape(B, -1, 1) for x in (first, last, at_last))
    k_first, k_last, k_at_first = (x.reshape(B, 1, -1) for x in (first, last, at_first))
    not_after = (k_first < q_last) | ((k_first == q_last) & (k_at_first <= q_at_last))
    return (q_first <= k_last) & not_after & (q_last > 0)


@jax.custom_vjp
def _flash(
    q: Float[Array, "Bn K Q H"], k: Float[Array, "Bn K H s"], v: Float[Array, "Bn K H s"], blocks: _Blocks
) -> Float[Array, "Bn K Q H"]:
    return _flash_forward(q, k, v, blocks)[0]


def _flash_forward(q, k, v, blocks):
    def visit(pair, carry):
        output, largest, total = carry  # for all query blocks, after the pairs visited so far
        i, j = blocks.queries[pair], blocks.keys[pair]
        scores = _scores(q[i], k[j], blocks, i, j)
        new_largest = jnp.maximum(largest[i], scores.max(axis=-1))
        weights, shrink = jnp.exp(scores - new_largest[..., None]), jnp.exp(largest[i] - new_largest)
        added = _dot("KQS,KHS->KQH", weights.astype(v.dtype), v[j])
        output = output.at[i].set(output[i] * shrink[..., None] + added)
        return output, largest.at[i].set(new_largest), total.at[i].set(total[i] * shrink + weights.sum(axis=-1))

    zeros = jnp.zeros(q.shape[:-1], jnp.float32)
    # `largest` starts far above a masked score, so a masked key has weight 0 even before the query has seen another key.
    start = jnp.zeros(q.shape, jnp.float32), zeros + MASKED_SCORE / 10, zeros
    output, largest, total = jax.lax.fori_loop(0, blocks.num_pairs, visit, start)
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # padding has total 0 and output 0
    output = checkpoint_name((output / total[..., None]).astype(q.dtype), SAVED)
    return output, (q, k, v, blocks, output, checkpoint_name(largest + jnp.log(total), SAVED))


def _flash_backward(saved, d_output):
    q, k, v, blocks, output, log_total = saved
    # Gradient of a softmax: d_scores = weights * (d_weights - sum(weights * d_weights)), and that sum equals output . d_output.
    mean = (output.astype(jnp.float32) * d_output.astype(jnp.float32)).sum(axis=-1)

    def visit(pair, gradients):
        dq, dk, dv = gradients
        i, j = blocks.queries[pair], blocks.keys[pair]
        weights = jnp.exp(_scores(q[i], k[j], blocks, i, j) - log_total[i][..., None])
        d_weights = _dot("KQH,KHS->KQS", d_output[i], v[j])
        d_scores = (weights * (d_weights - mean[i][..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
        dq = dq.at[i].add(_dot("KQS,KHS->KQH", d_scores, k[j]))
        dk = dk.at[j].add(_dot("KQS,KQH->KHS", d_scores, q[i]))
        return dq, dk, dv.at[j].add(_dot("KQS,KQH->KHS", weights.astype(q.dtype), d_output[i]))

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    gradients = jax.lax.fori_loop(0, blocks.num_pairs, visit, start)
    return *(g.astype(x.dtype) for g, x in zip(gradients, (q, k, v), strict=True)), None


_flash.defvjp(_flash_forward, _flash_backward)


def _scores(q: Float[Array, "K Q H"], k: Float[Array, "K H s"], blocks: _Blocks, i, j) -> Float[Array, "K Q s"]:
    (K, Q, H), size = q.shape, k.shape[-1]
    segments, key_segments = blocks.segment_ids[i][:, None], blocks.segment_ids[j][None]
    mask = (segments == key_segments) & (segments > 0) & (blocks.positions[j][None] <= blocks.positions[i][:, None])
    scores = (_dot("KQH,KHS->KQS", q, k) * H**-0.5).reshape(K, -1, *mask.shape)
    return jnp.where(mask, scores, MASKED_SCORE).reshape(K, Q, size)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
