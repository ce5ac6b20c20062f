"""8-bit storage: an array -> int8 values with a float32 scale for each of its channels.

Symmetric, by the largest magnitude of a channel. A product takes the values as they are and scales what comes out. A compiler that fuses
the conversion into the product reads one byte per number; XLA for CPU writes the converted numbers first, and gains room, not speed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


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
