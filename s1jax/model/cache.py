"""The key/value cache: the tokens seen so far, as one ring of S slots per row.

In each step, all rows write the same slot, `num_written % S`. So appending is one in-place update of a slice on every backend, even if
the rows have different lengths. `positions` and `segment_ids` say which token a slot holds (see `ops/attention.py`). A free slot has
segment 0. A row that is not decoding leaves its slot free: the keys and values written there have no meaning.

Invariant: all tokens of a row are kept for S steps after the row began, because prefill writes T slots and each step of decoding one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from s1jax.model.config import ModelConfig
from s1jax.ops.keys_values import KeysValues
from s1jax.ops.quantization import Quantized, quantize
from s1jax.runtime.sharding import ShardingRules, constrain


class KVCache(NamedTuple):
    """Keys and values of all layers, and the token that each slot holds. The slots are the same in all layers."""

    k: tuple[Float[Array, "B K H S"] | Quantized, ...]
    """The keys of each layer. Like the values, they may be quantized, with one scale per slot."""
    v: tuple[Float[Array, "B K S H"] | Quantized, ...]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    num_written: Int[Array, ""]
    """The total number of slots written. The next slot is this number modulo S."""

    @property
    def capacity(self) -> int:
        """S, the number of slots per row."""
        return self.positions.shape[1]

    def layer(self, index: int) -> KeysValues:
        """Return the keys and values of one layer."""
        return KeysValues(self.k[index], self.v[index], self.positions, self.segment_ids)


def init_cache(config: ModelConfig, batch_size: int, capacity: int, rules: ShardingRules) -> KVCache:
    """Return an empty cache for `batch_size` rows of at most `capacity` tokens, in the compute dtype.

    Call it under jit, so that the arrays are created in place.
    """
    B, K, S, H = batch_size, config.num_kv_heads, capacity, config.head_dim

    def layers(shape: tuple[int, ...], head_axis: int) -> tuple[Any, ...]:
        zeros = jnp.zeros(shape, config.dtype)
        return (quantize(zeros, (head_axis,)) if "cache" in config.int8 else zeros,) * config.num_layers

    ints = jnp.zeros((B, S), jnp.int32)
    cache = KVCache(layers((B, K, H, S), 2), layers((B, K, S, H), 3), ints, ints, jnp.zeros((), jnp.int32))
    return pin(cache, rules)


def write(held: Any, new: Any, slot: Int[Array, ""], axis: int) -> Any:
    """Return `held` with `new` written along `axis`, from `slot` on. `new` must not pass the end of the ring."""

    def update(held: jax.Array, new: jax.Array) -> jax.Array:
        if held.shape[0] == 1:  # see `without_row`
            return jax.lax.dynamic_update_slice_in_dim(held[0], new[0], slot, axis - 1)[None]
        return jax.lax.dynamic_update_slice_in_dim(held, new, slot, axis)

    return jax.tree.map(update, held, new)


def without_row(cache: KVCache) -> KVCache:
    """Return a cache of one row with keys and values that lack the dimension of rows. A cache of several rows is returned unchanged.

    A loop carries a single row in this form. With the dimension, XLA for CPU copies the cache in every step: with 4,096 slots, a step of a
    135M model in float32 takes 145 ms of processor time instead of 66 ms (medians of five runs in turn, two cores).
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
    """Pin a tree of arrays to the mesh: rows are split by `batch`, heads of keys and values by `kv_heads`. Scalars are replicated."""

    def names(x: jax.Array) -> tuple[str | None, ...]:
        return ("batch", "kv_heads", None, None) if x.ndim == 4 else ("batch", None, None)[: x.ndim]

    return jax.tree.map(lambda x: constrain(x, rules, *names(x)), tree)


def resize(cache: KVCache, capacity: int, rules: ShardingRules) -> KVCache:
    """Return the cache with `capacity` slots per row, which hold the newest tokens if they are fewer than before.

    The old arrays are deleted layer by layer, so that memory never holds two whole caches.
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
    """Rotate the ring so that its oldest slot comes first. Then add free slots at the end, or drop the oldest slots."""

    def resized(x: jax.Array) -> jax.Array:
        x, size = jnp.roll(x, -turn, axis), x.shape[axis]
        x = jax.lax.slice_in_dim(x, max(0, size - capacity), size, axis=axis)
        return jnp.pad(x, [(0, capacity - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    return pin(jax.tree.map(resized, held), rules)
