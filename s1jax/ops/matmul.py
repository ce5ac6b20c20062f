"""Matrix products of activations with weights: float, 8-bit or 4-bit, and the forms that are fast on a CPU."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from s1jax.runtime.hardware import platform

if TYPE_CHECKING:
    from jaxtyping import Array, Float

from s1jax.ops.quantization import dequantize


def matmul(
    x: Float[Array, "B T I"], weight: Float[Array, "*O I"], scale: Float[Array, "*O"] | None = None, dtype: Any = None
) -> Float[Array, "B T *O"]:
    """Return the product of `x` with the rows of `weight`, each of them scaled, in `dtype`."""
    if scale is not None:
        return (matmul(x, weight, None, jnp.float32) * scale).astype(dtype)
    B, T, I = x.shape
    outer, weight = weight.shape[:-1], weight.astype(x.dtype)
    # As many as any mesh splits evenly: else it would gather the weights.
    num_blocks = math.gcd(math.lcm(8, max(1, jax.sharding.get_abstract_mesh().size)), math.prod(outer))
    if T == 1 and platform() == "cpu" and num_blocks > 1:
        # Decoding, much faster with the weights on the left. In blocks, else XLA would turn the product around again.
        blocks = weight.reshape(num_blocks, -1, I)
        y = jnp.einsum("noI,BI->noB", blocks, x[:, 0], preferred_element_type=dtype).transpose(2, 0, 1)
    else:
        y = jnp.einsum("BTI,OI->BTO", x, weight.reshape(-1, I), preferred_element_type=dtype)
    return y.reshape(B, T, *outer)


def trained_matmul(x: Float[Array, "B T I"], weight: Float[Array, "*O I"], dtype: Any) -> Float[Array, "B T *O"]:
    """Return `matmul` with a weight that may be trained."""
    if platform() != "cpu" or x.shape[1] == 1 or x.dtype != dtype:
        return matmul(x, weight, None, dtype)
    y = _product(x, weight.reshape(-1, weight.shape[-1]).astype(dtype))
    return y.reshape(*x.shape[:2], *weight.shape[:-1])


@jax.custom_vjp
def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Return the product of [B, T, I] and [O, I], with derivatives that a CPU computes half as fast again.

    XLA would transpose the activations, element by element within the operations that make them, for the weight's derivative; here
    that derivative is transposed instead.
    """
    return jnp.einsum("BTI,OI->BTO", x, weight)


def _product_forward(x, weight):
    return _product.fun(x, weight), (x, weight)


def _product_backward(kept, dy):
    x, weight = kept
    x, dy = jax.lax.optimization_barrier((x, dy))
    return jnp.einsum("BTO,OI->BTI", dy, weight), jnp.einsum("BTI,BTO->IO", x, dy).T


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def stored_product(x: jax.Array, values: jax.Array, scale: jax.Array, num_in: int) -> jax.Array:
    """Return `matmul` with a matrix stored in 8 or 4 bits, whose last `num_in` dimensions are summed over.

    The backward pass, towards `x` only, reads what is stored again: else the floats of all layers would be kept for it.
    """
    if values.dtype == jnp.int8:
        return matmul(x, values.reshape(*scale.shape, -1), scale, x.dtype)
    weight = dequantize(values, scale).astype(x.dtype)
    return matmul(x, weight.reshape(*weight.shape[:-num_in], -1), None, x.dtype)


def _stored_forward(x, values, scale, num_in):
    return stored_product(x, values, scale, num_in), (values, scale)


def _stored_backward(num_in, kept, dy):
    values, scale = kept
    size = values.size * (1 if values.dtype == jnp.int8 else 2) // math.prod(dy.shape[2:])
    x = jax.ShapeDtypeStruct((*dy.shape[:2], size), dy.dtype)
    transpose = jax.linear_transpose(lambda x: stored_product.fun(x, values, scale, num_in), x)
    return (*transpose(dy), None, None)


stored_product.defvjp(_stored_forward, _stored_backward)
