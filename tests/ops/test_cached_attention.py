"""The kernel over caches, interpreted, against attention that holds all scores; what it skips; and four devices against one."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s1jax.model.cache import init_cache
from s1jax.model.qwen2 import graphdef, unstack
from s1jax.ops.cached_attention import BLOCK
from s1jax.ops.keys_values import KeysValues
from s1jax.ops.quantization import quantize
from s1jax.runtime.sharding import MeshConfig, make_mesh
from tests.support.attention import CONFIG, RULES, over_caches
from tests.support.models import one_device, random_params

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, S = 4, 600  # no block divides the slots, which are two chunks


def random_inputs(T=1, N=6, K=2, H=16, shared=(2, 4), seed=0, dtype="float32"):
    """The arguments of `over_caches`, and which queries see something.

    The rows' own slots in no order, of two segments and with free ones between; for each of `shared` a prefix whose rows serve so many.
    """
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    ints = lambda low, high, *shape: jnp.asarray(rng.integers(low, high, shape), jnp.int32)  # noqa: E731
    own_positions = jnp.asarray(np.argsort(rng.random((B, S)), axis=1) + 100, jnp.int32)
    q_positions, q_segments, own_segments = ints(100, 400, B, T), ints(0, 3, B, T), ints(0, 3, B, S)
    prefixes = [
        KeysValues(
            normal(B // rows, K, H, 70), normal(B // rows, K, 70, H),
            jnp.asarray(np.argsort(rng.random((B // rows, 70)), axis=1), jnp.int32), ints(0, 3, B // rows, 70),
        )
        for rows in shared
    ]  # fmt: skip
    prefix_end = jnp.array([0, 1, 35, 70], jnp.int32)
    seen = (own_positions[:, None] <= q_positions[..., None]) & (own_segments[:, None] == q_segments[..., None])
    inputs = (
        normal(B, T, N, H), normal(B, K, H, S), normal(B, K, S, H), q_positions, own_positions, q_segments, own_segments,
        prefixes, prefix_end,
    )  # fmt: skip
    return inputs, np.asarray(seen.any(axis=-1) & (q_segments > 0))


kernel = jax.jit(functools.partial(over_caches, backend="pallas"))
all_scores = jax.jit(functools.partial(over_caches, backend="xla"))


@pytest.mark.integration
@pytest.mark.parametrize(
    "case",
    [
        dict(),
        dict(N=14, H=64, shared=(), dtype="bfloat16"),
        dict(T=25, N=3, K=1, H=24, shared=(2,)),  # more queries than a tile has, which tiles don't divide
    ],
    ids=str,
)
def test_the_kernel_gives_what_all_scores_give(case):
    for seed in range(3):
        inputs, sees = random_inputs(**case, seed=seed)
        assert sees.any()
        output, wanted = kernel(*inputs), all_scores(*inputs)
        assert output.dtype == wanted.dtype
        tolerance = 1e-5 if output.dtype == jnp.float32 else 2e-2
        output, wanted = (np.asarray(x, np.float32) for x in (output, wanted))
        np.testing.assert_allclose(output[sees], wanted[sees], atol=tolerance)
        assert np.isfinite(output).all() and not output[inputs[5] == 0].any()


@pytest.mark.integration
def test_quantized_caches_are_read_with_their_scales():
    (q, k, v, *masks, _, _), sees = random_inputs(T=2, shared=())
    inputs = (q, quantize(10 * k, (2,)), quantize(v, (3,)), *masks)
    np.testing.assert_allclose(kernel(*inputs)[sees], all_scores(*inputs)[sees], atol=1e-5)


@pytest.mark.integration
@pytest.mark.device
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 5e-3), ("float32", 1e-3)])  # TF32
@pytest.mark.parametrize(
    "case", [dict(N=28, K=4, H=128), dict(T=25, N=14, K=2, H=64, shared=(4,)), dict(N=3, K=1, H=24, shared=())], ids=str
)
def test_on_a_gpu_the_kernel_gives_what_all_scores_give_in_float32(case, dtype, error, int8):
    inputs, sees = random_inputs(**case, dtype=dtype)
    inputs = _quantized(inputs) if int8 else inputs
    exact = jax.tree.map(_exact, inputs)
    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(all_scores(*exact))[sees]
    output = np.asarray(kernel(*inputs), np.float32)
    assert np.isfinite(output).all()
    assert np.linalg.norm(output[sees] - wanted) < error * np.linalg.norm(wanted)


def _exact(x: jax.Array) -> jax.Array:
    return x.astype("float32") if jnp.issubdtype(x.dtype, jnp.floating) else x


def _quantized(inputs):
    q, k, v, *masks, prefixes, prefix_end = inputs
    prefixes = [prefix._replace(k=quantize(prefix.k, (2,)), v=quantize(prefix.v, (3,))) for prefix in prefixes]
    return (q, quantize(k, (2,)), quantize(v, (3,)), *masks, prefixes, prefix_end)


@pytest.mark.integration
def test_what_a_query_may_not_see_weighs_nothing_at_all():
    inputs = random_inputs()[0][:7]
    q, k, v, q_positions, positions, q_segments, segments = inputs
    seen = (positions[:, None] <= q_positions[..., None]) & (segments[:, None] == q_segments[..., None])
    hidden = ~seen.any(axis=1)
    assert hidden.any()
    changed = q, jnp.where(hidden[:, None, None], 1e4, k), jnp.where(hidden[:, None, :, None], 1e30, v)
    np.testing.assert_array_equal(kernel(*changed, *inputs[3:]), kernel(*inputs))


@pytest.mark.integration
def test_blocks_in_which_a_row_sees_nothing_are_not_read():
    # The first row sees one block and the second row is done. The third sees two blocks with a free one between them. The last has
    # two filled blocks, but the positions of one are yet to come.
    filled = np.zeros((B, S), np.int32)
    filled[0, BLOCK : BLOCK + 9] = filled[1:3, :9] = filled[2, 2 * BLOCK : 2 * BLOCK + 9] = filled[3, -1] = 1
    filled[3, BLOCK : 2 * BLOCK] = 1
    positions = jnp.tile(jnp.arange(S, dtype=jnp.int32), (B, 1)).at[3, BLOCK : 2 * BLOCK].add(S)
    segments = jnp.array([[1], [0], [1], [1]])
    read = np.zeros((B, S), bool)
    read[0, BLOCK : 2 * BLOCK] = read[2, : 3 * BLOCK] = read[3, 4 * BLOCK :] = True
    q, k, v = random_inputs()[0][:3]
    inputs = (q, k, jnp.where(read[:, None, :, None], v, jnp.nan), jnp.full((B, 1), S), positions, segments)
    output = np.asarray(kernel(*inputs, jnp.asarray(filled)))
    assert np.isfinite(output).all() and not output[1].any() and output[[0, 2, 3]].all()
    filled[0, 5] = 1  # a block that is read shows
    np.testing.assert_array_equal(
        np.isnan(kernel(*inputs, jnp.asarray(filled))).all(axis=(1, 2, 3)), [True, False, False, False]
    )


@pytest.mark.integration
def test_queries_that_see_nothing_give_zeros():
    (q, k, v, q_positions, positions, q_segments, segments, *_), _ = random_inputs()
    for inputs in (
        (q_positions, positions + 1000, q_segments, segments),
        (q_positions, positions, q_segments * 0 + 1, segments * 0),
        (q_positions, positions, q_segments * 0, segments * 0),
    ):
        np.testing.assert_array_equal(kernel(q, k, v, *inputs), jnp.zeros_like(q))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("N", "K", "shared", "int8"),
    [
        (6, 2, (2, 4), False),  # the second prefix has one row, which all devices hold
        (6, 3, (), False),  # so do they hold all heads
        (6, 2, (2,), True),
    ],
)
def test_four_devices_give_what_one_gives_without_gathering_a_cache(N, K, shared, int8):
    inputs, sees = random_inputs(N=N, K=K, shared=shared)
    if int8:
        inputs = _quantized(inputs)
    wanted = kernel(*inputs)
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), jax.devices()[:4])

    def place(tree, names):
        def leaf(x):
            return jax.device_put(x, jax.sharding.NamedSharding(mesh, RULES.spec(names, x.shape, mesh.shape)))

        return jax.tree.map(leaf, tree)

    of_heads = ("batch", "kv_heads", None, None)
    q, k, v, *masks, prefixes, prefix_end = inputs
    k, v = place(k, of_heads), place(v, of_heads)
    prefixes = [prefix._replace(k=place(prefix.k, of_heads), v=place(prefix.v, of_heads)) for prefix in prefixes]
    with jax.set_mesh(mesh):
        split = jax.jit(functools.partial(over_caches, backend="pallas", rules=RULES))
        inputs = (place(q, ("batch", None, "heads", None)), k, v, *masks, prefixes, prefix_end)
        text = split.lower(*inputs).compile().as_text()
        np.testing.assert_allclose(split(*inputs)[sees], wanted[sees], atol=1e-6)
    sizes = [f"{S}]", f"{S},16]", "70]", "70,16]"]
    gathered = [line for line in text.splitlines() if "all-gather(" in line or "all-to-all(" in line]
    assert not [line for line in gathered if any(size in line for size in sizes)], gathered


@pytest.mark.integration
def test_a_prompt_in_chunks_goes_through_a_model_as_with_all_scores():
    config = replace(CONFIG, num_layers=1)
    params = unstack(random_params(config, "stacked", one_device()), 1)
    tokens = jax.random.randint(jax.random.key(0), (2, 12), 0, config.vocab_size)
    positions, segment_ids = jnp.tile(jnp.arange(12), (2, 1)), jnp.ones((2, 12), jnp.int32).at[1, 9:].set(0)

    def hidden(backend):
        @jax.jit
        def step(chunk, cache):
            return nnx.merge(graphdef(config, RULES, "per_layer"), params)(*chunk, cache, attention=backend)

        cache, outputs = init_cache(config, 2, 16, RULES), []
        for begin in (0, 4, 8):
            output, cache = step([x[:, begin : begin + 4] for x in (tokens, positions, segment_ids)], cache)
            outputs.append(output)
        return np.concatenate(outputs, axis=1)

    output, wanted = hidden("pallas"), hidden("xla")
    real = np.asarray(segment_ids > 0)
    np.testing.assert_allclose(output[real], wanted[real], atol=1e-5)


@pytest.mark.parametrize(("platform", "kernels"), [("gpu", 3), ("cpu", 0), ("tpu", 0)])
def test_only_a_gpu_has_the_kernel_by_default(platform, kernels, monkeypatch):
    monkeypatch.setattr("s1jax.ops.attention.platform", lambda: platform)
    inputs, _ = random_inputs()
    traced = jax.make_jaxpr(lambda *inputs: over_caches(*inputs))(*inputs)
    assert str(traced).count("name=cached_attention") == kernels
