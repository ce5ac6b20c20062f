"""Weights and cache in few bits: what is stored, and that products with it are those with the numbers it stands for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s1jax.checkpoint.export import save_hf
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.data.condition import Limits
from s1jax.decode.engine import Engine
from s1jax.decode.load import load_engine
from s1jax.model import storage
from s1jax.model.qwen2 import abstract_params, graphdef, init_cache, unstack
from s1jax.model.storage import quantize_matrices, store_in_int8
from s1jax.ops.quantization import dequantize, quantize, quantize_nf4
from s1jax.runtime.sharding import MeshConfig, make_mesh
from tests.support.attention import over_caches, random_mask_inputs, random_qkv
from tests.support.decoding import CONFIG, RULES, WAIT, at_point, make_engine, make_request
from tests.support.models import in_nf4, random_params


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


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_stack_is_stored_as_its_layers_are(kind):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    store = in_nf4 if kind == "nf4" else lambda *args: store_in_int8(*args, ["weights"])
    params = random_params(CONFIG, "stacked", mesh)
    # Storing takes the matrices out of the tree it is given, and the embedding would be in both.
    config, wanted = store(CONFIG, jax.tree.map(jnp.copy, unstack(params, CONFIG.num_layers)))
    config, stacked = store(CONFIG, params)
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


def test_attention_reads_what_the_stored_keys_and_values_stand_for():
    q, k, v = random_qkv()
    masks = random_mask_inputs()
    k, v = quantize(k, (2,)), quantize(v, (3,))
    wanted = over_caches(q, dequantized(k), dequantized(v), *masks)
    np.testing.assert_allclose(over_caches(q, k, v, *masks), wanted, atol=1e-5)


def logits(config, params, num_tokens=6, with_cache=False):
    tokens = jnp.arange(num_tokens)[None]

    @jax.jit
    def compute(params):
        model = nnx.merge(graphdef(config, RULES, "per_layer"), params)
        cache = init_cache(config, 1, 8, RULES) if with_cache else None
        return model.logits(model(tokens, tokens, jnp.ones_like(tokens), cache)[0])

    return compute(params)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_with_what_its_stored_weights_stand_for(tied):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    int8, stored = store_in_int8(config, random_params(config, "per_layer", mesh), ["weights"])
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


def int8_engine(*int8, mesh_config=None):
    model = make_engine(mesh_config).model
    config, params = store_in_int8(model.config, model.params, int8)
    return Engine(dataclasses.replace(model, config=config, params=params))


def test_what_cannot_be_stored_in_eight_bits_is_refused():
    with pytest.raises(ValueError, match="weight is neither weights nor cache"):
        store_in_int8(CONFIG, {}, ["weight"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "int8",
    [("weights",), ("cache",), ("weights", "cache")],
    ids="+".join,
)
def test_forks_rows_and_devices_change_no_token_in_eight_bits_but_where_the_cache_tips_one(int8):
    engine = int8_engine(*int8)
    points = (Limits(40, 0, 2), Limits(9), Limits(40), Limits(30, 20))
    requests = [
        make_request(
            prompt=(9 + i % 2, 21, 33), max_thinking_tokens=40, min_thinking_tokens=20, num_ignore=2, ignore_ids=(WAIT,),
            max_answer_tokens=6, points=points, temperature=1.0, problem=i,
        )
        for i in range(5)
    ]  # fmt: skip
    forked = dict(engine.stream(requests, num_rows=3))
    single = {
        i: tuple(engine.decode([at_point(request, point)])[0] for point in points) for i, request in enumerate(requests)
    }
    sharded = dict(int8_engine(*int8, mesh_config=MeshConfig(data=4, fsdp=1, tensor=2)).stream(requests))
    # Of 5 traces, of which a tipped one may change all of its points.
    most = 1 if "cache" in int8 else 0
    for others in (single, sharded):
        assert sum(forked[i] != others[i] for i in forked) <= most
        differing = [(a, b) for i in forked for a, b in zip(forked[i], others[i], strict=True) if a != b]
        # They differ from a token on that was drawn (in one of them perhaps an end of thinking, for which a forced one stands).
        for a, b in differing:
            at = next((at for at, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), None)
            assert at is not None and not (a.forced[at] and b.forced[at])


@pytest.mark.slow
@pytest.mark.parametrize(("int8", "most"), [(("weights",), 0.02), (("cache",), 0.005)])
def test_a_real_model_says_nearly_the_same_in_eight_bits(real_model, shared, int8, most):
    question = json.loads((shared / "data" / "gsm8k_test.jsonl").read_text().splitlines()[0])["question"]

    def log_probabilities(int8):
        engine, chat = load_engine(resolve_source(real_model), "float32", int8=int8)
        tokens = jnp.array([chat.encode_prompt(question)])
        positions = jnp.arange(tokens.shape[1])[None]

        @jax.jit
        def compute(params):
            model = nnx.merge(graphdef(engine.model.config, RULES, "per_layer"), params)
            cache = init_cache(engine.model.config, 1, 256, RULES)
            return jax.nn.log_softmax(model.logits(model(tokens, positions, jnp.ones_like(tokens), cache)[0])[0])

        return compute(engine.model.params)

    wanted, ours = log_probabilities(()), log_probabilities(int8)
    divergence = float((jnp.exp(wanted) * (wanted - ours)).sum(axis=-1).mean())
    assert 1e-5 < divergence < most
