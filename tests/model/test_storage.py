"""`storage.py`: a model whose weights are stored in few bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s1jax.checkpoint.export import save_hf
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.model import storage
from s1jax.model.cache import init_cache
from s1jax.model.qwen2 import abstract_params, graphdef, unstack
from s1jax.model.storage import quantize_matrices
from s1jax.runtime.sharding import MeshConfig, make_mesh
from tests.support.decoding import CONFIG, RULES
from tests.support.models import in_int8, in_nf4, random_params


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_stack_is_stored_as_its_layers_are(family, kind):
    floats = dataclasses.replace(CONFIG, family=family)
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    store = in_nf4 if kind == "nf4" else in_int8
    params = random_params(floats, "stacked", mesh)
    # Storing takes the matrices out of the tree it is given, and the embedding would be in both.
    config, wanted = store(floats, jax.tree.map(jnp.copy, unstack(params, floats.num_layers)))
    config, stacked = store(floats, params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(config, RULES, "stacked", mesh))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), stacked) == shapes
    jax.tree.map(np.testing.assert_array_equal, unstack(stacked, CONFIG.num_layers), wanted)


@pytest.mark.parametrize("layout", ["stacked", "per_layer"])
@pytest.mark.parametrize("store", ["int8", "nf4"])
def test_a_model_is_stored_while_it_is_read_and_never_there_whole(layout, store, tmp_path, monkeypatch):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = random_params(CONFIG, "per_layer", mesh)
    save_hf(tmp_path / "model", CONFIG, params, None, None)
    how = dict(mesh=mesh, rules=RULES, layout=layout, dtype="float32")
    _, floats = load_model(resolve_source(tmp_path / "model"), **how)
    num_kernels = sum(x.nbytes for x in jax.tree.leaves(floats["layers"]) if x.ndim > 2 or layout == "per_layer")
    wanted = quantize_matrices(jax.tree.map(jnp.copy, floats), store)
    del params, floats
    held, before = [], sum(x.nbytes for x in jax.live_arrays())
    quantize_matrix = storage._quantize_matrix

    def count(x, *args):
        held.append(sum(x.nbytes for x in jax.live_arrays()) - before)
        return quantize_matrix(x, *args)

    monkeypatch.setattr(storage, "_quantize_matrix", count)
    _, stored = load_model(resolve_source(tmp_path / "model"), store=store, **how)
    jax.tree.map(np.testing.assert_array_equal, stored, wanted)
    assert max(held) < 0.75 * num_kernels


def logits(config, params, num_tokens=6, with_cache=False):
    tokens = jnp.arange(num_tokens)[None]

    @jax.jit
    def compute(params):
        model = nnx.merge(graphdef(config, RULES, "per_layer"), params)
        cache = init_cache(config, 1, 8, RULES) if with_cache else None
        return model.logits(model(tokens, tokens, jnp.ones_like(tokens), cache)[0])

    return compute(params)


@pytest.mark.integration
@pytest.mark.parametrize(("tied", "family"), [(True, "qwen2"), (False, "qwen2"), (False, "qwen3")])
def test_a_model_computes_with_what_its_stored_weights_stand_for(tied, family):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied, family=family)
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    int8, stored = in_int8(config, random_params(config, "per_layer", mesh))
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(int8, RULES, "per_layer", mesh))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), stored) == wanted

    def floats(tree):
        if not isinstance(tree, dict):
            return tree
        matrix = "kernel" if "kernel" in tree else "weight"
        if "scale" not in tree:
            return {key: floats(value) for key, value in tree.items()}
        scale = tree["scale"].reshape(tree["scale"].shape + (1,) * (tree[matrix].ndim - tree["scale"].ndim))
        return {key: value for key, value in tree.items() if key != "scale"} | {matrix: tree[matrix] * scale}

    np.testing.assert_allclose(logits(int8, stored), logits(config, floats(stored)), atol=2e-6)
