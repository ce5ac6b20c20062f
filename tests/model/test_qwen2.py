"""`qwen2.py`: what must change no logit (the future, padding, packing, batch-mates, a cache, the layout)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s1jax.model.cache import init_cache
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import abstract_params, graphdef, unstack
from tests.support.models import RULES, full_logits, one_device, random_tokens

pytestmark = pytest.mark.usefixtures("quick_compilation")

# What changes no logit.

TINY = ModelConfig(
    vocab_size=128, embed_dim=32, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=64, tie_word_embeddings=False, dtype="float32",
)  # fmt: skip
QWEN3 = dataclasses.replace(TINY, family="qwen3", head_dim=16)
LAYOUTS = ["stacked", "per_layer"]


@functools.cache
def tiny_params(layout: str, config: ModelConfig = TINY):
    """The same values in either layout."""
    if layout == "per_layer":
        return unstack(tiny_params("stacked", config), config.num_layers)
    leaves, tree = jax.tree.flatten(abstract_params(config, RULES, "stacked", one_device()))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32) for x in leaves])


@functools.cache
def tiny_logits(layout: str, config: ModelConfig = TINY):
    params = tiny_params(layout, dataclasses.replace(config, dtype="float32"))
    return functools.partial(jax.jit(functools.partial(full_logits, config, layout)), params)


def assert_same(x, y, tolerance: float = 1e-5):
    np.testing.assert_allclose(x, y, atol=tolerance * np.abs(y).max(), rtol=0)


@pytest.mark.integration
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("segments", [[1] * 10, [1, 1, 1, 2, 2, 2, 2, 0, 0, 0]], ids=["whole", "packed"])
def test_no_logit_depends_on_the_future_or_on_another_segment(segments, layout):
    tokens = np.arange(10)[None]  # all different, so that the embedding's rows tell positions apart
    positions = np.concatenate([np.arange(segments.count(s)) for s in dict.fromkeys(segments)])[None]

    def squares(table):
        params = tiny_params(layout) | {"embed_tokens": {"weight": table}}
        return (full_logits(TINY, layout, params, tokens, positions, np.array([segments])) ** 2).sum(axis=(0, 2))

    jacobian = jax.jit(jax.jacrev(squares))(tiny_params(layout)["embed_tokens"]["weight"])  # [T, V, D]
    influences = np.abs(jacobian).max(axis=2)[:, :10]
    may = np.tril(np.ones((10, 10), bool)) & (np.array(segments)[:, None] == np.array(segments)[None])
    np.testing.assert_array_equal(influences > 0, may)


@pytest.mark.integration
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_changes_no_logit(left, layout):
    tokens = random_tokens(TINY, (1, 8))
    alone = tiny_logits(layout)(tokens)
    real = slice(5, 13) if left else slice(0, 8)
    padded_tokens, positions, segment_ids = (
        random_tokens(TINY, (1, 13), seed=1),
        np.zeros((1, 13), int),
        np.zeros((1, 13), int),
    )
    padded_tokens[:, real], positions[:, real], segment_ids[:, real] = tokens, np.arange(8), 1
    assert_same(tiny_logits(layout)(padded_tokens, positions, segment_ids)[:, real], alone)


@pytest.mark.integration
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_segments_give_what_each_gives_alone(layout):
    tokens = random_tokens(TINY, (2, 13))
    positions = np.tile(np.concatenate([np.arange(5), np.arange(8)]), (2, 1))
    segment_ids = np.tile(np.repeat([1, 2], [5, 8]), (2, 1))
    packed = tiny_logits(layout)(tokens, positions, segment_ids)
    assert_same(packed[:, :5], tiny_logits(layout)(tokens[:, :5]))
    assert_same(packed[:, 5:], tiny_logits(layout)(tokens[:, 5:]))


@pytest.mark.integration
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_mates_change_nothing(layout):
    tokens = random_tokens(TINY, (4, 8))
    together = tiny_logits(layout)(tokens)
    for i in range(4):
        assert_same(together[i : i + 1], tiny_logits(layout)(tokens[i : i + 1]))
    others = np.where(np.arange(4)[:, None] == 2, tokens, random_tokens(TINY, (4, 8), seed=1))
    np.testing.assert_array_equal(tiny_logits(layout)(others)[2], together[2])


@pytest.mark.integration
def test_shifting_all_positions_changes_logits_by_rounding_only():
    tokens = random_tokens(TINY, (2, 16))
    positions = np.tile(np.arange(16), (2, 1))
    for dtype, tolerance in (("float32", 5e-3), ("bfloat16", 5e-2)):
        logits = tiny_logits("per_layer", dataclasses.replace(TINY, dtype=dtype))
        assert_same(logits(tokens, positions + 20000), logits(tokens, positions), tolerance)


@pytest.mark.integration
@pytest.mark.parametrize("config", [TINY, QWEN3], ids=["qwen2", "qwen3"])
def test_stacked_and_per_layer_layouts_give_the_same_logits(config):
    tokens = random_tokens(config, (2, 16))
    assert_same(tiny_logits("stacked", config)(tokens), tiny_logits("per_layer", config)(tokens))


@pytest.mark.integration
def test_remat_changes_no_gradient():
    tokens = jnp.asarray(random_tokens(TINY, (2, 8)))
    positions, ones = jnp.tile(jnp.arange(8), (2, 1)), jnp.ones((2, 8), jnp.int32)

    def loss(params, remat):
        model = nnx.merge(graphdef(TINY, RULES, "stacked"), params)
        return (model(tokens, positions, ones, remat=remat)[0] ** 2).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    jax.tree.map(assert_same, gradient(tiny_params("stacked"), "full"), gradient(tiny_params("stacked"), "none"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("config", "chunks"),
    [*((TINY, chunks) for chunks in ([5, *[1] * 8], [13], [3, 5, 5], [1] * 13)), (QWEN3, [5, *[1] * 8])],
    ids=lambda x: str(x) if isinstance(x, list) else x.family,
)
def test_cached_decode_equals_the_full_forward(config, chunks):
    B, T, capacity = 3, 13, 20
    tokens = random_tokens(config, (B, T))
    # Rows are padded on the right within the first chunk, so that they decode at different positions.
    segment_ids = np.ones((B, T), np.int32)
    for row, padding in enumerate(range(min(B, chunks[0]))):
        segment_ids[row, chunks[0] - padding : chunks[0]] = 0
    positions = np.maximum(np.cumsum(segment_ids, axis=1) - 1, 0).astype(np.int32)

    @jax.jit
    def append(params, cache, *inputs):
        model = nnx.merge(graphdef(config, RULES, "per_layer"), params)
        hidden, cache = model(*inputs, cache)
        return model.logits(hidden), cache

    cache = jax.jit(lambda: init_cache(config, B, capacity, RULES))()
    # What lies in slots not yet written must not matter.
    cache = cache._replace(
        k=tuple(x + 7.0 for x in cache.k), v=tuple(x - 7.0 for x in cache.v), positions=cache.positions
    )
    logits = []
    for begin, end in zip(np.cumsum([0, *chunks[:-1]]), np.cumsum(chunks), strict=True):
        part, cache = append(
            tiny_params("per_layer", config), cache, *(x[:, begin:end] for x in (tokens, positions, segment_ids))
        )
        logits.append(part)
    assert int(cache.num_written) == T
    logits = np.concatenate(logits, axis=1)
    for row in range(B):
        real = segment_ids[row] > 0
        assert_same(logits[row, real], tiny_logits("per_layer", config)(tokens[row : row + 1, real])[0])


def test_a_cache_in_the_stacked_layout_is_refused():
    model = nnx.merge(graphdef(TINY, RULES, "stacked"), tiny_params("stacked"))
    ones = jnp.ones((1, 1), jnp.int32)
    with pytest.raises(ValueError, match="per-layer layout"):
        model(ones, ones, ones, init_cache(TINY, 1, 4, RULES))


@pytest.mark.integration
@pytest.mark.parametrize("config", [TINY, QWEN3], ids=["qwen2", "qwen3"])
def test_bfloat16_compute_keeps_norms_and_logits_in_float32(config):
    params = tiny_params("per_layer", config)
    config = dataclasses.replace(config, dtype="bfloat16")
    model = nnx.merge(graphdef(config, RULES, "per_layer"), params)
    ones = jnp.ones((1, 4), jnp.int32)
    hidden, cache = model(ones, ones, ones, init_cache(config, 1, 4, RULES))
    assert (hidden.dtype, cache.k[0].dtype, model.logits(hidden).dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # Squares of 256 values near 3: a bfloat16 mean or scale would be off by far more than the output's own rounding.
    x = (3 + jax.random.normal(jax.random.key(0), (1, 4, 32))).astype(jnp.bfloat16)
    x64, weight = np.asarray(x, np.float64), np.asarray(model.norm.weight[...], np.float64)
    wanted = x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(np.asarray(model.norm(x), np.float64), wanted, rtol=2**-8)


# Configs.
