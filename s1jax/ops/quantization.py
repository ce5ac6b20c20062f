"""Storage in 8 and 4 bits: an array -> small integers and scales, and products with what they stand for.

8 bits: int8 with a float32 scale for each channel, by its largest magnitude. A product takes the values as they are and scales what comes
out. A compiler that fuses the conversion into the product reads one byte per number; XLA for CPU writes the converted numbers first, and
gains room, not speed.

4 bits: NF4 (QLoRA, arXiv 2305.14314), an index into 16 levels of a normal distribution with a bfloat16 scale for each tile of 64 numbers
of the last dimension: 4.25 bits a number. Two indices lie in one uint8, since XLA for CPU widens a stack of uint4 before it slices it.
A product takes the floats, of one matrix at a time.

Invariant: what is stored is never trained, and no derivative keeps the floats it stands for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from s1jax.runtime.errors import UserError

if TYPE_CHECKING:
    pass

NF4_TILE = 64


def quantize(x: jax.Array, axis: tuple[int, ...]) -> Any:
    """Return `x` as a `qwix.QArray`, with one scale for all of `axis`; its `scale` has size 1 there."""
    # Here, since machines that never quantize need not have it.
    import qwix

    channels = [i for i in range(x.ndim) if i not in axis]
    return qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=channels)


def values_and_scale(x: Any) -> tuple[jax.Array, jax.Array | None]:
    """Return the values of an array and, if it is quantized, its scale."""
    return (x.qvalue, x.scale) if is_quantized(x) else (x, None)


def is_quantized(x: Any) -> bool:
    """Return whether an array is quantized."""
    return hasattr(x, "qvalue")


def nf4_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the values and of the scales of an array of this shape in NF4."""
    tile = math.gcd(NF4_TILE, shape[-1])
    if tile % 2:
        raise UserError(f"an array of shape {shape} cannot be stored in NF4: its last dimension must be even")
    return (*shape[:-1], shape[-1] // 2), (*shape[:-1], shape[-1] // tile)


def quantize_nf4(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the values of `x` in NF4, two in each uint8, and their scales; see `nf4_shapes`."""
    import qwix

    num_tiles = nf4_shapes(x.shape)[1][-1]
    tiles = {x.ndim - 1: x.shape[-1] // num_tiles}
    q = qwix.quantize(x.astype(jnp.float32), "nf4", channelwise_axes=range(x.ndim - 1), tiled_axes=tiles)
    low, high = jnp.moveaxis(q.qvalue.astype(jnp.uint8).reshape(*x.shape[:-1], -1, 2), -1, 0)
    return low | high << 4, q.scale.astype(jnp.bfloat16)


def dequantize(values: jax.Array, scale: jax.Array) -> jax.Array:
    """Return the float32 numbers that a stored matrix stands for, int8 or NF4."""
    scale = scale.astype(jnp.float32)
    if values.dtype == jnp.int8:
        return values.astype(jnp.float32) * scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))
    import qwix

    levels = qwix.dequantize(qwix.QArray(jnp.arange(16, dtype=jnp.uint4), jnp.ones(1), qtype="nf4"))
    pairs = jnp.stack([values & 15, values >> 4], axis=-1)
    return (levels[pairs].reshape(*scale.shape, -1) * scale[..., None]).reshape(*values.shape[:-1], -1)
