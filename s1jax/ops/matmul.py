"""Matrix products of activations with weights: float, 8-bit or 4-bit."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from s1jax.ops.quantization import dequantize
from s1jax.runtime.hardware import platform


def matmul(
    x: Float[Array, "B T I"], weight: Real[Array, "*O I"], scale: Float[Array, "*O"] | None = None, dtype: Any = None
) -> Float[Array, "B T *O"]:
    """Return the product of `x` with each row of `weight`, in `dtype`. `scale` multiplies the result per row of `weight`."""
    if scale is not None:
        return (matmul(x, weight, None, jnp.float32) * scale).astype(dtype)
    B, T, I = x.shape
    outer, weight = weight.shape[:-1], weight.astype(x.dtype)
    # A number of blocks that every mesh divides, because otherwise XLA would gather the weights.
    num_blocks = math.gcd(math.lcm(8, max(1, jax.sharding.get_abstract_mesh().size)), math.prod(outer))
    if T == 1 and platform() == "cpu" and num_blocks > 1:
        # Decoding: weight x^T in blocks of rows, which XLA would otherwise turn around again. Measured with a 135M model in float32 on two
        # cores, medians of five runs in turn: with 8 rows, a step takes 80 ms of processor time instead of 125 ms. With one row there is no
        # clear difference (66 ms and 60 ms).
        blocks = weight.reshape(num_blocks, -1, I)
        y = jnp.einsum("noI,BI->noB", blocks, x[:, 0], preferred_element_type=dtype).transpose(2, 0, 1)
    else:
        y = jnp.einsum("BTI,OI->BTO", x, weight.reshape(-1, I), preferred_element_type=dtype)
    return y.reshape(B, T, *outer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def stored_matmul(
    x: Float[Array, "B T I"], values: Real[Array, "*V"], scale: Float[Array, "*S"], num_in: int
) -> Float[Array, "B T *O"]:
    """Return `matmul` for a matrix that is stored in 8 or 4 bits, summed over its last `num_in` dimensions.

    The backward pass, with respect to `x` only, dequantizes the stored matrix again. Otherwise the floats of all layers would be kept.
    """
    if values.dtype == jnp.int8:
        return matmul(x, values.reshape(*scale.shape, -1), scale, x.dtype)
    weight = dequantize(values, scale).astype(x.dtype)
    return matmul(x, weight.reshape(*weight.shape[:-num_in], -1), None, x.dtype)


def _stored_forward(x, values, scale, num_in):
    return stored_matmul(x, values, scale, num_in), (values, scale)


def _stored_backward(num_in, saved, dy):
    values, scale = saved
    size = values.size * (1 if values.dtype == jnp.int8 else 2) // math.prod(dy.shape[2:])
    x = jax.ShapeDtypeStruct((*dy.shape[:2], size), dy.dtype)
    transpose = jax.linear_transpose(lambda x: stored_matmul.fun(x, values, scale, num_in), x)
    return (*transpose(dy), None, None)


stored_matmul.defvjp(_stored_forward, _stored_backward)
