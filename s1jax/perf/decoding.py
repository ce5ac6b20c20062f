"""Preflight of decoding: a decoding config and a topology -> the compiled decode loop and its memory, without the hardware."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.data.chat import MADE_UP_DELIMITERS
from s1jax.data.condition import Limits
from s1jax.decode.batch import capacity_for
from s1jax.decode.budget import RowSettings
from s1jax.decode.loaded import make_vocabulary
from s1jax.decode.loop import Rows, advance, empty_state
from s1jax.decode.prefill import empty_prompts
from s1jax.decode.sampling import SamplingSettings
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.model.cache import KVCache
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import abstract_params
from s1jax.ops.attention import CacheBackend
from s1jax.perf.compiled import explain_lack_of_room, mesh_text, to_gib, written_in_loops
from s1jax.perf.topology import MEMORY, platform_of, topology_devices
from s1jax.runtime.hardware import peak_bandwidth
from s1jax.runtime.sharding import ShardingRules, make_mesh, sharding_for, share_out

# Of a decoding run, where the tokenizer and the problems are not looked at.
PROMPT_TOKENS = 512


DELIMITER_TOKENS = 24


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
    with explain_lack_of_room(topology):
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
        mesh=mesh_text(devices),
        rows=num_rows,
        tokens_per_row=PROMPT_TOKENS + capacity,
        weights_and_caches_gib=to_gib(memory.argument_size_in_bytes),
        temporaries_gib=to_gib(memory.temp_size_in_bytes),
        total_gib=to_gib(total),
        memory_gib=None if room is None else to_gib(room),
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
