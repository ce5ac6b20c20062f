"""Arrays moved as unsigned integers, so that every bit survives: a CPU would quiet the NaNs of bfloat16."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def as_bits(x: jax.Array) -> jax.Array:
    """Return the same bits as unsigned integers."""
    return jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize])


def take_layer(stack: jax.Array, layer: int, sharding: jax.sharding.Sharding | None = None) -> jax.Array:
    """Return one layer of a stack, on `sharding` if it is given."""
    return _layer_taker(sharding)(stack, layer)


@functools.lru_cache(maxsize=64)
def _layer_taker(sharding: jax.sharding.Sharding | None):
    def take(stack: jax.Array, layer: jax.Array) -> jax.Array:
        bits = jax.lax.dynamic_index_in_dim(as_bits(stack), layer, 0, keepdims=False)
        return jax.lax.bitcast_convert_type(bits, stack.dtype)

    return jax.jit(take, out_shardings=sharding)
