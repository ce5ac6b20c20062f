"""The chunked loss against whole logits: value, gradients, what it computes, and how it is shared out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s1jax.ops.cross_entropy import weighted_cross_entropy
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, T, D, V = 4, 24, 16, 60
RULES = ShardingRules()


def inputs(share=0.6, dtype="float32"):
    rng = np.random.default_rng(0)
    weights = rng.random((B, T)) * (rng.random((B, T)) < share)
    return (
        jnp.asarray(rng.normal(size=(B, T, D)), dtype), jnp.asarray(rng.normal(size=(V, D)), dtype),
        jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32), jnp.asarray(weights / max(weights.sum(), 1), jnp.float32),
    )  # fmt: skip


def whole_logits(hidden, weight, targets, weights):
    logits = jnp.einsum("BTD,VD->BTV", hidden, weight, preferred_element_type=jnp.float32)
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def both(function, arguments, factor=3.0):
    return jax.jit(jax.value_and_grad(lambda h, w: factor * function(h, w, *arguments[2:]), (0, 1)))(*arguments[:2])


def chunked(chunk, rules=RULES):
    return lambda *arguments: weighted_cross_entropy(*arguments, rules, chunk)


@pytest.mark.parametrize("chunk", [1, 7, 24, 96, 1000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_chunks_equal_whole_logits_in_value_and_gradients(chunk, share):
    arguments = inputs(share)
    ours, theirs = both(chunked(chunk), arguments), both(whole_logits, arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    np.testing.assert_allclose(3 * chunked(chunk)(*arguments), theirs[0], rtol=1e-5)


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=2, sequence=2, tensor=2), MeshConfig(fsdp=1, sequence=8)],
)  # fmt: skip
@pytest.mark.parametrize(
    "rules",
    [
        RULES,
        ShardingRules(embed=("fsdp",)),
        ShardingRules(embed=("tensor",), heads=(), kv_heads=(), mlp=(), vocab=()),
    ],
)
def test_any_mesh_gives_what_one_device_does(mesh, rules):
    arguments = inputs()
    alone = both(chunked(5), arguments)
    with jax.set_mesh(make_mesh(mesh)):
        spread = both(chunked(5, rules), arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), spread, alone)


def test_bfloat16_loses_little():
    ours, theirs = (both(chunked(5), inputs(dtype=dtype)) for dtype in ("bfloat16", "float32"))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-2)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a.dtype == jnp.bfloat16 and np.linalg.norm(a.astype("float32") - b) < 1e-2 * np.linalg.norm(b)


def test_only_positions_with_a_weight_are_computed_and_no_more_logits_exist_than_a_chunk():
    def with_nans(share):
        """Value and gradients where positions without a weight hold NaNs, which show what is read."""
        hidden, weight, targets, weights = inputs(share)
        hidden = jnp.where(weights[..., None] > 0, hidden, jnp.nan)
        return both(chunked(1), (hidden, weight, targets, weights))

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(with_nans(0.3)))
    compiled = jax.jit(jax.grad(chunked(4), (0, 1))).lower(*inputs()).compile()
    assert f"f32[{4},{V}]" in compiled.as_text() and f"f32[{B * T},{V}]" not in compiled.as_text()
