"""The bits of arrays, moved as unsigned integers because a CPU would change the payload of bfloat16 NaNs, and the range of dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt

from s1jax.runtime.errors import UserError


def as_bits(x: Shaped[Array, "*S"]) -> UInt[Array, "*S"]:
    """Return the bits of `x` as unsigned integers of the same width."""
    return jax.lax.bitcast_convert_type(x, f"u{x.dtype.itemsize}")


def take_layer(
    stack: Shaped[Array, "L ..."], layer: int, sharding: jax.sharding.Sharding | None = None
) -> Shaped[Array, "..."]:
    """Return one layer of a stack, placed on `sharding` if it is given."""
    return jax.jit(_take_layer, out_shardings=sharding)(stack, layer)


def _take_layer(stack: jax.Array, layer: jax.Array) -> jax.Array:
    bits = jax.lax.dynamic_index_in_dim(as_bits(stack), layer, 0, keepdims=False)
    return jax.lax.bitcast_convert_type(bits, stack.dtype)


def check_range(name: str, x: jax.Array | np.ndarray, dtype: Any, layer: int | None = None) -> None:
    """Raise UserError if a finite number in `x`, or in one layer of `x`, is beyond the range of `dtype`."""
    largest = float(jnp.finfo(dtype).max)
    is_beyond = _is_beyond if isinstance(x, np.ndarray) else jax.jit(_is_beyond)
    if narrows(x.dtype, dtype) and is_beyond(x, largest, layer):
        raise UserError(
            f"{name} holds numbers beyond {largest:g}, the largest of {jnp.dtype(dtype).name}: choose a wider dtype"
        )


def narrows(source: Any, dtype: Any) -> bool:
    """Return whether the range of `dtype` is smaller than that of `source`. The ranges of float32 and bfloat16 count as equal."""
    return float(jnp.finfo(dtype).max) < 0.99 * float(jnp.finfo(source).max)


def _is_beyond(x: Any, largest: Any, layer: Any) -> Any:
    x = x if layer is None else x[layer]
    magnitude = abs(x if x.dtype == np.float64 else x.astype(np.float32))
    return ((magnitude > largest) & (magnitude < np.inf)).any()
