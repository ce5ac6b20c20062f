"""Attention of rows over themselves by GPU kernels, forward and backward: q, k, v, positions and segments -> output.

If the segments of a row lie one after another, a query sees a range of places: from the first place of its segment to its own place.
The kernels are written in Triton through Pallas, with the online softmax of arXiv 2205.14135 and the backward pass of arXiv 2307.08691.
They visit only the tiles of these ranges, so the cost of a packed row is the cost of its segments. Tiles that are seen whole need no mask.

Invariants: a key that a query may not see has weight exactly 0, and a query that sees nothing (padding) gets output 0. Scores are never
written to memory: the backward pass needs one number per query, log2(sum(2 ** score)), with scores in units of log(2).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from s1jax.ops.blocked_attention import MASKED_SCORE
from s1jax.ops.library_attention import nan_unless_in_order


class Tiles(NamedTuple):
    """The tile sizes of a kernel. A program holds one tile of queries and visits tiles of keys, or the other way round."""

    queries: int
    """Tokens per tile of queries."""
    keys: int
    """Tokens per tile of keys."""
    warps: int
    """Warps per program."""
    stages: int
    """The number of tiles that are loaded from memory ahead."""


# Each is the fastest of nine to thirteen that were measured on an H100. They also fit an A100's shared memory (163 KiB).
FORWARD, BACKWARD_KEYS, BACKWARD_QUERIES = Tiles(128, 64, 8, 3), Tiles(64, 128, 8, 3), Tiles(128, 128, 8, 2)
MAX_TILE = 128
"""Lengths are padded to a multiple of this."""


class Ranges(NamedTuple):
    """The tiles that each of the n programs of a row visits: `first` to `stop` (exclusive). Those from `whole` to before
    `partial` need no mask."""

    first: Int[Array, "B n"]
    whole: Int[Array, "B n"]
    partial: Int[Array, "B n"]
    stop: Int[Array, "B n"]


def packed_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Return the attention of rows over themselves, with NaN in rows that are out of order (`nan_unless_in_order`).

    Products use JAX's default precision, which is TF32 for float32 on a GPU.
    """
    T, H = q.shape[1], q.shape[3]
    place = jnp.arange(T, dtype=jnp.int32)
    begins = jnp.diff(segment_ids, axis=1, prepend=0) != 0
    start = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
    nowhere = jnp.iinfo(jnp.int32).max
    start = jnp.pad(jnp.where(segment_ids > 0, start, nowhere), [(0, 0), (0, -T % MAX_TILE)], constant_values=nowhere)
    width = max(16, pl.next_power_of_2(H))  # tensor cores need at least 16
    q, k, v = (
        jnp.pad(x, [(0, 0), (0, -T % MAX_TILE), (0, 0), (0, width - H)])
        for x in (q, k.transpose(0, 3, 1, 2), v.swapaxes(1, 2))
    )
    output = _attention(q, k, v, start, H**-0.5 / math.log(2), interpret)
    return nan_unless_in_order(output[:, :T, :, :H], positions, segment_ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    start: Int[Array, "B T"],
    scale: float,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Return the attention of each query to the places from its `start` to its own place.

    `start` must not decrease along a row, except that padding has a start past every place. `scale` is 1 / (sqrt(H) log(2)), where H is
    the head dimension before padding.
    """
    return _forward(q, k, v, start, scale, interpret)[0]


def _ranges(start: Int[Array, "B T"], tiles: Tiles, of_queries: bool) -> Ranges:
    """Return which tiles of keys each tile of queries visits. Without `of_queries`: which tiles of queries each tile of keys visits."""
    B, T = start.shape
    place = jnp.arange(T, dtype=jnp.int32)
    start, last = (
        x.reshape(B, -1, tiles.queries, 1)
        for x in (start, jnp.where(start <= place, place, -1))  # -1: sees nothing
    )
    query, key = place[:: tiles.queries, None], place[:: tiles.keys]
    needed = (start.min(axis=2) < key + tiles.keys) & (key <= last.max(axis=2))
    whole = (start.max(axis=2) <= key) & (key + tiles.keys <= query + 1)

    def first_and_stop(visited: Bool[Array, "B q k"]) -> tuple[Int[Array, "B n"], Int[Array, "B n"]]:
        axis = 2 if of_queries else 1
        index = jax.lax.broadcasted_iota(jnp.int32, visited.shape, axis)
        return jnp.where(visited, index, T).min(axis=axis), jnp.where(visited, index + 1, 0).max(axis=axis)

    (first, stop), (first_whole, stop_whole) = first_and_stop(needed), first_and_stop(whole)
    first_whole = jnp.minimum(first_whole, stop)  # if there is no whole tile
    return Ranges(first, first_whole, jnp.maximum(stop_whole, first_whole), stop)


def _visit(ranges, visit: Callable, carry):
    """Run `visit(masked, tile, carry)` over the tiles that a program visits, and return the last carry."""
    first, whole, partial, stop = (x[...] for x in ranges)
    for begin, end, masked in ((first, whole, True), (whole, partial, False), (partial, stop, True)):
        carry = jax.lax.fori_loop(begin, end, functools.partial(visit, masked), carry)
    return carry


def _places(tile, size: int) -> jax.Array:
    return tile * size + jnp.arange(size, dtype=jnp.int32)


def _masked(x, fill: float, start, key, query) -> jax.Array:
    """Return `x` where a query sees a key and `fill` elsewhere. The places broadcast to the shape of `x`."""
    return jnp.where((start <= key) & (key <= query), x, fill)


_dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)


# In the kernels below, each program holds one tile of queries or keys, of one row and one head.


def _forward(q, k, v, start, scale: float, interpret: bool):
    (B, T, N, _), tiles = q.shape, _fitting(FORWARD, q)

    def kernel(first, whole, partial, stop, start, q, k, v, output, log_total):
        q, start, place = q[...], start[...][:, None], _places(pl.program_id(0), tiles.queries)[:, None]

        def visit(masked, tile, carry):
            o, m, l = carry
            here = pl.ds(tile * tiles.keys, tiles.keys)
            scores = _dot(q, k[here].T) * scale
            if masked:
                scores = _masked(scores, MASKED_SCORE, start, _places(tile, tiles.keys)[None], place)
            largest = jnp.maximum(m, scores.max(axis=1))
            weights, shrink = jnp.exp2(scores - largest[:, None]), jnp.exp2(m - largest)
            o = o * shrink[:, None] + _dot(weights.astype(v.dtype), v[here])
            return o, largest, l * shrink + weights.sum(axis=1)

        zeros = jnp.zeros(tiles.queries, jnp.float32)
        # m starts far above a masked score, so a masked key has weight 0 even before the query has seen another key.
        carry = jnp.zeros(q.shape, jnp.float32), zeros + MASKED_SCORE / 10, zeros
        o, m, l = _visit((first, whole, partial, stop), visit, carry)
        l = jnp.maximum(l, jnp.finfo(jnp.float32).tiny)  # a query that sees nothing has total 0
        output[...] = (o / l[:, None]).astype(output.dtype)
        log_total[...] = m + jnp.log2(l)

    range_spec, start_spec, q_spec, kv_spec, sum_spec = _query_specs(tiles, q, k)
    return pl.pallas_call(
        kernel,
        grid=(T // tiles.queries, B, N),
        in_specs=[*[range_spec] * 4, start_spec, q_spec, kv_spec, kv_spec],
        out_specs=[q_spec, sum_spec],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, N, T), jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="packed_attention",
    )(*_ranges(start, tiles, of_queries=True), start, q, k, v)


def _gradient_of_queries(q, k, v, start, log_total, mean, d_output, scale: float, interpret: bool):
    (B, T, N, _), tiles = q.shape, _fitting(BACKWARD_QUERIES, q)

    def kernel(first, whole, partial, stop, start, q, k, v, log_total, mean, d_output, dq_out):
        q, start, place = q[...], start[...][:, None], _places(pl.program_id(0), tiles.queries)[:, None]
        log_total, mean, d_output = log_total[...][:, None], mean[...][:, None], d_output[...]

        def visit(masked, tile, dq):
            here = pl.ds(tile * tiles.keys, tiles.keys)
            keys = k[here]
            weights = jnp.exp2(_dot(q, keys.T) * scale - log_total)
            if masked:
                weights = _masked(weights, 0.0, start, _places(tile, tiles.keys)[None], place)
            d_scores = weights * (_dot(d_output, v[here].T) - mean)
            return dq + _dot(d_scores.astype(keys.dtype), keys)

        dq = _visit((first, whole, partial, stop), visit, jnp.zeros(q.shape, jnp.float32))
        dq_out[...] = (dq * (scale * math.log(2))).astype(dq_out.dtype)

    range_spec, start_spec, q_spec, kv_spec, sum_spec = _query_specs(tiles, q, k)
    return pl.pallas_call(
        kernel,
        grid=(T // tiles.queries, B, N),
        in_specs=[*[range_spec] * 4, start_spec, q_spec, kv_spec, kv_spec, sum_spec, sum_spec, q_spec],
        out_specs=q_spec,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="packed_attention_dq",
    )(*_ranges(start, tiles, of_queries=True), start, q, k, v, log_total, mean, d_output)


def _gradients_of_keys(q, k, v, start, log_total, mean, d_output, scale: float, interpret: bool):
    (B, T, N, H), K, tiles = q.shape, k.shape[2], _fitting(BACKWARD_KEYS, q)
    G = N // K

    def kernel(first, whole, partial, stop, start, q, k, v, log_total, mean, d_output, dk_out, dv_out):
        k, v, key = k[...], v[...], _places(pl.program_id(0), tiles.keys)[:, None]

        def visit(head, masked, tile, carry):
            dk, dv = carry
            here = pl.ds(tile * tiles.queries, tiles.queries)
            queries, d_outputs = q[here, head], d_output[here, head]
            weights = jnp.exp2(_dot(k, queries.T) * scale - log_total[head, here][None])
            if masked:
                weights = _masked(weights, 0.0, start[here][None], key, _places(tile, tiles.queries)[None])
            dv += _dot(weights.astype(d_outputs.dtype), d_outputs)
            d_scores = weights * (_dot(v, d_outputs.T) - mean[head, here][None])
            return dk + _dot(d_scores.astype(queries.dtype), queries), dv

        def add_head(head, carry):
            return _visit((first, whole, partial, stop), functools.partial(visit, head), carry)

        zeros = jnp.zeros(k.shape, jnp.float32)
        dk, dv = jax.lax.fori_loop(0, G, add_head, (zeros, zeros))
        dk_out[...] = (dk * (scale * math.log(2))).astype(dk_out.dtype)
        dv_out[...] = dv.astype(dv_out.dtype)

    range_spec = pl.BlockSpec((None, None), lambda j, b, h: (b, j))
    start_spec = pl.BlockSpec((None, T), lambda j, b, h: (b, 0))
    q_spec = pl.BlockSpec((None, T, G, H), lambda j, b, h: (b, 0, h, 0))
    kv_spec = pl.BlockSpec((None, tiles.keys, None, H), lambda j, b, h: (b, j, h, 0))
    sum_spec = pl.BlockSpec((None, G, T), lambda j, b, h: (b, h, 0))
    return pl.pallas_call(
        kernel,
        grid=(T // tiles.keys, B, K),
        in_specs=[*[range_spec] * 4, start_spec, q_spec, kv_spec, kv_spec, sum_spec, sum_spec, q_spec],
        out_specs=[kv_spec, kv_spec],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="packed_attention_dkv",
    )(*_ranges(start, tiles, of_queries=False), start, q, k, v, log_total, mean, d_output)


def _query_specs(tiles: Tiles, q: jax.Array, k: jax.Array) -> tuple[pl.BlockSpec, ...]:
    """Return the block specs of a program for a tile of queries: of ranges, starts, queries, keys or values, and sums over keys."""
    (_, T, N, H), K = q.shape, k.shape[2]
    return (
        pl.BlockSpec((None, None), lambda i, b, n: (b, i)),
        pl.BlockSpec((None, tiles.queries), lambda i, b, n: (b, i)),
        pl.BlockSpec((None, tiles.queries, None, H), lambda i, b, n: (b, i, n, 0)),
        pl.BlockSpec((None, T, None, H), lambda i, b, n: (b, 0, n // (N // K), 0)),
        pl.BlockSpec((None, None, tiles.queries), lambda i, b, n: (b, n, i)),
    )


def _fitting(tiles: Tiles, q: jax.Array) -> Tiles:
    """Return smaller tiles if a head of one token has more than 256 bytes, so that the tiles still fit the shared memory."""
    shrink = max(1, q.shape[-1] * q.dtype.itemsize // 256)
    return tiles._replace(queries=max(16, tiles.queries // shrink), keys=max(16, tiles.keys // shrink))


def _attention_forward(q, k, v, start, scale: float, interpret: bool):
    output, log_total = _forward(q, k, v, start, scale, interpret)
    return output, (q, k, v, start, output, log_total)


def _attention_backward(scale: float, interpret: bool, saved, d_output):
    q, k, v, start, output, log_total = saved
    # Gradient of a softmax: d_scores = weights * (d_weights - sum(weights * d_weights)), and that sum equals output . d_output.
    mean = (output.astype(jnp.float32) * d_output.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    inputs = q, k, v, start, log_total, mean, d_output
    return _gradient_of_queries(*inputs, scale, interpret), *_gradients_of_keys(*inputs, scale, interpret), None


_attention.defvjp(_attention_forward, _attention_backward)
