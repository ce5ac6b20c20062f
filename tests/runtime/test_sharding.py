"""Meshes, and how named dimensions and the model lie on them: eight devices hold eighths and compute what one computes."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import abstract_params, graphdef, init_params, unstack
from s1jax.runtime.sharding import MESH_AXES, MeshConfig, ShardingRules, constrain, make_mesh, sharding_for

pytestmark = pytest.mark.usefixtures("quick_compilation")

RULES = ShardingRules()
CONFIG = ModelConfig(
    vocab_size=512, embed_dim=64, mlp_dim=96, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=128, tie_word_embeddings=False, dtype="float32",
)  # fmt: skip
QWEN3 = dataclasses.replace(CONFIG, family="qwen3", head_dim=16)


def test_one_size_of_a_mesh_may_be_left_to_the_number_of_devices():
    assert dict(make_mesh(MeshConfig(data=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape) == dict.fromkeys(MESH_AXES, 1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(fsdp=3), ["fsdp 3", "8 devices"]),
        (MeshConfig(tensor=3), ["tensor 3", "8 devices"]),
        (MeshConfig(fsdp=16), ["fsdp 16", "8 devices"]),
        (MeshConfig(tensor=16), ["tensor 16", "8 devices"]),
        (MeshConfig(data=-1, fsdp=-1), ["data -1", "fsdp -1", "at most one"]),
        (MeshConfig(data=0), ["data 0", "positive"]),
        (MeshConfig(data=-2), ["data -2", "positive"]),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_its_numbers(config, words):
    with pytest.raises(ValueError) as error:
        make_mesh(config)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_named_dimension_is_split_over_its_axes_only_where_they_divide_it():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    over = ("fsdp", "sequence")  # those that share the tokens of rows share out weights too
    assert sharding_for(mesh, RULES, ("embed", "heads", None), (64, 8, 16)).spec == PartitionSpec(over, "tensor", None)
    # Three key/value heads on four devices, and a dimension without a name: whole on each.
    assert sharding_for(mesh, RULES, ("embed", "kv_heads", None), (64, 3, 16)).spec == PartitionSpec(over, None, None)
    assert sharding_for(mesh, RULES, (None,), (64,)).spec == PartitionSpec(None)
    assert sharding_for(mesh, RULES, ("batch", "length"), (8, 32)).spec == PartitionSpec(("data", "fsdp"), "sequence")


def test_a_rule_can_be_changed():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    replicated = ShardingRules(embed=())
    assert sharding_for(mesh, replicated, ("embed", "mlp"), (64, 96)).spec == PartitionSpec(None, "tensor")


def test_constrain_splits_under_a_mesh_and_does_nothing_without_one():
    x = jnp.zeros((8, 16))
    assert constrain(x, RULES, "batch", None) is x
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    pin_rows = jax.jit(lambda x: constrain(x, RULES, "batch", None))
    with jax.set_mesh(mesh):
        assert {shard.data.shape for shard in pin_rows(x).addressable_shards} == {(1, 16)}


@pytest.mark.integration
@pytest.mark.parametrize("layout", ["stacked", "per_layer"])
def test_every_large_parameter_is_split_over_all_eight_devices(layout):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    config = dataclasses.replace(CONFIG, num_layers=1)
    params = init_params(config, RULES, layout, mesh, seed=0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        largest = max(math.prod(shard.data.shape) for shard in leaf.addressable_shards)
        if path[-1].key == "kernel" or "embed_tokens" in jax.tree_util.keystr(path):
            assert largest * 8 == leaf.size, jax.tree_util.keystr(path)
    wanted = jax.tree.map(lambda x: x.sharding.spec, abstract_params(config, RULES, layout, mesh))
    assert jax.tree.map(lambda x: x.sharding.spec, params) == wanted


def random_params(config: ModelConfig, mesh, layout: str):
    """The same values in either layout: no bias is 0 and no norm's weight 1."""
    one_device = make_mesh(MeshConfig(), jax.devices()[:1])
    leaves, tree = jax.tree.flatten(abstract_params(config, RULES, "stacked", one_device))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [0.2 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves])
    params = params if layout == "stacked" else unstack(jax.tree.map(jnp.asarray, params), config.num_layers)
    return jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract_params(config, RULES, layout, mesh)))


@functools.cache
def computed(config: ModelConfig, mesh_config: MeshConfig, num_devices: int, layout: str, with_gradients: bool):
    """Logits of the real tokens of a packed batch and, on request, the gradient of a loss of them."""
    mesh = make_mesh(mesh_config, jax.devices()[:num_devices])
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (8, 16)).astype(np.int32)
    segment_ids = np.tile(np.repeat([1, 2, 0], [6, 8, 2]), (8, 1)).astype(np.int32)
    positions = np.tile(np.concatenate([np.arange(6), np.arange(8), np.arange(2)]), (8, 1)).astype(np.int32)

    def loss_of(params, batch):
        model = nnx.merge(graphdef(config, RULES, layout), params)
        logits = model.logits(model(*batch)[0])
        losses = jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]
        return (losses * (batch[2] > 0)).mean(), logits

    batch = jax.device_put(
        (tokens, positions, segment_ids), sharding_for(mesh, RULES, ("batch", "length"), tokens.shape)
    )
    with jax.set_mesh(mesh):
        params = random_params(config, mesh, layout)
        if with_gradients:
            (_, logits), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params, batch)
        else:
            (_, logits), gradients = jax.jit(loss_of)(params, batch), None
    return np.asarray(logits)[segment_ids > 0], jax.tree.map(np.asarray, gradients)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("config", "mesh_config", "layout", "with_gradients"),
    [
        (CONFIG, MeshConfig(fsdp=4, tensor=2), "stacked", True),
        (CONFIG, MeshConfig(fsdp=4, tensor=2), "per_layer", False),
        (CONFIG, MeshConfig(fsdp=2, sequence=4), "stacked", True),
        (CONFIG, MeshConfig(fsdp=1, sequence=8), "per_layer", False),
        (CONFIG, MeshConfig(data=8, fsdp=1), "stacked", False),
        (CONFIG, MeshConfig(fsdp=1, tensor=8), "per_layer", False),  # more devices than key/value heads
        (CONFIG, MeshConfig(data=2, fsdp=2, tensor=2), "stacked", False),
        (QWEN3, MeshConfig(fsdp=2, sequence=2, tensor=2), "stacked", True),
        (QWEN3, MeshConfig(fsdp=1, tensor=8), "per_layer", False),
    ],
)
def test_eight_devices_compute_what_one_computes(config, mesh_config, layout, with_gradients):
    logits, gradients = computed(config, mesh_config, 8, layout, with_gradients)
    wanted_logits, wanted_gradients = computed(config, MeshConfig(), 1, "stacked", True)
    np.testing.assert_allclose(logits, wanted_logits, atol=1e-5 * np.abs(wanted_logits).max())

    def close(path, x, y):
        np.testing.assert_allclose(x, y, atol=2e-5 * np.abs(y).max(), err_msg=jax.tree_util.keystr(path))

    if with_gradients:
        jax.tree_util.tree_map_with_path(close, gradients, wanted_gradients)
