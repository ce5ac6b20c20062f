"""`decoding.py`: the compiled decode loop, on this machine always, on H100s and TPUs if their compilers are installed."""

import re

import pytest

from s1jax.data.condition import Condition
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.model.config import config_of_size
from s1jax.model.flops import num_matrix_weights
from s1jax.perf.compiled import array_bytes, written_in_loops
from s1jax.perf.decoding import check_decode
from s1jax.perf.topology import MEMORY
from s1jax.runtime.sharding import MeshConfig
from tests.support.compiling import SMALL, compile_on, needs

pytestmark = pytest.mark.integration


def cache_bytes(config, num_rows, capacity):
    """Bytes of one layer's keys or values."""
    return num_rows * config.num_kv_heads * capacity * config.head_dim * (2 if config.dtype == "bfloat16" else 4)


# A single row is a separate case, because XLA drops its dimension.
@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_decode_step_copies_neither_weights_nor_cache_on_this_machine(num_rows):
    compiled = compile_on(SMALL, "cpu:1", MeshConfig(fsdp=1), num_rows, 64, 4096)
    written = written_in_loops(compiled)
    smallest = min(cache_bytes(SMALL, num_rows, 4096), 4 * SMALL.embed_dim**2)
    assert written and written[0][2] < smallest, written[:5]
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * smallest


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    [pytest.param("h100:1x1", marks=needs("jax_cuda12_plugin")), pytest.param("v5p:2x2x1", marks=needs("libtpu"))],
)
def test_seven_billion_at_32k_decode_in_place_with_small_temporaries(topology):
    config = config_of_size("Qwen2.5-7B")
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
    config = config_of_size("Qwen2.5-32B")
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
