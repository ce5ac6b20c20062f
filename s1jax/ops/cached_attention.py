"""Attention of queries over caches by a kernel for GPUs that never writes scores: queries and caches -> output, forward only.

The mask contract is that of `attention.py`; slots may lie in any order. All queries that read the same keys and values (heads of a
key/value head, rows that share a prefix) form one matrix. When decoding they are too few to keep a GPU busy, so the slots are split into
chunks, each with a program and an online softmax of its own (arXiv 2205.14135; chunks as in Flash-Decoding,
https://pytorch.org/blog/flash-decoding). A chunk leaves for each query its largest score m, the sum l of the weights exp(score - m), and
the sum o of the values so weighted. Over the chunks of all caches, with M the largest m:

    output = sum(o exp(m - M)) / sum(l exp(m - M))

A program walks the blocks of its chunk from the first to the last that holds what a query of its row may see: a step costs what is
filled, and a row that is done costs nothing. Invariant: what a query may not see weighs exactly 0, and one that sees nothing gives 0.

A quantized cache has a scale for each slot: scores are multiplied by that of the key, weights by that of the value.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from s1jax.ops.blocked_attention import MASKED_SCORE
from s1jax.ops.quantization import values_and_scale
from s1jax.runtime.sharding import ShardingRules

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

BLOCK = 64
"""Slots, and most queries, that a program multiplies at once."""
LEAST_CHUNK = 256
"""Slots: what chunks of fewer leave would be much in comparison to their keys and values. (Of fewer slots there is one chunk.)"""
MOST_SUMS = 2**14
"""Queries of all chunks together, where there is more than one: few enough for small results and, in tiles of 16 to 64, programs enough
for the 132 multiprocessors of an H100."""


class Slots(NamedTuple):
    """A cache, whose row `a` serves the rows `a * B / A` to `(a + 1) * B / A` of the B, and how far they see in it."""

    k: Float[Array, "A K H S"]
    v: Float[Array, "A K S H"]
    positions: Int[Array, "A S"]
    segment_ids: Int[Array, "A S"]
    end: Int[Array, "B T"]
    """A query sees the slots of its segment at positions before this one."""


def cached_attention(
    q: Float[Array, "B T N H"],
    segment_ids: Int[Array, "B T"],
    caches: Sequence[Slots],
    rules: ShardingRules | None,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Return softmax(q k^T / sqrt(H)) v over all that a query sees of the caches; softmax in float32, output in the dtype of `q`.

    Products are of JAX's default precision, which for float32 on a GPU is TF32.
    Under a mesh each device computes for the rows and key/value heads of a cache that it holds by `rules`, so that none is gathered.
    """
    outputs, largests, totals = zip(*[_over_slots(q, segment_ids, x, rules, interpret) for x in caches], strict=True)
    largest = functools.reduce(jnp.maximum, [m.max(axis=0) for m in largests])
    # Against NaN that XLA for GPU makes of what follows, according to jax's own `decode_attention`.
    largest = jax.lax.optimization_barrier(largest)
    scales = [jnp.exp(m - largest) for m in largests]
    output = sum((o * scale[..., None]).sum(axis=0) for o, scale in zip(outputs, scales, strict=True))
    total = sum((l * scale).sum(axis=0) for l, scale in zip(totals, scales, strict=True))
    return (output / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]).astype(q.dtype)


