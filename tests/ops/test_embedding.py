"""Looking tokens up in a table that is shared out over devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.ops.embedding import embed
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh, sharding_for

pytestmark = pytest.mark.usefixtures("quick_compilation")

V, D, B, T = 48, 32, 8, 16
MESHES = [
    MeshConfig(fsdp=8),
    MeshConfig(fsdp=2, sequence=4),
    MeshConfig(data=2, fsdp=2, sequence=2),
    MeshConfig(fsdp=2, sequence=2, tensor=2),
    MeshConfig(data=4, fsdp=1, tensor=2),
]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(
    "rules",
    [
        ShardingRules(),
        ShardingRules(embed=("sequence", "fsdp")),
        ShardingRules(embed=("tensor",), heads=(), kv_heads=(), mlp=(), vocab=()),
        ShardingRules(embed=("data", "fsdp")),
    ],
)
def test_any_mesh_finds_the_rows_and_sums_their_gradients(mesh, rules):
    rng = np.random.default_rng(0)
    table, tokens = rng.normal(size=(V, D)).astype("f"), rng.integers(0, V, (B, T))
    weights = rng.normal(size=(B, T, D)).astype("f")

    def weighed(table):
        x = embed(table, jnp.asarray(tokens), rules, "float32")
        return jnp.sum(x * weights), x

    expected = np.zeros((V, D))
    np.add.at(expected, tokens, weights)
    mesh = make_mesh(mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(table, sharding_for(mesh, rules, ("vocab", "embed"), table.shape))
        gradient, x = jax.jit(jax.grad(weighed, has_aux=True))(placed)
    np.testing.assert_array_equal(x, table[tokens])
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_the_table_is_not_gathered():
    rules, mesh = ShardingRules(), make_mesh(MeshConfig(fsdp=2, sequence=4))
    table = jax.ShapeDtypeStruct((V, D), jnp.float32, sharding=sharding_for(mesh, rules, ("vocab", "embed"), (V, D)))
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=sharding_for(mesh, rules, ("batch", "length"), (B, T)))
    with jax.set_mesh(mesh):
        text = (
            jax.jit(lambda table, tokens: embed(table, tokens, rules, "float32"))
            .lower(table, tokens)
            .compile()
            .as_text()
        )
    gathered = re.findall(r"(\w+\[[\d,]*\])\S* all-gather", text)
    assert "all-to-all" in text and all(shape.startswith("s32") for shape in gathered), gathered
