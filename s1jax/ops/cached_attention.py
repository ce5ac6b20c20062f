"""Attention of queries over caches by a GPU kernel that never writes scores to memory: queries and caches -> output, forward only.

The mask contract is that of `attention.py`. Slots may lie in any order. All queries that read the same keys and values form one matrix:
the query heads of a key/value head, and the rows that share a prefix. To keep a GPU busy while decoding, the slots are split into chunks,
each with its own program and online softmax (arXiv 2205.14135; chunks as in Flash-Decoding, https://pytorch.org/blog/flash-decoding).
For each query a chunk returns its largest score m, the sum l of the weights exp(score - m), and the sum o of the weighted values.
With M the largest m of all chunks of all caches:

    output = sum(o exp(m - M)) / sum(l exp(m - M))

A program visits only blocks between the first and the last slot that its row may see, so a step costs what is filled. Invariant: a slot
that a query may not see has weight exactly 0, and a query that sees nothing gets output 0.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Real

from s1jax.ops.blocked_attention import MASKED_SCORE
from s1jax.ops.keys_values import KeysValues
from s1jax.ops.quantization import values_and_scale
from s1jax.runtime.sharding import ShardingRules

BLOCK = 64
"""The number of slots, and the largest number of queries, that a program multiplies at once."""
MIN_CHUNK = 256
"""Slots per chunk. Smaller chunks would write results that are large compared with their keys and values."""
MAX_CHUNK_QUERIES = 2**14
"""The largest number of queries times chunks, if there are several chunks. It keeps the results small and still gives enough programs,
in tiles of 16 to 64 queries, for the 132 multiprocessors of an H100."""


def cached_attention(
    q: Float[Array, "B T N H"],
    segment_ids: Int[Array, "B T"],
    caches: Sequence[KeysValues],
    ends: Sequence[Int[Array, "B T"]],
    rules: ShardingRules | None,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Return softmax(q k^T / sqrt(H)) v over the slots of all caches that each query sees.

    A query sees the slots of `caches[i]` in its segment at positions before `ends[i]`. A cache of A rows serves B / A consecutive rows
    each. Products use JAX's default precision, which is TF32 for float32 on a GPU. On a mesh, each device computes for the rows and
    key/value heads of a cache that it holds by `rules`, so no cache is gathered.
    """
    results = [_over_cache(q, segment_ids, x, end, rules, interpret) for x, end in zip(caches, ends, strict=True)]
    outputs, largests, totals = zip(*results, strict=True)
    largest = functools.reduce(jnp.maximum, [m.max(axis=0) for m in largests])
    # The barrier prevents NaN from XLA for GPU in the following lines, as jax's own `decode_attention` says.
    largest = jax.lax.optimization_barrier(largest)
    scales = [jnp.exp(m - largest) for m in largests]
    output = sum((o * scale[..., None]).sum(axis=0) for o, scale in zip(outputs, scales, strict=True))
    total = sum((l * scale).sum(axis=0) for l, scale in zip(totals, scales, strict=True))
    return (output / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]).astype(q.dtype)


