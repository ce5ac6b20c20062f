"""The compiled decode loop and training step: for this machine always, for H100s and TPUs if their compilers are installed."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from configs.s1_32b import CONFIG as S1_32B
from s1jax.data.condition import Condition
from s1jax.data.packing import Shape
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.model.config import ModelConfig, qwen2_5
from s1jax.model.flops import num_matrix_weights
from s1jax.perf.compiled import REMATERIALISATION, array_bytes, stderr_to_text, written_in_loops
from s1jax.perf.decoding import check_decode, compile_decode
from s1jax.perf.topology import MEMORY, topology_devices
from s1jax.perf.training import check_train
from s1jax.runtime.files import ROOT
from s1jax.runtime.sharding import MeshConfig, make_mesh
from s1jax.train.compile import TrainingProgram, training_program

pytestmark = pytest.mark.integration

SMALL = ModelConfig(
    vocab_size=256, embed_dim=256, mlp_dim=512, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=8192, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def cache_bytes(config, num_rows, capacity):
    """Bytes of one layer's keys or values."""
    return num_rows * config.num_kv_heads * capacity * config.head_dim * (2 if config.dtype == "bfloat16" else 4)


def compile_on(config, topology, mesh, *shape):
    return compile_decode(config, topology, make_mesh(mesh, topology_devices(topology)), *shape)


# A single row is a separate case, because XLA drops its dimension.
@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_decode_step_copies_neither_weights_nor_cache_on_this_machine(num_rows):
    compiled = compile_on(SMALL, "cpu:1", MeshConfig(fsdp=1), num_rows, 64, 4096)
    written = written_in_loops(compiled)
    smallest = min(cache_bytes(SMALL, num_rows, 4096), 4 * SMALL.embed_dim**2)
    assert written and written[0][2] < smallest, written[:5]
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * smallest


@pytest.mark.parametrize("in_a_branch", [False, True])
def test_an_array_that_a_loop_writes_is_found(in_a_branch):
    def sort_all(x):
        return jax.lax.cond(x[0, 0] > 0, jnp.sort, lambda x: x, x) if in_a_branch else jnp.sort(x)

    def loop(x):
        return jax.lax.while_loop(lambda c: c[1] < 9, lambda c: (sort_all(c[0]), c[1] + 1), (x, 0))[0]

    compiled = jax.jit(loop).lower(jnp.ones((64, 64))).compile()
    assert "sort" in {kind for _, kind, size in written_in_loops(compiled) if size == 64 * 64 * 4}


def test_a_mesh_of_three_devices_gathers_no_weights():
    config = replace(SMALL, num_heads=3, num_kv_heads=3, embed_dim=192, mlp_dim=768, vocab_size=768)
    compiled = compile_on(config, "cpu:3", MeshConfig(fsdp=1, tensor=3), 2, 64, 256)
    shapes = re.findall(r"= (\w+\[[\d,]*\])\S* all-gather", compiled.as_text())
    assert all(array_bytes(shape) < 4 * 192 * 192 for shape in shapes), shapes


def test_more_devices_than_key_value_heads_rematerialise_nothing_in_training():
    data = replace(S1_32B.data, max_length=1024, num_row_lengths=1)
    config = replace(S1_32B, mesh=MeshConfig(sequence=4), data=data, dtype="float32")
    assert check_train(config, SMALL, "cpu:8")["involuntary_rematerialisations"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    [pytest.param("h100:1x1", marks=needs("jax_cuda12_plugin")), pytest.param("v5p:2x2x1", marks=needs("libtpu"))],
)
def test_seven_billion_at_32k_decode_in_place_with_small_temporaries(topology):
    config = qwen2_5("7B")
    compiled = compile_on(config, topology, MeshConfig(data=-1, fsdp=1), 8, 512, 32768)
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * 2 * config.num_layers * cache_bytes(config, 8, 32768)
    if topology.startswith("h100"):
        written = written_in_loops(compiled)
        q_proj_bytes = 2 * config.embed_dim * config.num_heads * config.head_dim
        assert written and written[0][2] < q_proj_bytes, written[:5]


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    [pytest.param("h100:1x8", marks=needs("jax_cuda12_plugin")), pytest.param("v5p:2x2x2", marks=needs("libtpu"))],
)
def test_thirty_two_billion_decode_on_eight_devices_without_gathering_weights(topology):
    config = qwen2_5("32B")
    compiled = compile_on(config, topology, MeshConfig(fsdp=1, tensor=8), 8, 512, 32768)
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * 2 * config.num_layers * cache_bytes(config, 8, 32768) / 8
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < MEMORY[topology.partition(":")[0]]
    written = written_in_loops(compiled)
    gathered = [size for name, kind, size in written if "all-gather" in kind]
    # The scores of sampled rows under two masks are 9.7 MB; the smallest matrix of a layer is larger.
    k_proj_bytes = 2 * config.embed_dim * config.num_kv_heads * config.head_dim
    assert written and all(size < k_proj_bytes for size in gathered), gathered
    # Outside of the loop no weights are gathered either.
    shapes = re.findall(r"= (\w+\[[\d,]*\])\S* all-gather", compiled.as_text())
    assert all(array_bytes(shape) < k_proj_bytes for shape in shapes), shapes


