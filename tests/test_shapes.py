"""That the tests check annotated shapes: `tests/conftest.py` installs the check."""

import jax.numpy as jnp
import jaxtyping
import pytest

from s1jax.ops.attention import self_attention
from s1jax.ops.rope import apply_rope, rotation_at
from tests.support.attention import random_qkv


def test_an_array_whose_shape_contradicts_its_annotation_is_refused():
    positions = jnp.zeros((2, 9), jnp.int32)
    q, k, v = random_qkv(sizes=(2, 9, 9, 6, 2, 8))
    assert self_attention(q, k, v, positions, positions + 1).shape == q.shape
    for wrong in (
        (q, k.swapaxes(2, 3), v, positions, positions + 1),  # keys in the order of values
        (q, k, v, positions[:, :1], positions + 1),  # would broadcast
        (q, k, v, positions.astype("float32"), positions + 1),
    ):
        with pytest.raises(jaxtyping.TypeCheckError):
            self_attention(*wrong)


def test_a_result_whose_shape_contradicts_its_annotation_is_refused():
    rotation = rotation_at(jnp.zeros((2, 9), jnp.int32), 8, 1e4, None)
    q = random_qkv(sizes=(1, 9, 9, 6, 2, 8))[0]
    with pytest.raises(jaxtyping.TypeCheckError):
        apply_rope(q, rotation)  # one row and the angles of two, which broadcast
