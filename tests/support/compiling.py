"""What the tests of compiled programs share: a small model, topologies, and which compilers are installed."""

import importlib.util

import pytest

from s1jax.model.config import ModelConfig
from s1jax.perf.decoding import compile_decode
from s1jax.perf.topology import topology_devices
from s1jax.runtime.sharding import ShardingRules, make_mesh

SMALL = ModelConfig(
    vocab_size=256, embed_dim=256, mlp_dim=512, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=8192, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def compile_on(config, topology, mesh, *shape):
    return compile_decode(config, topology, make_mesh(mesh, topology_devices(topology)), *shape, ShardingRules(), None)
