"""Train states of random numbers, and the comparison of trees bit for bit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from s1jax.checkpoint.source import ModelConfig, load_model
from s1jax.model.qwen2 import abstract_params
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh

RULES = ShardingRules()


def mesh_of(data=1, fsdp=4, tensor=2):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def load(source, layout="stacked", param_dtype=None, mesh=None):
    return load_model(source, mesh or mesh_of(), RULES, layout, dtype="float32", param_dtype=param_dtype)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
    assert jax.tree.structure(a) == jax.tree.structure(b)


class State(NamedTuple):
    params: dict
    opt_state: optax.OptState
    step: jax.Array


def make_state(mesh, seed=0):
    """A config, and a train state of random numbers on the mesh."""
    config = ModelConfig.from_hf(TINY, "float32")
    rng = np.random.default_rng(seed)
    target = abstract_params(config, RULES, "stacked", mesh)
    params = jax.tree.map(lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32), x.sharding), target)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.jit(lambda p: State(p, optimizer.init(p), jnp.int32(seed)))(params)
    return config, jax.tree.map(lambda x: x if x.ndim else jax.device_put(x, replicated), state)


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


TINY = dict(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    use_sliding_window=False,
    torch_dtype="float32",
    eos_token_id=[7, 9],
    bos_token_id=3,
)
