"""`quantization.py`: numbers in few bits, and attention over caches of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.ops.quantization import dequantize, quantize, quantize_nf4
from tests.support.attention import over_caches, random_mask_inputs, random_qkv


def dequantized(x):
    return x.qvalue * x.scale


def test_numbers_are_kept_to_half_a_step_of_their_channel_and_zeros_stay_zeros():
    x = jax.random.normal(jax.random.key(0), (5, 7, 16)) * jnp.logspace(-3, 3, 7)[:, None]
    x = x.at[2].set(0.0)
    stored = quantize(x, (2,))
    assert stored.qvalue.dtype == jnp.int8 and stored.scale.shape == (5, 7, 1) and stored.scale.dtype == jnp.float32
    step = np.abs(x).max(axis=2, keepdims=True) / 127
    assert (np.abs(dequantized(stored) - x) <= 0.51 * step).all()


@pytest.mark.parametrize("length", [24, 192])
def test_four_bits_keep_the_nearest_of_the_normal_levels_of_each_tile(length):
    x = jax.random.normal(jax.random.key(0), (5, length)) * jnp.logspace(-3, 3, 5)[:, None]
    values, scale = jax.jit(quantize_nf4)(x)
    tile = 64 if length == 192 else 8
    assert values.dtype == jnp.uint8 and values.shape == (5, length // 2) and scale.shape == (5, length // tile)
    tiles = np.asarray(x).reshape(5, -1, tile)
    largest = abs(tiles).max(axis=2, keepdims=True)
    np.testing.assert_allclose(scale, largest[..., 0], rtol=2**-8)  # bfloat16
    normal = [-1, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0]  # the paper's appendix E
    normal += [0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1]
    nearest = abs((tiles / largest)[..., None] - np.array(normal)).argmin(axis=-1)
    wanted = np.array(normal)[nearest] * largest
    np.testing.assert_allclose(dequantize(values, scale).reshape(wanted.shape), wanted, rtol=2**-8, atol=1e-4 * 2**-8)


def test_attention_reads_what_the_stored_keys_and_values_stand_for():
    q, k, v = random_qkv()
    masks = random_mask_inputs()
    k, v = quantize(k, (2,)), quantize(v, (3,))
    wanted = over_caches(q, dequantized(k), dequantized(v), *masks)
    np.testing.assert_allclose(over_caches(q, k, v, *masks), wanted, atol=1e-5)
