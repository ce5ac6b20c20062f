"""Attention of rows over themselves, forward and backward, in memory that grows with the length and not with its square.

q, k, v, positions and segment ids of whole rows on one device -> output, by one kernel for each of four backends. `xla` is written here:
pairs of blocks, of which only those are visited that hold a query and a key that may see each other, so that a packed row costs what its
segments cost; `pallas` (GPU), which does so too, in `packed_attention.py`. `splash` (TPU) and `cudnn` are jax's.

`xla` follows the mask contract of `attention.py` for any positions and segments. The others compare places in the row instead of positions,
which is the same where segments lie in the order of their ids and positions grow along each, and `cudnn` knows no segments. A row that
breaks what its kernel assumes gives NaN, which no loss survives, instead of numbers under another mask. Outputs of padding are finite
and mean nothing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

MASKED_SCORE = -1e30
LARGEST_BLOCK = 256
"""Of tokens, for `xla`: larger blocks waste more of packed rows, smaller ones more of the loop around them."""
SAVED = "attention"
"""Name of what the backward pass of `xla` needs of its forward pass besides its inputs, for rematerialisation (`saves_attention`)."""


def saves_attention(primitive, *_, **params) -> bool:
    """Whether an operation's result is what a kernel's backward pass needs: a policy of `jax.checkpoint`."""
    kernels = ("pallas_call", "dot_product_attention_fwd_wrapper")
    return params.get("name") == SAVED or primitive.name in kernels


# Blocks in XLA.


class _Blocks(NamedTuple):
    """What the loops over pairs of blocks read: block `b * n + i` is block `i` of the `n` of row `b`, `s` is its length."""

    positions: Int[Array, "Bn s"]
    segment_ids: Int[Array, "Bn s"]
    queries: Int[Array, " P"]
    """The pairs to visit, first `num_pairs` of P: the query block of each ..."""
    keys: Int[Array, " P"]
    """... and its key block."""
    num_pairs: Int[Array, ""]


def blocked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    largest_block: int = LARGEST_BLOCK,
) -> Float[Array, "B T N H"]:
    """Return attention with an online softmax over blocks (arXiv 2205.14135), on any platform.

    Beyond inputs and outputs, memory holds the float32 scores of one pair of blocks [K, N / K * s, s].
    """
    (B, T, N, H), K = q.shape, k.shape[1]
    num_blocks = -(-T // largest_block)
    size = -(-T // num_blocks)

    def split(x: jax.Array, axis: int) -> jax.Array:
        """Cut the length into blocks, and put these next to the rows; what fills the last is of segment 0."""
        x = jnp.moveaxis(x, axis, 1)
        x = jnp.pad(x, [(0, 0), (0, num_blocks * size - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B * num_blocks, size, *x.shape[2:]), 1, axis)

    # All queries of a key/value head form one matrix; keys and values have their tokens last, which suits the products of CPUs.
    q = split(q.reshape(B, T, K, N // K, H), 1).transpose(0, 2, 3, 1, 4).reshape(B * num_blocks, K, -1, H)
    k, v = split(k, 3), split(v.swapaxes(2, 3), 3)
    positions, segment_ids = split(positions, 1), split(segment_ids, 1)
    needed = _needed_pairs(positions, segment_ids, B)
    row, i, j = jnp.nonzero(needed, size=needed.size, fill_value=0)
    blocks = _Blocks(positions, segment_ids, row * num_blocks + i, row * num_blocks + j, needed.sum())
    output = _flash(q, k, v, blocks).reshape(-1, K, N // K, size, H)
    return output.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, H)[:, :T]


def _needed_pairs(positions: Int[Array, "Bn s"], segment_ids: Int[Array, "Bn s"], B: int) -> Bool[Array, "B n n"]:
    """Return which query blocks have to visit which key blocks.

    By the first and the last of a block's tokens in the order of (segment, position): a visible key is of a segment between the query
    block's first and last, and not after the last query in that order. Never too few; exactly right where segments come in order.
    """
    largest = jnp.iinfo(jnp.int32).max
    real = segment_ids > 0
    first, last = jnp.where(real, segment_ids, largest).min(axis=1), jnp.where(real, segment_ids, 0).max(axis=1)
    at_first = jnp.where(segment_ids == first[:, None], positions, largest).min(axis=1)
    at_last = jnp.where(segment_ids == last[:, None], positions, -largest).max(axis=1)
    of_queries = [x.reshape(B, -1, 1) for x in (first, last, at_last)]
    of_keys = [x.reshape(B, 1, -1) for x in (first, last, at_first)]
    (q_first, q_last, q_at_last), (k_first, k_last, k_at_first) = of_queries, of_keys
    not_after = (k_first < q_last) | ((k_first == q_last) & (k_at_first <= q_at_last))
    return (q_first <= k_last) & not_after & (q_last > 0)


@jax.custom_vjp
def _flash(
    q: Float[Array, "Bn K Q H"], k: Float[Array, "Bn K H s"], v: Float[Array, "Bn K H s"], blocks: _Blocks
) -> Float[Array, "Bn K Q H"]:
    return _flash_forward(q, k, v, blocks)[0]


def _flash_forward(q, k, v, blocks):
    def visit(pair, carry):
        output, largest, total = carry  # of all query blocks, as the pairs visited so far have them
        i, j = blocks.queries[pair], blocks.keys[pair]
        scores = _scores(q[i], k[j], blocks, i, j)
        new_largest = jnp.maximum(largest[i], scores.max(axis=-1))
        weights, shrink = jnp.exp(scores - new_largest[..., None]), jnp.exp(largest[i] - new_largest)
        added = _dot("KQS,KHS->KQH", weights.astype(v.dtype), v[j])
        output = output.at[i].set(output[i] * shrink[..., None] + added)
        return output, largest.at[i].set(new_largest), total.at[i].set(total[i] * shrink + weights.sum(axis=-1))

    none = jnp.zeros(q.shape[:-1], jnp.float32)
    # Far above a masked score, so that a masked key's weight is 0 even where a query has seen no other.
    start = jnp.zeros(q.shape, jnp.float32), none + MASKED_SCORE / 10, none
    output, largest, total = jax.lax.fori_loop(0, blocks.num_pairs, visit, start)
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # 0 for padding, whose output is 0
    output = checkpoint_name((output / total[..., None]).astype(q.dtype), SAVED)
    return output, (q, k, v, blocks, output, checkpoint_name(largest + jnp.log(total), SAVED))


def _flash_backward(saved, d_output):
    q, k, v, blocks, output, log_total = saved
    # Gradients of a softmax's scores: weights * (their own gradients - the mean of these under the weights).
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


# jax's kernels, imported where they run: each takes its time.
