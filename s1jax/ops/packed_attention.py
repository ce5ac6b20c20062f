"""Attention of rows over themselves by kernels for GPUs, forward and backward: q, k, v, positions and segments -> output.

Where segments lie one after another in a row, a query sees a range of places: from the first of its segment to its own. The kernels
(Triton, by way of Pallas; the online softmax of arXiv 2205.14135, the backward pass of arXiv 2307.08691) walk the tiles of such ranges
only: a packed row costs what its segments cost, and tiles that are seen whole need no mask. The query heads of a key/value head read the
same keys and values, and add up their gradients; none is repeated.

Invariants: what a query may not see weighs exactly 0, and one that sees nothing (padding) gives 0. Scores are never written: what the
backward pass needs besides inputs and output is one number for each query, log2(sum(2 ** score)), with scores in units of log(2).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from s1jax.ops.blocked_attention import MASKED_SCORE
from s1jax.ops.library_attention import nan_unless_in_order

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Tiles(NamedTuple):
    """How a kernel is cut up: a program has a tile of queries and visits tiles of keys, or the other way round."""

    queries: int
    """Tokens of a tile of queries ..."""
    keys: int
    """... and of keys."""
    warps: int
    """Of a program."""
    stages: int
    """Tiles on their way from memory at a time."""


# The fastest of nine to thirteen each on an H100 (docs/lab-log.md); compiled for an A100's shared memory (163 KiB) they fit too.
FORWARD, BACKWARD_KEYS, BACKWARD_QUERIES = Tiles(128, 64, 8, 3), Tiles(64, 128, 8, 3), Tiles(128, 128, 8, 2)
LARGEST_TILE = 128
"""Lengths are padded to a multiple of it."""


class Ranges(NamedTuple):
    """The tiles that each of n programs of a row visits: from `first` to before `stop`; from `whole` to before `partial` without a mask."""

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
    """Return attention of rows in order (`flash_attention.py`); softmax in float32, output in the dtype of `q`.

    Products are of JAX's default precision, which for float32 on a GPU is TF32.
    """
    T, H = q.shape[1], q.shape[3]
    place = jnp.arange(T, dtype=jnp.int32)
    begins = jnp.diff(segment_ids, axis=1, prepend=0) != 0
    start = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
    nowhere = jnp.iinfo(jnp.int32).max
    start = jnp.pad(
        jnp.where(segment_ids > 0, start, nowhere), [(0, 0), (0, -T % LARGEST_TILE)], constant_values=nowhere
    )
    width = max(16, pl.next_power_of_2(H))  # no fewer than tensor cores take
    q, k, v = (
        jnp.pad(x, [(0, 0), (0, -T % LARGEST_TILE), (0, 0), (0, width - H)])
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
    """Return attention of each query to the places from its `start` to its own; `start` must not fall, but for where it is past all.

    `scale` is 1 / (sqrt(H) log(2)), with H before it was padded.
    """
    return _forward(q, k, v, start, scale, interpret)[0]


def _ranges(start: Int[Array, "B T"], tiles: Tiles, of_queries: bool) -> Ranges:
    """Return the tiles of keys that each tile of queries visits; or the other way round."""
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
    first_whole = jnp.minimum(first_whole, stop)  # where there is none
    return Ranges(first, first_whole, jnp.maximum(stop_whole, first_whole), stop)


def _visit(ranges, visit: Callable, carry):
    """Run `visit(masked, tile, carry)` over the tiles of a program."""
    first, whole, partial, stop = (x[...] for x in ranges)
    for begin, end, masked in ((first, whole, True), (whole, partial, False), (partial, stop, True)):
        carry = jax.lax.fori_loop(begin, end, functools.partial(visit, masked), carry)
    return carry


def _places(tile, size: int) -> jax.Array:
    return tile * size + jnp.arange(size, dtype=jnp.int32)


def _masked(x, fill: float, start, key, query) -> jax.Array:
    """Return `x` where a query sees a key, `fill` elsewhere; by places that broadcast to the shape of `x`."""
    return jnp.where((start <= key) & (key <= query), x, fill)


_dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)


# Of the kernels below each program has one tile of queries or keys, one row and one head.


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

        none = jnp.zeros(tiles.queries, jnp.float32)
        # Far above a masked score, so that a masked key's weight is 0 even where a query has seen no other.
        carry = jnp.zeros(q.shape, jnp.float32), none + MASKED_SCORE / 10, none
        o, m, l = _visit((first, whole, partial, stop), visit, carry)
        l = jnp.maximum(l, jnp.finfo(jnp.float32).tiny)  # 0 for a query that sees nothing
        output[...] = (o / l[:, None]).astype(output.dtype)
        log_total[...] = m + jnp.log2(l)

    of_range, of_start, of_q, of_kv, of_sums = _of_queries(tiles, q, k)
    return pl.pallas_call(
        kernel,
        grid=(T // tiles.queries, B, N),
        in_specs=[*[of_range] * 4, of_start, of_q, of_kv, of_kv],
        out_specs=[of_q, of_sums],
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

    of_range, of_start, of_q, of_kv, of_sums = _of_queries(tiles, q, k)
    return pl.pallas_call(
        kernel,
        grid=(T // tiles.queries, B, N),
        in_specs=[*[of_range] * 4, of_start, of_q, of_kv, of_kv, of_sums, of_sums, of_q],
        out_specs=of_q,
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

        def of_head(head, carry):
            return _visit((first, whole, partial, stop), functools.partial(visit, head), carry)

        none = jnp.zeros(k.shape, jnp.float32)
        dk, dv = jax.lax.fori_loop(0, G, of_head, (none, none))
        dk_out[...] = (dk * (scale * math.log(2))).astype(dk_out.dtype)
        dv_out[...] = dv.astype(dv_out.dtype)

    of_range = pl.BlockSpec((None, None), lambda j, b, h: (b, j))
    of_start = pl.BlockSpec((None, T), lambda j, b, h: (b, 0))
    of_q = pl.BlockSpec((None, T, G, H), lambda j, b, h: (b, 0, h, 0))
    of_kv = pl.BlockSpec((None, tiles.keys, None, H), lambda j, b, h: (b, j, h, 0))
    of_sums = pl.BlockSpec((None, G, T), lambda j, b, h: (b, h, 0))
    return pl.pallas_call(
        kernel,
        grid=(T // tiles.keys, B, K),
        in_specs=[*[of_range] * 4, of_start, of_q, of_kv, of_kv, of_sums, of_sums, of_q],
        out_specs=[of_kv, of_kv],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="packed_attention_dkv",
    )(*_ranges(start, tiles, of_queries=False), start, q, k, v, log_total, mean, d_output)


def _of_queries(tiles: Tiles, q: jax.Array, k: jax.Array) -> tuple[pl.BlockSpec, ...]:
    """Return what a program of a tile of queries has, by its tile, row and head, of: ranges, starts, queries, keys, and sums over keys."""
    (_, T, N, H), K = q.shape, k.shape[2]
    return (
        pl.BlockSpec((None, None), lambda i, b, n: (b, i)),
        pl.BlockSpec((None, tiles.queries), lambda i, b, n: (b, i)),
        pl.BlockSpec((None, tiles.queries, None, H), lambda i, b, n: (b, i, n, 0)),
        pl.BlockSpec((None, T, None, H), lambda i, b, n: (b, 0, n // (N // K), 0)),
        pl.BlockSpec((None, None, tiles.queries), lambda i, b, n: (b, n, i)),
    )


def _fitting(tiles: Tiles, q: jax.Array) -> Tiles:
    """Return smaller tiles where a token's head is more than 256 bytes, so that they fit the shared memory all the same."""
    shrink = max(1, q.shape[-1] * q.dtype.itemsize // 256)
    return tiles._replace(queries=max(16, tiles.queries // shrink), keys=max(16, tiles.keys // shrink))


def _attention_forward(q, k, v, start, scale: float, interpret: bool):
    output, log_total = _forward(q, k, v, start, scale, interpret)
    return output, (q, k, v, start, output, log_total)


def _attention_backward(scale: float, interpret: bool, saved, d_output):
    q, k, v, start, output, log_total = saved
    # Gradients of a softmax's scores: weights * (their own gradients - the mean of these under the weights).
    mean = (output.astype(jnp.float32) * d_output.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    inputs = q, k, v, start, log_total, mean, d_output
    return _gradient_of_queries(*inputs, scale, interpret), *_gradients_of_keys(*inputs, scale, interpret), None


_attention.defvjp(_attention_forward, _attention_backward)
