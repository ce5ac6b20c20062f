"""Keys and values of one layer, with the token that each slot holds."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from s1jax.ops.quantization import Quantized


class KeysValues(NamedTuple):
    """Keys and values of one layer: A rows of S slots in any order, each slot for one token. A free slot has segment 0."""

    k: Float[Array, "A K H S"] | Quantized
    """The slots are the last dimension, as the product with the queries reads them. A quantized `k` has one scale per slot."""
    v: Float[Array, "A K S H"] | Quantized
    """A quantized `v` has one scale per slot."""
    positions: Int[Array, "A S"]
    segment_ids: Int[Array, "A S"]
