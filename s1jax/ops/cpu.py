"""Operations in a form that XLA compiles to a faster program on a CPU, each with the measurement that justifies it."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def transposed_product(
    x: Float[Array, "B I"], weight: Float[Array, "O I"], num_blocks: int, dtype: Any
) -> Float[Array, "B O"]:
    """Return x weight^T in `dtype`, computed as weight x^T in `num_blocks` blocks of rows, which XLA would otherwise turn around again.

    For decoding, where B is small. Measured with a 135M model in float32 on two cores, medians of five runs in turn: with 8 rows, a step
    takes 80 ms of processor time instead of 125 ms. With one row there is no clear difference (66 ms and 60 ms).
    """
    blocks = weight.reshape(num_blocks, -1, weight.shape[1])
    y = jnp.einsum("noI,BI->noB", blocks, x, preferred_element_type=dtype)
    return y.transpose(2, 0, 1).reshape(len(x), len(weight))
