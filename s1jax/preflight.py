"""Compilation for hardware that is not there: a config and a topology -> a compiled program, with its memory and its text.

Needs jax's own packages for the platform (`libtpu`; for H100 `jax-cuda12-plugin`, `jax-cuda12-pjrt`, `nvidia-cudnn-cu12` and
`nvidia-cuda-nvcc-cu12`), but no such device.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from s1jax.attention import CacheBackend
from s1jax.budget import Limits, RowSettings
from s1jax.cache import KVCache
from s1jax.chat import MADE_UP_DELIMITERS
from s1jax.decode import Rows, advance, empty_prompts, empty_state, make_vocabulary
from s1jax.evaluate import DecodingConfig
from s1jax.flops import peak_bandwidth, peak_flops, train_flops
from s1jax.measure_train import needed_bytes
from s1jax.model import abstract_params
from s1jax.model_config import SIZES, ModelConfig, qwen2_5
from s1jax.optimizer import make_optimizer
from s1jax.packing import Shape, lengths_of_rows, rows_per_pass
from s1jax.rows import capacity_for
from s1jax.sampling import SamplingSettings
from s1jax.sharding import ShardingRules, make_mesh, sharding_for, share_out
from s1jax.train_config import TrainConfig, split_params, weight_dtype, with_adapters
from s1jax.train_step import abstract_batch, abstract_state, make_train_step

# What the compiler asks of the card (NVIDIA's data sheet of the H100 SXM5; limits of compute capability 9.0).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 85000000000
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


# Bytes of a device's memory that programs can have: of a GPU what JAX is told to take (`config.run_command`), of a TPU what the compiler
# grants.
MEMORY = {"h100": 0.95 * 80e9, "v5e": 15.75 * 2**30, "v5p": 95 * 2**30, "v6e": 31.25 * 2**30}
COMPILERS = {
    "libtpu": "pip install libtpu",
    "jax_cuda12_plugin": "pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cudnn-cu12 nvidia-cuda-nvcc-cu12",
}
# Of a decoding run, where the tokenizer and the problems are not looked at.
PROMPT_TOKENS, DELIMITER_TOKENS = 512, 24
REMATERIALISATION = "Involuntary full rematerialization"


def topology_devices(topology: str) -> Sequence[jax.Device]:
    """Return the devices of `h100:HOSTSxGPUS`, of a TPU topology such as `v5p:2x2x1`, or the first `N` here, as `cpu:N`."""
    kind, _, shape = topology.partition(":")
    if not re.fullmatch(r"cpu:N|h100:NxN|v\d\w*:NxN(xN)?|tpu7x:NxNxN".replace("N", r"[1-9]\d*"), topology):
        raise ValueError(
            f"topology {topology!r} is none of h100:HOSTSxGPUS, a TPU's as v5p:2x2x4 or v6e:4x8, and cpu:N"
        )
    package = {"cpu": "jax", "h100": "jax_cuda12_plugin"}.get(kind, "libtpu")
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"compiling for {kind} needs a compiler that is not installed here: {COMPILERS[package]}")
    if kind == "cpu":
        if int(shape) > jax.device_count():
            raise ValueError(f"topology {topology} has more devices than there are here, {jax.device_count()}")
        return jax.devices("cpu")[: int(shape)]
    if kind == "h100":
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
        description = topologies.get_topology_desc(
            platform="cuda", topology_name="h100", topology=f"{shape}x1", target_config=H100
        )
    else:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        description = topologies.get_topology_desc(topology, "tpu")
    return description.devices


def check_train(config: TrainConfig, model_config: ModelConfig, topology: str) -> dict[str, Any]:
    """Compile the training step of a config and return what it needs, as figures for `launch/preflight.py`.

    Rows are of `row_length`, or of `max_length` where the config leaves it to the examples; a step has as many passes as a whole batch of
    examples of that length needs, and one of each shorter length.
    """
    devices = make_mesh(config.mesh, topology_devices(topology))
    model_config = with_adapters(config, model_config)
    num_shards, length_shards = (config.rules.num_shards(name, devices.shape) for name in ("batch", "length"))
    length, *shorter = lengths_of_rows(config.data, config.data.max_length, length_shards)
    rows = rows_per_pass(config.data, length, num_shards)
    shapes = [Shape(math.ceil(config.data.batch_size / rows), rows, length), *(Shape(1, rows, x) for x in shorter)]
    started = time.perf_counter()
    with stderr_to_text() as text, _telling_lack_of_room(topology):
        compiled = compile_train(config, model_config, devices, platform_of(topology), shapes)
    total, memory = needed_bytes(compiled), compiled.memory_analysis()
    assert memory is not None
    room = MEMORY.get(topology.partition(":")[0])
    flops = train_flops(model_config, [length] * config.data.batch_size)
    peak = peak_flops(devices.devices.flat[0].device_kind, config.dtype)
    return dict(
        topology=topology,
        devices=devices.size,
        mesh=_shown(devices),
        rows=f"{rows} x {length}",
        passes=shapes[0].num_passes,
        shorter_rows=shorter,
        state_gib=_gib(memory.argument_size_in_bytes),
        temporaries_gib=_gib(memory.temp_size_in_bytes),
        total_gib=_gib(total),
        memory_gib=None if room is None else _gib(room),
        fits=None if room is None else total < room,
        step_pflops=float(f"{flops / 1e15:.5g}"),
        roofline_step_s=None if peak is None else round(flops / peak / devices.size, 3),
        involuntary_rematerialisations=text().count(REMATERIALISATION),
        compile_s=round(time.perf_counter() - started, 1),
    )


def _gib(num_bytes: float) -> float:
    return float(f"{num_bytes / 2**30:.4g}")


def _shown(devices: jax.sharding.Mesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in devices.shape.items())


def compile_train(
    config: TrainConfig, model_config: ModelConfig, mesh: jax.sharding.Mesh, platform: str, shapes: Sequence[Shape]
) -> jax.stages.Compiled:
    """Compile the training step of a config for batches of these shapes, with the mesh's devices there or not.

    `model_config` is that of `train_config.with_adapters`.
    """
    optimizer = make_optimizer(config.optimizer, num_steps=100)  # whose number changes nothing
    frozen, params = split_params(
        config, abstract_params(model_config, config.rules, "stacked", mesh, weight_dtype(config))
    )
    target = abstract_state(optimizer, params, mesh, config.step.offload_optimizer)
    shardings = jax.tree.map(lambda x: x.sharding, target)
    with jax.set_mesh(mesh):
        step = make_train_step(
            model_config, config.rules, optimizer, config.step, config.data.pack, config.data.seed, shardings
        )
        traced = step.trace(target, frozen, abstract_batch(shapes, mesh, config.rules))
        return traced.lower(lowering_platforms=(platform,)).compile()


@contextlib.contextmanager
def _telling_lack_of_room(topology: str) -> Iterator[None]:
    """Raise ValueError where a compiler, as those for TPU, gives up for lack of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"the step does not fit {topology}: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def stderr_to_text() -> Iterator[Callable[[], str]]:
    """Catch what is written to standard error, by compilers too; pass it on at the end. Yields what returns it, then."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        caught = ""
        try:
            yield lambda: caught
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            file.seek(0)
            caught = file.read().decode(errors="replace")
            sys.stderr.write(caught)


def published_config(model: str, dtype: str) -> ModelConfig:
    """Return the config of a published Qwen2.5 by its hub id, without the hub; of any other source as it is read."""
    if (found := re.fullmatch(r"Qwen/Qwen2\.5-([\d.]+B)(-Instruct)?", model)) and found[1] in SIZES:
        return qwen2_5(found[1], dtype)
    from s1jax.checkpoint import read_config

    return read_config(model, dtype)[0]


def platform_of(topology: str) -> str:
    """Return the platform that programs for a topology are lowered for."""
    return {"h100": "cuda", "cpu": "cpu"}.get(topology.partition(":")[0], "tpu")


def check_decode(config: DecodingConfig, limits: Limits, model_config: ModelConfig, topology: str) -> dict[str, Any]:
    """Compile the decode loop of a config and return what it needs, as figures for `launch/preflight.py`.

    `limits` are the largest of all points. All `num_rows` rows are at their last tokens, each after a prompt of 512 of its own; what forked
    answers need besides is left out.
    """
    hardware = topology_devices(topology)
    devices = make_mesh(share_out(config.mesh, model_config.num_kv_heads, len(hardware)), hardware)
    model_config = replace(model_config, int8=tuple(sorted(set(config.int8))))
    most_tokens = limits.max_thinking_tokens + config.max_answer_tokens + DELIMITER_TOKENS
    capacity = capacity_for(most_tokens)
    split = config.rules.num_shards("batch", devices.shape)
    num_rows = -(-config.num_rows // split) * split  # as `scheduler.py` does
    started = time.perf_counter()
    with _telling_lack_of_room(topology):
        compiled = compile_decode(
            model_config, topology, devices, num_rows, PROMPT_TOKENS, capacity, config.rules, config.attention
        )
    memory, room = compiled.memory_analysis(), MEMORY.get(topology.partition(":")[0])
    assert memory is not None
    bandwidth = peak_bandwidth(devices.devices.flat[0].device_kind)
    gathered = [num_bytes for _, kind, num_bytes in written_in_loops(compiled) if "all-gather" in kind]
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return dict(
        topology=topology,
        devices=devices.size,
        mesh=_shown(devices),
        rows=num_rows,
        tokens_per_row=PROMPT_TOKENS + capacity,
        weights_and_caches_gib=_gib(memory.argument_size_in_bytes),
        temporaries_gib=_gib(memory.temp_size_in_bytes),
        total_gib=_gib(total),
        memory_gib=None if room is None else _gib(room),
        fits=None if room is None else total < room,
        largest_gathered_mib=round(max(gathered, default=0) / 2**20, 2),
        # Every weight and all of the caches, read once.
        roofline_step_ms=None if bandwidth is None else round(1e3 * memory.argument_size_in_bytes / bandwidth, 2),
        compile_s=round(time.perf_counter() - started, 1),
    )


def compile_decode(
    config: ModelConfig,
    topology: str,
    devices: jax.sharding.Mesh,
    num_rows: int,
    prompt_capacity: int,
    capacity: int,
    rules: ShardingRules | None = None,
    attention: CacheBackend | None = None,
) -> jax.stages.Compiled:
    """Compile the decode loop for `num_rows` rows of `capacity` tokens, each after a prompt of its own."""
    rules = rules or ShardingRules()
    vocabulary, allowed = jax.eval_shape(
        lambda: make_vocabulary(MADE_UP_DELIMITERS, np.zeros(config.vocab_size, bool), config.vocab_size)
    )

    def ints(*shape: int) -> Any:
        return jax.ShapeDtypeStruct((num_rows, *shape), jnp.int32)

    floats: Any = jax.ShapeDtypeStruct((num_rows,), jnp.float32)
    rows = Rows(
        settings=RowSettings(ints(), ints(), ints(), ints(8), ints(), ints()),
        sampling=SamplingSettings(floats, ints(), floats, floats),
        seeds=ints(3),
        prefix_end=ints(),
    )
    static = dict(config=config, rules=rules)

    def placed(cache: KVCache) -> KVCache:
        names = ("batch", "kv_heads", None, None)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape,
                x.dtype,
                sharding=sharding_for(devices, rules, names if x.ndim == 4 else (None,) * x.ndim, x.shape),
            ),
            cache,
        )

    with jax.set_mesh(devices):
        prompts = jax.eval_shape(lambda: empty_prompts(**static, num_prompts=num_rows, capacity=prompt_capacity))
        state = jax.eval_shape(
            lambda words: empty_state(words, **static, num_rows=num_rows, capacity=capacity, ignore_width=8), vocabulary
        )
        state = state._replace(cache=placed(state.cache))
        params = abstract_params(config, rules, "per_layer", devices, config.dtype)
        step = jax.ShapeDtypeStruct((), jnp.int32)
        traced = advance.trace(
            params,
            vocabulary,
            allowed,
            rows,
            (placed(prompts.cache),),
            state,
            step,
            step,
            **static,
            attention=attention,
        )
        return traced.lower(lowering_platforms=(platform_of(topology),)).compile()


def written_in_loops(compiled: jax.stages.Compiled) -> list[tuple[str, str, int]]:
    """Return the name, the kind and the bytes of every array that an instruction of a loop's body writes, the largest first.

    Branches of its conditionals count too. In-place updates of a slice are left out: they write the slice only.
    """
    text = compiled.as_text() or ""
    computations = {
        match[1]: match[0] for match in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^}", text, re.MULTILINE | re.DOTALL)
    }
    written = []
    run = set(re.findall(r"body=%?([\w.\-]+)", text))
    left = list(run)
    while left:
        for line in computations[left.pop()].splitlines()[1:]:
            branches = re.search(r"branch_computations=\{(.*?)\}", line)
            called_next = re.findall(r"[\w.\-]+", branches[1]) if branches else []
            called_next += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            left += set(called_next) - run
            run |= set(called_next)
            match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(", line)
            if not match or match[3] in ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional"):
                continue
            called = re.search(r"calls=%?([\w.\-]+)", line)
            root = re.search(r"ROOT .*", computations[called[1]]) if called else match
            if root and "dynamic-update-slice(" not in root[0]:
                written += [(match[1], match[3], _num_bytes(shape)) for shape in re.findall(r"\w+\[[\d,]*\]", match[2])]
    return sorted(written, key=lambda item: -item[2])


def _num_bytes(shape: str) -> int:
    """Return the size of an array of such a shape as `bf16[8,128]`."""
    dtype, dims = shape.rstrip("]").split("[")
    bits = int(re.sub(r"\D.*", "", dtype.lstrip("bfsu")) or 8)
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
