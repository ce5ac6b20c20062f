"""The kernels against attention that holds all scores, its outputs and gradients; what they refuse; and many devices against one."""

from __future__ import annotations

import functools
import importlib.util
from typing import get_args

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s1jax.model.cache import init_cache
from s1jax.model.qwen2 import Remat, abstract_params, graphdef, unstack
from s1jax.ops.attention import default_backend, self_attention
from s1jax.ops.blocked_attention import _needed_pairs, blocked_attention
from s1jax.perf.topology import topology_devices
from s1jax.runtime.sharding import MeshConfig, make_mesh, sharding_for
from tests.support.attention import CONFIG, RULES, of_all_scores, over_caches, over_itself, random_inputs, rows
from tests.support.models import one_device, random_params

pytestmark = pytest.mark.usefixtures("quick_compilation")

ON_CPU = ["xla", "pallas", "splash"]


# All cases have one size, so that each backend is compiled once. No block divides it.
CASES = {
    "one segment": rows([300], [300]),
    "packed": rows([100, 1, 129, 70], [20, 280]),
    "packed and padded": rows([90, 30], [257, 10], length=300),
    "a row of padding": rows([299], [], length=300),
}


KERNELS = {name: functools.partial(over_itself, backend=name) for name in ON_CPU} | {
    "small blocks": functools.partial(blocked_attention, max_block=8),
    "all scores": of_all_scores,
}


@functools.cache
def outputs_and_gradients(kernel: str):
    def function(q, k, v, d_output, *row):
        output, pull_back = jax.vjp(lambda *qkv: KERNELS[kernel](*qkv, *row), q, k, v)
        return output, *pull_back(d_output)

    return jax.jit(function)


def assert_same_as_all_scores(kernel, positions, segment_ids):
    real = np.asarray(segment_ids > 0)
    *qkv, d_output = random_inputs(positions)
    inputs = (*qkv, d_output * real[:, :, None, None], positions, segment_ids)
    (output, *gradients), (wanted, *wanted_gradients) = (
        outputs_and_gradients(name)(*inputs) for name in (kernel, "all scores")
    )
    assert np.isfinite(output).all()
    np.testing.assert_allclose(np.asarray(output)[real], np.asarray(wanted)[real], atol=1e-5)
    for one, other in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("case", CASES)
def test_a_backend_gives_outputs_and_gradients_of_all_scores(backend, case):
    assert_same_as_all_scores(backend, *CASES[case])


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(3))
def test_blocks_follow_the_mask_for_positions_and_segments_in_any_order(seed):
    rng = np.random.default_rng(seed)
    assert_same_as_all_scores("small blocks", *(jnp.asarray(rng.integers(0, n, (2, 50)), jnp.int32) for n in (30, 4)))


def test_blocks_visit_exactly_the_pairs_that_packed_rows_need():
    positions, segment_ids = rows([9, 14, 1, 30], [54], [3, 3])
    seen = (segment_ids[:, :, None] == segment_ids[:, None]) & (segment_ids[:, :, None] > 0)
    seen &= positions[:, None] <= positions[:, :, None]
    size, B = 6, 3
    wanted = np.asarray(seen).reshape(B, 9, size, 9, size).any(axis=(2, 4))
    needed = _needed_pairs(positions.reshape(-1, size), segment_ids.reshape(-1, size), B)
    np.testing.assert_array_equal(needed, wanted)


@pytest.mark.integration
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_token_is_moved_by_exactly_its_own_segment_up_to_itself(backend):
    positions, segment_ids = CASES["packed"]
    q, k, v, _ = random_inputs(positions)
    may = np.tril(np.ones((300, 300), bool)) & np.asarray(segment_ids[0][:, None] == segment_ids[0])
    for query in (0, 99, 100, 101, 255, 256, 299):
        moves = jnp.zeros_like(q).at[0, query].set(1.0)
        _, _, dk, dv = outputs_and_gradients(backend)(q, k, v, moves, positions, segment_ids)
        np.testing.assert_array_equal(np.abs(dv[0]).max(axis=(0, 2)) > 0, may[query])
        assert not np.asarray(dk)[0, :, :, ~may[query]].any()
        assert not np.asarray(dk)[1].any() and not np.asarray(dv)[1].any()