def _over_cache(
    q, segment_ids, cache: KeysValues, end, rules: ShardingRules | None, interpret: bool
) -> list[jax.Array]:
    """Return the results of a cache's C chunks: o [C, B, T, N, H], m and l [C, B, T, N]."""
    k, v = values_and_scale(cache.k), values_and_scale(cache.v)
    (B, T, N, H), (A, K) = q.shape, k[0].shape[:2]
    F, G = B // A, N // K
    q = q.reshape(A, F, T, K, G, H).transpose(0, 3, 1, 2, 4, 5).reshape(A, K, F * T * G, H)
    end = jnp.where(segment_ids > 0, end, jnp.iinfo(jnp.int32).min)  # padding sees nothing
    end, segment_ids = (jnp.repeat(x.reshape(A, F * T), G, axis=1) for x in (end, segment_ids))
    kernel = functools.partial(_over_chunks, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if rules is not None and mesh.size > 1:
        rows, heads = rules.spec(("batch", "kv_heads"), (A, K), mesh.shape)
        head_spec, row_spec = PartitionSpec(rows, heads), PartitionSpec(rows)
        specs = (head_spec, row_spec, row_spec, head_spec, head_spec, row_spec, row_spec)
        kernel = jax.shard_map(kernel, in_specs=specs, out_specs=PartitionSpec(None, *head_spec), check_vma=False)
    results = kernel(q, end, segment_ids, k, v, cache.positions, cache.segment_ids)
    unfolded = [jnp.moveaxis(x.reshape(-1, A, K, F, T, G, *x.shape[4:]), 2, 4) for x in results]
    return [x.reshape(-1, B, T, N, *x.shape[6:]) for x in unfolded]


# Jitted, so that the layers of a model share one function, which is lowered once.
@functools.partial(jax.jit, static_argnames="interpret")
def _over_chunks(
    q: Float[Array, "A K Q H"],
    end: Int[Array, "A Q"],
    q_segment_ids: Int[Array, "A Q"],
    k: tuple[Real[Array, "A K H S"], Float[Array, "A K 1 S"] | None],
    v: tuple[Real[Array, "A K S H"], Float[Array, "A K S 1"] | None],
    positions: Int[Array, "A S"],
    segment_ids: Int[Array, "A S"],
    interpret: bool,
) -> Sequence[jax.Array]:
    """Return the results of each chunk on one device: o [C, A, K, Q, H], m and l [C, A, K, Q]."""
    (A, K, Q, H), S = q.shape, segment_ids.shape[1]
    # Powers of two, and at least the 16 that tensor cores need.
    tile, width = max(16, min(BLOCK, pl.next_power_of_2(Q))), max(16, pl.next_power_of_2(H))
    num_tiles = pl.cdiv(Q, tile)
    num_chunks = max(1, min(S // MIN_CHUNK, MAX_CHUNK_QUERIES // (A * K * num_tiles * tile)))
    chunk = pl.cdiv(S, num_chunks * BLOCK) * BLOCK
    num_chunks = pl.cdiv(S, chunk)

    # Blocks of keys and values that are loaded ahead. Three blocks of 4-byte numbers would not fit the shared memory.
    stages = 3 if q.dtype.itemsize == 2 else 2
    warps = 2 if tile == 16 else 4  # few queries start sooner with fewer warps
    # The part of each array that a program reads or writes, by its query tile i, chunk c, row a and key/value head k.
    chunk_spec = pl.BlockSpec((None, None), lambda i, c, a, k: (a, c))
    slot_spec = pl.BlockSpec((None, chunk), lambda i, c, a, k: (a, c))
    query_spec = pl.BlockSpec((None, tile), lambda i, c, a, k: (a, i))
    scale_spec = pl.BlockSpec((None, None, chunk), lambda i, c, a, k: (a, k, c))
    q_spec = pl.BlockSpec((None, None, tile, width), lambda i, c, a, k: (a, k, i, 0))
    k_spec = pl.BlockSpec((None, None, width, chunk), lambda i, c, a, k: (a, k, 0, c))
    v_spec = pl.BlockSpec((None, None, chunk, width), lambda i, c, a, k: (a, k, c, 0))
    output_spec = pl.BlockSpec((None, None, None, tile, width), lambda i, c, a, k: (c, a, k, i, 0))
    sum_spec = pl.BlockSpec((None, None, None, tile), lambda i, c, a, k: (c, a, k, i))
    scales = [None if scale is None else scale.reshape(A, K, S) for _, scale in (k, v)]
    scale_specs = [None if scale is None else scale_spec for scale in scales]
    return pl.pallas_call(
        functools.partial(_attend, Q=Q, H=H, S=S, chunk=chunk),
        grid=(num_tiles, num_chunks, A, K),
        in_specs=[*[chunk_spec] * 2, q_spec, *[query_spec] * 2, k_spec, v_spec, *scale_specs, *[slot_spec] * 2],
        out_specs=[output_spec, sum_spec, sum_spec],
        out_shape=[jax.ShapeDtypeStruct((num_chunks, A, K, Q, *rest), jnp.float32) for rest in ((H,), (), ())],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name="cached_attention",
    )(*_filled(positions, segment_ids, end, chunk), q, end, q_segment_ids, k[0], v[0], *scales, positions, segment_ids)


def _filled(positions, segment_ids, end, chunk: int) -> tuple[Int[Array, "A C"], Int[Array, "A C"]]:
    """Return per chunk the first block with a slot that a query of the row may see, and one past the last such block."""
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

        def load(x):
            return triton.load(x.at[here], mask=inside, other=0)[None]

        keys = triton.load(k.at[:, here], mask=dims[:, None] & inside[None], other=0)
        scores = jnp.dot(q, keys.astype(q.dtype), preferred_element_type=jnp.float32) * H**-0.5
        if k_scale is not None:
            scores *= load(k_scale)
        scores = jnp.where((load(segments) == q_segments) & (load(positions) < end), scores, MASKED_SCORE)
        largest = jnp.maximum(m, scores.max(axis=1))
        weights, shrink = jnp.exp(scores - largest[:, None]), jnp.exp(m - largest)
        l = l * shrink + weights.sum(axis=1)
        if v_scale is not None:
            weights *= load(v_scale)
        values = triton.load(v.at[here], mask=inside[:, None] & dims[None], other=0)
        added = jnp.dot(weights.astype(q.dtype), values.astype(q.dtype), preferred_element_type=jnp.float32)
        return o * shrink[:, None] + added, largest, l

    zeros = jnp.zeros(tile, jnp.float32)
    # m starts far above a masked score, so a masked slot has weight 0 even before the query has seen another slot.
    carry = jnp.zeros((tile, width), jnp.float32), zeros + MASKED_SCORE / 10, zeros
    o, m, l = jax.lax.fori_loop(first[...], stop[...], visit, carry)
    triton.store(o_out, o, mask=rows[:, None] & dims[None])
    triton.store(m_out, m, mask=rows)
    triton.store(l_out, l, mask=rows)
