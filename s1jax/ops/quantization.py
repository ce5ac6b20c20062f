"""Quantization to 8 and 4 bits: an array -> small integers and their scales, and back.

8 bits: int8 with one float32 scale per channel. A product uses the integers directly and scales its result. On a CPU this saves memory
but no time, because XLA writes the converted numbers to memory first.

4 bits: NF4 (QLoRA, arXiv 2305.14314), indices into 16 levels of a normal distribution. Each tile of 64 numbers along the last dimension
has one bfloat16 scale, so a number takes 4.25 bits. Two indices are packed into one uint8, because XLA for CPU widens a stack of uint4
before it slices it.

Invariant: quantized weights are never trained, and no backward pass keeps their dequantized floats.
"""

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32, Real, UInt8

from s1jax.runtime.errors import UserError

NF4_TILE = 64


@runtime_checkable
class Quantized(Protocol):
    """A quantized array, as `qwix.QArray`: int8 values, and scales of size 1 along the quantized dimension."""

    qvalue: jax.Array
    scale: jax.Array


def quantize(x: Float[Array, "..."], axis: tuple[int, ...]) -> Quantized:
    """Return `x` in int8, as a `qwix.QArray` whose elements along `axis` share one scale."""
    # Imported here because importing qwix takes seconds, and most runs quantize nothing.
    import qwix

    channels = [i for i in range(x.ndim) if i not in axis]
    return qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=channels)


def values_and_scale(x: jax.Array | Quantized) -> tuple[jax.Array, jax.Array | None]:
    """Return an array and None or, if `x` is quantized, its values and its scale."""
    return (x.qvalue, x.scale) if isinstance(x, Quantized) else (x, None)


def nf4_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of an array's values and scales in NF4. Raises UserError if the last dimension is odd."""
    tile = math.gcd(NF4_TILE, shape[-1])
    if tile % 2:
        raise UserError(f"an array of shape {shape} cannot be stored in NF4: its last dimension must be even")
    return (*shape[:-1], shape[-1] // 2), (*shape[:-1], shape[-1] // tile)


def quantize_nf4(x: Float[Array, "*O I"]) -> tuple[UInt8[Array, "*O I//2"], BFloat16[Array, "*O tiles"]]:
    """Return the values of `x` in NF4, two in each uint8, and their scales; see `nf4_shapes`."""
    import qwix

    num_tiles = nf4_shapes(x.shape)[1][-1]
    tiles = {x.ndim - 1: x.shape[-1] // num_tiles}
    q = qwix.quantize(x.astype(jnp.float32), "nf4", channelwise_axes=range(x.ndim - 1), tiled_axes=tiles)
    low, high = jnp.moveaxis(q.qvalue.astype(jnp.uint8).reshape(*x.shape[:-1], -1, 2), -1, 0)
    return low | high << 4, q.scale.astype(jnp.bfloat16)


def dequantize(values: Real[Array, "*V"], scale: Float[Array, "*S"]) -> Float32[Array, "..."]:
    """Return the float32 numbers that int8 or NF4 values stand for."""
    scale = scale.astype(jnp.float32)
    if values.dtype == jnp.int8:
        return values.astype(jnp.float32) * scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))
    import qwix

    levels = qwix.dequantize(qwix.QArray(jnp.arange(16, dtype=jnp.uint4), jnp.ones(1), qtype="nf4"))
    pairs = jnp.stack([values & 15, values >> 4], axis=-1)
    return (levels[pairs].reshape(*scale.shape, -1) * scale[..., None]).reshape(*values.shape[:-1], -1)
