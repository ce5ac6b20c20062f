"""The key/value cache: tokens seen so far, as one ring of slots per row.

All rows write the same slot at the same step, `num_written % S`, so that appending is one in-place update of a slice on every
backend, whatever the rows' lengths. Which token a slot holds is said by `positions` and `segment_ids`, as everywhere (`attention.py`);
a free slot is of segment 0. A row that is not decoding leaves its slot free: the keys and values written there mean nothing.

Invariant: every step of decoding writes one slot of every row (prefill T at once), so a row's tokens stay whole for S steps from the one
at which it began, decoding or not.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from s1jax.ops.quantization import quantize
from s1jax.runtime.sharding import ShardingRules, constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class KVCache(NamedTuple):
    """Keys and values of all layers, with what their slots hold."""

    k: tuple[Float[Array, "B K H S"], ...]
    """With S last, as scores read them. Like `v` it may be quantized, with a scale for each slot (`quantization.py`)."""
    v: tuple[Float[Array, "B K S H"], ...]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    num_written: Int[Array, ""]
    """How many slots were written in all; the next is this number modulo S."""

    @property
    def capacity(self) -> int:
        """S, the number of slots of a row."""
        return self.positions.shape[1]


def empty_cache(
    num_layers: int, shape: tuple[int, int, int, int], dtype: str, rules: ShardingRules, int8: bool = False
) -> KVCache:
    """Return an empty cache of `shape` (B, K, S, H) per layer (call it under jit)."""
    B, K, S, H = shape

    def layers(shape: tuple[int, ...], head_axis: int) -> tuple[Any, ...]:
        zeros = jnp.zeros(shape, dtype)
        return (quantize(zeros, (head_axis,)) if int8 else zeros,) * num_layers

    ints = jnp.zeros((B, S), jnp.int32)
    cache = KVCache(layers((B, K, H, S), 2), layers((B, K, S, H), 3), ints, ints, jnp.zeros((), jnp.int32))
    return pin(cache, rules)


def write(held: Any, new: Any, slot: Int[Array, ""], axis: int) -> Any:
    """Return `held` with the slots from `slot` on, along `axis`, replaced by `new`; they may not pass the end."""

    def update(held: jax.Array, new: jax.Array) -> jax.Array:
        if held.shape[0] == 1:  # as in `without_row`
            return jax.lax.dynamic_update_slice_in_dim(held[0], new[0], slot, axis - 1)[None]
        return jax.lax.dynamic_update_slice_in_dim(held, new, slot, axis)

    return jax.tree.map(update, held, new)


def without_row(cache: KVCache) -> KVCache:
    """Return the cache of a single row with keys and values without their first dimension, any other as it is.

    So it is carried by a loop: with the dimension, XLA would keep it in two shapes, and copy it at every step.
    """
    if cache.positions.shape[0] > 1:
        return cache
    k, v = jax.tree.map(lambda x: x[0], (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def with_row(cache: KVCache) -> KVCache:
    """Undo `without_row`."""
    if cache.positions.shape[0] > 1:
        return cache
    k, v = jax.tree.map(lambda x: x[None], (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def pin(tree: Any, rules: ShardingRules) -> Any:
    """Pin arrays of rows to the mesh: rows split by `batch`, the heads of keys and values by `kv_heads`. Scalars are replicated."""

    def names(x: jax.Array) -> tuple[str | None, ...]:
        return ("batch", "kv_heads", None, None) if x.ndim == 4 else ("batch", None, None)[: x.ndim]

    return jax.tree.map(lambda x: constrain(x, rules, *names(x)), tree)


def resize(cache: KVCache, capacity: int, rules: ShardingRules) -> KVCache:
    """Return the cache with `capacity` slots a row; where these are fewer, they hold the newest tokens.

    This goes layer by layer, and the old cache is given up, so that no second one is held.
    """
    turn = int(cache.num_written) % cache.capacity
    k, v = list(cache.k), list(cache.v)
    for layers, axis in ((k, 3), (v, 2)):
        for i, old in enumerate(layers):
            layers[i] = jax.block_until_ready(_resize(old, turn, capacity=capacity, axis=axis, rules=rules))
            jax.tree.map(lambda x: x.delete(), old)
    positions, segment_ids = (
        _resize(x, turn, capacity=capacity, axis=1, rules=rules) for x in (cache.positions, cache.segment_ids)
    )
    return KVCache(tuple(k), tuple(v), positions, segment_ids, cache.num_written * 0 + min(cache.capacity, capacity))


@functools.partial(jax.jit, static_argnames=("capacity", "axis", "rules"))
def _resize(held: Any, turn: Int[Array, ""], *, capacity: int, axis: int, rules: ShardingRules) -> Any:
    """Turn the ring so that its oldest slot is the first, and add free slots at the end, or drop the oldest."""

    def resized(x: jax.Array) -> jax.Array:
        x, size = jnp.roll(x, -turn, axis), x.shape[axis]
        x = jax.lax.slice_in_dim(x, max(0, size - capacity), size, axis=axis)
        return jnp.pad(x, [(0, capacity - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    return pin(jax.tree.map(resized, held), rules)