@pytest.mark.integration
@pytest.mark.parametrize("backend", ["pallas", "splash"])
def test_a_row_out_of_order_gives_nan_where_a_kernel_masks_by_place(backend):
    # Positions that fall; a segment that starts again, goes on after another, or after padding; last, rows as they should be.
    positions = jnp.array([[0, 1, 3, 2], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 5, 7]])
    segment_ids = jnp.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 1, 2], [1, 0, 1, 1], [1, 1, 3, 3], [0, 0, 1, 1]])
    output = np.asarray(over_itself(*random_inputs(positions)[:3], positions, segment_ids, backend))
    np.testing.assert_array_equal(np.isnan(output).all(axis=(1, 2, 3)), [True] * 4 + [False] * 2)
    assert np.isfinite(output[4:]).all()


def test_backends_that_cannot_do_what_they_are_given_refuse():
    row = CASES["packed"]
    q, k, v, _ = random_inputs(row[0])
    with pytest.raises(ValueError, match="cudnn runs on gpu, not on cpu, whose default is xla"):
        over_itself(*(x.astype("bfloat16") for x in (q, k, v)), *row, "cudnn")
    for backend in ("cudnn", "splash"):
        with pytest.raises(ValueError, match=f"{backend}.: over caches, choose xla or pallas"):
            over_caches(q, k, v, row[0], row[0], row[1], row[1], backend=backend)


def test_cudnn_refuses_packed_rows_and_float32(monkeypatch):
    monkeypatch.setattr("s1jax.ops.attention.platform", lambda: "gpu")
    row = CASES["one segment"]
    q, k, v, _ = random_inputs(row[0])
    with pytest.raises(ValueError, match="cudnn knows no segments: choose pallas, or give each example a row"):
        over_itself(*(x.astype("bfloat16") for x in (q, k, v)), *row, "cudnn")
    with pytest.raises(ValueError, match="cudnn computes in bfloat16 or float16, not float32"):
        self_attention(q, k, v, *row, backend="cudnn", packed=False)


def test_a_cache_is_no_work_for_a_kernel_of_whole_rows():
    params = unstack(random_params(CONFIG, "stacked", one_device()), CONFIG.num_layers)
    tokens = jnp.ones((2, 4), jnp.int32)

    def forward():
        model = nnx.merge(graphdef(CONFIG, RULES, "per_layer"), params)
        return model(tokens, tokens, tokens, init_cache(CONFIG, 2, 8, RULES), attention="splash")

    with pytest.raises(ValueError, match="splash': over caches, choose xla or pallas"):
        jax.eval_shape(forward)


def test_the_default_is_chosen_by_platform():
    assert [default_backend(name) for name in ("cpu", "gpu", "tpu")] == ["xla", "pallas", "splash"]


# Many devices.


@functools.cache
def loss_and_gradients(mesh_config: MeshConfig, num_devices: int, backend: str, remat: str = "attention"):
    mesh = make_mesh(mesh_config, jax.devices()[:num_devices])
    params = random_params(CONFIG, "stacked", mesh)
    params = jax.tree.map(lambda x: 10 * x if x.ndim > 2 else x, params)  # so that scores differ
    positions, segment_ids = rows([100, 31, 133], [20, 230], [264], [7, 8, 9])
    tokens = jax.random.randint(jax.random.key(0), positions.shape, 0, CONFIG.vocab_size)

    def loss(params, *inputs):
        hidden, _ = nnx.merge(graphdef(CONFIG, RULES, "stacked"), params)(*inputs, remat=remat, attention=backend)
        return ((hidden**2 * (inputs[2] > 0)[..., None]) * jnp.cos(jnp.arange(CONFIG.embed_dim))).mean()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss)).lower(params, tokens, positions, segment_ids).compile()
        return jax.device_get(step(params, tokens, positions, segment_ids)), step.as_text()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("mesh_config", "backend"),
    [
        (MeshConfig(fsdp=1, sequence=8), "xla"),  # more devices than key/value heads
        pytest.param(MeshConfig(fsdp=2, sequence=2, tensor=2), "xla", marks=pytest.mark.slow),
        (MeshConfig(fsdp=2, sequence=4), "pallas"),
        (MeshConfig(data=2, fsdp=2, sequence=2), "splash"),
    ],
    ids=str,
)
def test_eight_devices_that_share_out_the_length_give_what_one_gives(mesh_config, backend):
    (one_loss, one), _ = loss_and_gradients(MeshConfig(), 1, "xla")
    (loss, gradients), text = loss_and_gradients(mesh_config, 8, backend)
    np.testing.assert_allclose(loss, one_loss, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()), gradients, one)
    assert ("all-to-all" in text) == (mesh_config.sequence > 1)