def _over_slots(q, segment_ids, cache: Slots, rules: ShardingRules | None, interpret: bool) -> list[jax.Array]:
    """Return what the chunks of one cache leave: o [C, B, T, N, H], m and l [C, B, T, N]."""
    k, v = values_and_scale(cache.k), values_and_scale(cache.v)
    (B, T, N, H), (A, K) = q.shape, k[0].shape[:2]
    F, G = B // A, N // K
    q = q.reshape(A, F, T, K, G, H).transpose(0, 3, 1, 2, 4, 5).reshape(A, K, F * T * G, H)
    end = jnp.where(segment_ids > 0, cache.end, jnp.iinfo(jnp.int32).min)  # padding sees nothing
    end, segment_ids = (jnp.repeat(x.reshape(A, F * T), G, axis=1) for x in (end, segment_ids))
    kernel = functools.partial(_over_chunks, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if rules is not None and mesh.size > 1:
        rows, heads = rules.spec(("batch", "kv_heads"), (A, K), mesh.shape)
        of_heads, of_rows, of_sums = PartitionSpec(rows, heads), PartitionSpec(rows), PartitionSpec(None, rows, heads)
        specs = (of_heads, of_rows, of_rows, of_heads, of_heads, of_rows, of_rows)
        kernel = jax.shard_map(kernel, in_specs=specs, out_specs=of_sums, check_vma=False)
    sums = kernel(q, end, segment_ids, k, v, cache.positions, cache.segment_ids)
    unfolded = [jnp.moveaxis(x.reshape(-1, A, K, F, T, G, *x.shape[4:]), 2, 4) for x in sums]
    return [x.reshape(-1, B, T, N, *x.shape[6:]) for x in unfolded]


# Jitted: the layers of a model share one, which is lowered once.
@functools.partial(jax.jit, static_argnames="interpret")
def _over_chunks(
    q: Float[Array, "A K Q H"],
    end: Int[Array, "A Q"],
    q_segment_ids: Int[Array, "A Q"],
    k: tuple[Float[Array, "A K H S"], Float[Array, "A K 1 S"] | None],
    v: tuple[Float[Array, "A K S H"], Float[Array, "A K S 1"] | None],
    positions: Int[Array, "A S"],
    segment_ids: Int[Array, "A S"],
    interpret: bool,
) -> list[jax.Array]:
    """Return what each chunk leaves on one device: o [C, A, K, Q, H], m and l [C, A, K, Q]."""
    (A, K, Q, H), S = q.shape, segment_ids.shape[1]
    # Powers of two, and no fewer than tensor cores take.
    tile, width = max(16, min(BLOCK, pl.next_power_of_2(Q))), max(16, pl.next_power_of_2(H))
    num_tiles = pl.cdiv(Q, tile)
    num_chunks = max(1, min(S // LEAST_CHUNK, MOST_SUMS // (A * K * num_tiles * tile)))
    chunk = pl.cdiv(S, num_chunks * BLOCK) * BLOCK
    num_chunks = pl.cdiv(S, chunk)

    # Blocks of keys and values on their way: three of two bytes a number, two of four, or they fill the shared memory.
    stages = 3 if q.dtype.itemsize == 2 else 2
    warps = 2 if tile == 16 else 4  # few queries start sooner with fewer
    # What a program reads and writes, by the indices of its query tile, chunk, row and head.
    of_chunk = pl.BlockSpec((None, None), lambda i, c, a, k: (a, c))
    of_slots = pl.BlockSpec((None, chunk), lambda i, c, a, k: (a, c))
    of_queries = pl.BlockSpec((None, tile), lambda i, c, a, k: (a, i))
    of_scales = pl.BlockSpec((None, None, chunk), lambda i, c, a, k: (a, k, c))
    of_q = pl.BlockSpec((None, None, tile, width), lambda i, c, a, k: (a, k, i, 0))
    of_k = pl.BlockSpec((None, None, width, chunk), lambda i, c, a, k: (a, k, 0, c))
    of_v = pl.BlockSpec((None, None, chunk, width), lambda i, c, a, k: (a, k, c, 0))
    of_output = pl.BlockSpec((None, None, None, tile, width), lambda i, c, a, k: (c, a, k, i, 0))
    of_sums = pl.BlockSpec((None, None, None, tile), lambda i, c, a, k: (c, a, k, i))
    scales = [None if scale is None else scale.reshape(A, K, S) for _, scale in (k, v)]
    of_these = [None if scale is None else of_scales for scale in scales]
    return pl.pallas_call(
        functools.partial(_attend, Q=Q, H=H, S=S, chunk=chunk),
        grid=(num_tiles, num_chunks, A, K),
        in_specs=[of_chunk, of_chunk, of_q, of_queries, of_queries, of_k, of_v, *of_these, of_slots, of_slots],
        out_specs=[of_output, of_sums, of_sums],
        out_shape=[jax.ShapeDtypeStruct((num_chunks, A, K, Q, *rest), jnp.float32) for rest in ((H,), (), ())],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name="cached_attention",
    )(*_filled(positions, segment_ids, end, chunk), q, end, q_segment_ids, k[0], v[0], *scales, positions, segment_ids)


def _filled(positions, segment_ids, end, chunk: int) -> tuple[Int[Array, "A C"], Int[Array, "A C"]]:
    """Return of each chunk the first block that holds what a query of the row may see, and the one after the last."""
    may = (segment_ids > 0) & (positions < end.max(axis=1, keepdims=True))
    may = jnp.pad(may, [(0, 0), (0, -may.shape[1] % chunk)]).reshape(len(may), -1, chunk // BLOCK, BLOCK).any(axis=-1)
    block = jnp.arange(chunk // BLOCK, dtype=jnp.int32)
    return jnp.where(may, block, chunk).min(axis=-1), jnp.where(may, block + 1, 0).max(axis=-1)


def _attend(
    first, stop, q, end, q_segments, k, v, k_scale, v_scale, positions, segments, o_out, m_out, l_out, *, Q, H, S, chunk
):
    """Attend from a tile of queries [tile, H] to a chunk of keys [H, chunk] and values [chunk, H]."""
    tile, width = q.shape
    rows, dims = pl.program_id(0) * tile + jnp.arange(tile) < Q, jnp.arange(width) < H
    slots_left = S - pl.program_id(1) * chunk
    q = triton.load(q, mask=rows[:, None] & dims[None], other=0)
    end, q_segments = (triton.load(x, mask=rows, other=0)[:, None] for x in (end, q_segments))

    def visit(block, carry):
        o, m, l = carry
        here, inside = pl.ds(block * BLOCK, BLOCK), block * BLOCK + jnp.arange(BLOCK) < slots_left

        def of_slots(x):
            return triton.load(x.at[here], mask=inside, other=0)[None]

        keys = triton.load(k.at[:, here], mask=dims[:, None] & inside[None], other=0)
        scores = jnp.dot(q, keys.astype(q.dtype), preferred_element_type=jnp.float32) * H**-0.5
        if k_scale is not None:
            scores *= of_slots(k_scale)
        scores = jnp.where((of_slots(segments) == q_segments) & (of_slots(positions) < end), scores, MASKED_SCORE)
        largest = jnp.maximum(m, scores.max(axis=1))
        weights, shrink = jnp.exp(scores - largest[:, None]), jnp.exp(m - largest)
        l = l * shrink + weights.sum(axis=1)
        if v_scale is not None:
            weights *= of_slots(v_scale)
        values = triton.load(v.at[here], mask=inside[:, None] & dims[None], other=0)
        added = jnp.dot(weights.astype(q.dtype), values.astype(q.dtype), preferred_element_type=jnp.float32)
        return o * shrink[:, None] + added, largest, l

    none = jnp.zeros(tile, jnp.float32)
    # Far above a masked score, so that a masked slot's weight is 0 even where a query has seen no other.
    carry = jnp.zeros((tile, width), jnp.float32), none + MASKED_SCORE / 10, none
    o, m, l = jax.lax.fori_loop(first[...], stop[...], visit, carry)
    triton.store(o_out, o, mask=rows[:, None] & dims[None])
    triton.store(m_out, m, mask=rows)
    triton.store(l_out, l, mask=rows)