@pytest.mark.parametrize("frozen", ["int8", "nf4"])
def test_adapters_over_stored_weights_are_checked(frozen):
    data = replace(S1_32B.data, max_length=256, num_row_lengths=1)
    config = replace(S1_32B, mesh=MeshConfig(), data=data, lora_rank=4, frozen=frozen, dtype="float32")
    assert check_train(config, SMALL, "cpu:1")["micro_batches"] == 16


def test_a_training_config_is_checked_from_the_command_line(tiny_model):
    command = [sys.executable, ROOT / "launch" / "preflight.py", "s1_0_5b"]
    command += ["--topology", "cpu:1", "--model", tiny_model, "--data.max-length", "256", "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    # Parameters, two moments of each, and counters, all float32. 16 micro-batches of one long example each, and a shorter micro-batch.
    num_params = 264 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 64 + 32 + 32) + 32
    shape = {
        name: figures[name] for name in ("micro_batches", "rows_per_micro_batch", "row_length", "shorter_row_lengths")
    }
    assert list(shape.values()) == [16, 1, 256, [128]], shape
    state, batch = 12 * num_params, 5 * 4 * (16 * 256 + 128)
    assert figures["state_gib"] == pytest.approx((state + batch) / 2**30, rel=1e-3)
    assert figures["involuntary_rematerialisations"] == 0


@pytest.mark.parametrize("int8", [(), ("cache",)])
def test_a_decoding_config_is_checked(int8):
    config = DecodingConfig("model", "benchmark", "rows", num_rows=7)
    figures = check_decode(config, Condition(1000, max_answer_tokens=76, int8=int8), SMALL, "cpu:8")
    # `tensor` is at most the number of key/value heads, and the rows are rounded up to a multiple of `data`.
    assert figures["mesh"] == "data 4 x fsdp 1 x sequence 1 x tensor 2" and figures["rows"] == 8
    assert figures["tokens_per_row"] == 512 + 1536
    per_token = 2 * (64 + 4 if int8 else 4 * 64)
    caches = 2 * 2 * per_token * 2048  # 2 layers, 2 rows per device; each device has one of the two key/value heads
    weights = 4 * num_matrix_weights(SMALL) / 2
    assert (caches + weights) / 2**30 <= figures["weights_and_caches_gib"] <= (1.1 * caches + 1.02 * weights) / 2**30


@pytest.mark.parametrize("topology", ["cpu:0", "cpu:x", "h100:0x8", "h100:8", "v5p:2x0x2", "a100:1x8"])
def test_a_topology_of_no_devices_or_of_no_kind_is_refused(topology):
    with pytest.raises(ValueError, match=f"topology is '{topology}': give h100:HOSTSxGPUS"):
        topology_devices(topology)


def test_a_step_that_is_too_large_for_its_compiler_is_one_sentence(monkeypatch):
    """TPU compilers give up with an error. (GPU compilers report the need.)"""

    def lower_step(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: it needs 33.1G of 31.25G hbm.\nLargest allocations: ...")

    monkeypatch.setattr(TrainingProgram, "lower_step", lower_step)
    config = replace(S1_32B, mesh=MeshConfig())
    with pytest.raises(ValueError, match=r"^the step does not fit cpu:1: .*33\.1G of 31\.25G hbm\.$"):
        check_train(config, SMALL, "cpu:1")


def test_a_warning_of_the_partitioner_is_captured_and_passed_on(capfd):
    import os

    with stderr_to_text() as text:
        os.write(2, b"[SPMD] Involuntary full rematerialization. The compiler ...\n")
    assert text().count(REMATERIALISATION) == 1
    assert "Involuntary" in capfd.readouterr().err


BF16 = dict(param_dtype="bfloat16")


@pytest.mark.slow
@needs("jax_cuda12_plugin")
def test_a_gpu_adds_up_gradients_in_one_order():
    mesh = make_mesh(MeshConfig(), topology_devices("h100:1x1"))
    config = replace(S1_32B, mesh=MeshConfig())
    compiled = training_program(config, SMALL, mesh, num_steps=100).lower_step([Shape(2, 1, 256)], "cuda").compile()
    scattered = re.findall(r"= \S+ scatter\(.*", compiled.as_text())
    assert scattered and all("unique_indices=true" in line for line in scattered), scattered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "changes", "gib"),
    [
        pytest.param("h100:2x8", {}, 65, marks=needs("jax_cuda12_plugin")),
        pytest.param(
            "h100:2x8",
            dict(mesh=MeshConfig(), data=replace(S1_32B.data, pack=False)),
            65,
            marks=needs("jax_cuda12_plugin"),
        ),
        pytest.param("h100:1x8", BF16, 71, marks=needs("jax_cuda12_plugin")),
        pytest.param("v5p:2x2x4", {}, 95, marks=needs("libtpu")),
        pytest.param("v6e:4x8", {}, 31.25, marks=needs("libtpu")),
    ],
    ids=["h100", "h100, a row for each example", "8 h100, bfloat16 state", "v5p", "v6e"],
)
def test_the_recipe_for_thirty_two_billion_fits(topology, changes, gib):
    figures = check_train(replace(S1_32B, **changes), qwen2_5("32B"), topology)
    print(figures)
    assert figures["fits"] and figures["total_gib"] <= gib and figures["involuntary_rematerialisations"] == 0