@pytest.mark.integration
def test_heads_that_devices_cannot_share_are_refused_where_they_share_the_length():
    row = CASES["packed"]
    inputs = (*random_inputs(row[0]), *row)
    with (
        jax.set_mesh(make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))),
        pytest.raises(ValueError, match="6 attention heads cannot be shared out over tensor x sequence = 4 devices"),
    ):
        jax.eval_shape(functools.partial(over_itself, backend="xla"), *inputs[:3], *row)
    wanted = outputs_and_gradients("all scores")(*inputs)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=4))):  # without, each of the four has all heads
        got = outputs_and_gradients("xla")(*inputs)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# Rematerialisation.


def num_runs(jaxpr, kernel: str) -> int:
    """How often operations of this name stand in a program and what it calls."""
    runs = 0
    for equation in jaxpr.eqns:
        inner = jax.extend.core.jaxprs_in_params(equation.params)
        runs += (equation.primitive.name == kernel) + sum(num_runs(x, kernel) for x in inner)
    return runs


# In the scans over layers: a forward and a backward pass, of which pallas and splash have a kernel for queries and one for keys.
@pytest.mark.integration
@pytest.mark.parametrize(
    ("backend", "kernel", "runs"), [("xla", "while", 2), ("pallas", "pallas_call", 3), ("splash", "pallas_call", 3)]
)
@pytest.mark.parametrize("mesh_config", [MeshConfig(fsdp=8), MeshConfig(fsdp=4, sequence=2)], ids=str)
def test_only_full_remat_computes_attention_twice(backend, kernel, runs, mesh_config):
    row = rows(*[[200, 60]] * 8)

    def loss(params, remat):
        model = nnx.merge(graphdef(CONFIG, RULES, "stacked"), params)
        return model(row[0], *row, remat=remat, attention=backend)[0].sum()

    mesh = make_mesh(mesh_config)
    params = abstract_params(CONFIG, RULES, "stacked", mesh)
    with jax.set_mesh(mesh):
        gradient = {
            remat: jax.make_jaxpr(jax.grad(functools.partial(loss, remat=remat)))(params) for remat in get_args(Remat)
        }
    found = {
        remat: sum(num_runs(x.params["jaxpr"].jaxpr, kernel) for x in program.eqns if x.primitive.name == "scan")
        for remat, program in gradient.items()
    }
    assert found == {"none": runs, "dots": runs, "attention": runs, "full": runs + 1}


# Other hardware.


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "mesh_config", "backend"),
    [
        pytest.param("h100:1x1", MeshConfig(), "pallas", marks=needs("jax_cuda12_plugin")),
        pytest.param("h100:1x1", MeshConfig(), "cudnn", marks=needs("jax_cuda12_plugin")),
        pytest.param("h100:1x8", MeshConfig(fsdp=1, sequence=8), "pallas", marks=needs("jax_cuda12_plugin")),
        pytest.param("v5p:2x2x1", MeshConfig(fsdp=1, sequence=4), "splash", marks=needs("libtpu")),
    ],
    ids=str,
)
def test_a_row_of_32k_compiles_forward_and_backward_in_memory_of_its_length(topology, mesh_config, backend):
    T, N, K, H = 32768, 40, 8, 128  # of the 32B model
    mesh = make_mesh(mesh_config, topology_devices(topology))

    def shape(names, *sizes, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding_for(mesh, RULES, names, sizes))

    def loss(q, k, v, positions, segment_ids):
        output = self_attention(q, k, v, positions, segment_ids, backend, packed=backend != "cudnn", rules=RULES)
        return output.astype("float32").sum()

    q = shape(("batch", "length", "heads", None), 1, T, N, H)
    k, v = (
        shape(("batch", "kv_heads", None, "length"), 1, K, H, T),
        shape(("batch", "kv_heads", "length", None), 1, K, T, H),
    )
    ints = shape(("batch", "length"), 1, T, dtype="int32")
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(q, k, v, ints, ints)
        lowered = traced.lower(lowering_platforms=("cuda" if topology.startswith("h100") else "tpu",))
        memory = lowered.compile().memory_analysis()
    one = T * N * H * 2 / mesh.size  # bytes of the queries
    assert memory.temp_size_in_bytes < 10 * one  # all scores would take 512 times `one`, in float32
