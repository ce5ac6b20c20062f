"""First values of parameters: what they are drawn from, and that neither mesh nor layout of devices changes them."""

import dataclasses

import jax
import numpy as np
import pytest

from s1jax.model.qwen2 import init_params
from s1jax.runtime.sharding import MeshConfig, make_mesh
from tests.support.decoding import CONFIG, RULES

pytestmark = pytest.mark.integration


def all_of(tree):
    return tree


def some_of(tree):
    """One parameter that is split over devices in two dimensions, and one of a stack; each takes a program."""
    return {"embed_tokens": tree["embed_tokens"], "up_proj": tree["layers"]["mlp"]["up_proj"]}


def values(seed=0, mesh_config=None, dtype="float32", part=all_of):
    mesh = make_mesh(mesh_config or MeshConfig(), jax.devices()[: 8 if mesh_config else 1])
    return init_params(dataclasses.replace(CONFIG, mlp_dim=96), RULES, "stacked", mesh, seed, dtype, part)


def test_matrices_are_normal_norms_one_and_biases_zero():
    params = values()
    layers = params["layers"]
    kernels = [layers["self_attn"][f"{name}_proj"]["kernel"] for name in "qkvo"]
    kernels += [layers["mlp"][f"{name}_proj"]["kernel"] for name in ("gate", "up", "down")]
    drawn = [np.asarray(x).reshape(-1) for x in [params["embed_tokens"]["weight"], *kernels]]
    for x in drawn:
        assert abs(x.std() / 0.02 - 1) < 0.1 and abs(x.mean()) < 0.003
    # No two are the same numbers, nor are two layers of one.
    several = [*drawn, *(np.asarray(x[1]).reshape(-1) for x in kernels)]
    assert len({x[:100].tobytes() for x in several}) == len(several) == 15
    norms = [params["norm"], layers["input_layernorm"], layers["post_attention_layernorm"]]
    assert all((np.asarray(norm["weight"]) == 1).all() for norm in norms)
    assert all(not np.asarray(layers["self_attn"][f"{name}_proj"]["bias"]).any() for name in "qkv")


def test_seeds_differ_and_meshes_and_dtypes_do_not():
    params = values(part=some_of)
    on_eight = values(mesh_config=MeshConfig(data=2, fsdp=2, tensor=2), part=some_of)
    jax.tree.map(np.testing.assert_array_equal, on_eight, params)
    rounded = values(dtype="bfloat16", part=some_of)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype("bfloat16")), rounded, params)
    for seed in (1, 2**32 - 1):
        other = values(seed, part=some_of)["embed_tokens"]["weight"]
        assert (np.asarray(other) != np.asarray(params["embed_tokens"]["weight"])).mean() > 0.99
