"""Rotary position embedding: positions -> rotation -> rotated queries and keys, in float32, with YaRN's extension to longer contexts.

Sources: RoFormer (arXiv 2104.09864) and YaRN (arXiv 2309.00071). YaRN is static, as in Hugging Face: it also scales short texts.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class YarnConfig:
    """YaRN's settings for a longer context: the fields of Hugging Face's `rope_scaling` of type yarn."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


class Rotation(NamedTuple):
    """Cosine and sine of each token's rotation angles, multiplied by YaRN's attention factor."""

    cos: Float[Array, "B T H//2"]
    sin: Float[Array, "B T H//2"]


def rope_frequencies(head_dim: int, rope_theta: float, yarn: YarnConfig | None) -> Float[Array, " {head_dim}//2"]:
    """Return the angle per position of each dimension pair (YaRN section 3.2, "NTK-by-parts")."""
    half = head_dim // 2
    frequencies = rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if yarn is None:
        return frequencies

    def dimension_of(rotations: float) -> float:
        """Return the dimension pair that makes this many rotations over the original context."""
        context = yarn.original_max_position_embeddings
        return half * math.log(context / (rotations * 2 * math.pi)) / math.log(rope_theta)

    low = max(math.floor(dimension_of(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension_of(yarn.beta_slow)), head_dim - 1)
    # 0: the pair rotates often enough to keep its frequency. 1: it never completes a rotation, so its frequency is interpolated.
    ramp = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / (high - low or 0.001), 0, 1)
    return frequencies * (1 - ramp) + frequencies / yarn.factor * ramp


def rope_attention_factor(yarn: YarnConfig | None) -> float:
    """Return the factor on cos and sin: 1 without YaRN, otherwise that of YaRN section 3.4."""
    if yarn is None:
        return 1.0
    return yarn.attention_factor or (0.1 * math.log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0)


def rotation_at(positions: Int[Array, "B T"], head_dim: int, rope_theta: float, yarn: YarnConfig | None) -> Rotation:
    """Return the rotation of tokens at these positions. It is the same for all layers."""
    angles = positions[:, :, None].astype(jnp.float32) * rope_frequencies(head_dim, rope_theta, yarn)
    factor = rope_attention_factor(yarn)
    return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def apply_rope(x: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """Rotate the pairs (x[i], x[i + H/2]) of every head, in float32."""
    cos, sin = (y[:, :, None] for y in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
