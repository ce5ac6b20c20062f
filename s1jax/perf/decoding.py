"""Preflight of decoding: a decoding config and a topology -> the compiled decode loop and its memory, without the hardware."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from s1jax.data.chat import MADE_UP_DELIMITERS, MADE_UP_TOKENS, made_up_texts
from s1jax.data.condition import Condition
from s1jax.decode.batch import capacity_for
from s1jax.decode.loaded import make_vocabulary
from s1jax.decode.loop import advance, empty_rows, empty_state
from s1jax.decode.prefill import empty_prompts
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import abstract_params
from s1jax.ops.attention import CacheBackend
from s1jax.perf.compiled import compile_for, written_in_loops
from s1jax.perf.topology import platform_of, topology_devices
from s1jax.runtime.hardware import peak_bandwidth
from s1jax.runtime.sharding import ShardingRules, make_mesh, sharding_for, share_out

# Assumptions about a decoding run, because the preflight reads neither its tokenizer nor its problems.
PROMPT_TOKENS = 512
DELIMITER_TOKENS = 24
STRING_WIDTH = 8


def check_decode(
    config: DecodingConfig, condition: Condition, model_config: ModelConfig, topology: str
) -> dict[str, Any]:
    """Compile the decode loop of a config for a topology. Return its memory and its least time per step, for `launch/preflight.py`.

    `condition` has the largest limits of all points. The figures are those of the end of a run: each of the `num_rows` rows has its own
    prompt of 512 tokens and has used up its limits. Caches of forked answers are left out. Raises UserError as `compile_for`.
    """
    devices = topology_devices(topology)
    mesh = make_mesh(share_out(config.mesh, model_config.num_kv_heads, len(devices)), devices)
    model_config = replace(model_config, int8=condition.int8)
    capacity = capacity_for(condition.max_thinking_tokens + condition.max_answer_tokens + DELIMITER_TOKENS)
    num_shards = config.rules.num_shards("batch", mesh.shape)
    num_rows = -(-config.num_rows // num_shards) * num_shards  # rounded up as in `scheduler.py`
    shape = (num_rows, PROMPT_TOKENS, capacity)
    how = config.rules, config.attention, config.record_tokens
    compile_step = partial(compile_decode, model_config, topology, mesh, *shape, *how)
    compiled, figures = compile_for(topology, mesh, compile_step, "weights_and_caches_gib")
    num_bytes = compiled.memory_analysis().argument_size_in_bytes
    gathered = [size for _, kind, size in written_in_loops(compiled) if "all-gather" in kind]
    bandwidth = peak_bandwidth(mesh.devices.flat[0].device_kind)
    return figures | dict(
        rows=num_rows,
        tokens_per_row=PROMPT_TOKENS + capacity,
        largest_gathered_mib=round(max(gathered, default=0) / 2**20, 2),
        # A step reads at least every weight and every cache entry once.
        roofline_step_ms=None if bandwidth is None else round(1e3 * num_bytes / bandwidth, 2),
    )


def compile_decode(
    config: ModelConfig,
    topology: str,
    mesh: jax.sharding.Mesh,
    num_rows: int,
    prompt_capacity: int,
    capacity: int,
    rules: ShardingRules,
    attention: CacheBackend | None,
    scores: bool = False,
) -> jax.stages.Compiled:
    """Compile the decode loop for `num_rows` rows of `capacity` tokens, each after its own prompt of `prompt_capacity` tokens."""

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Give an array of a cache the sharding that it has in a run."""
        names = ("batch", "kv_heads", None, None) if x.ndim == 4 else (None,) * x.ndim
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_for(mesh, rules, names, x.shape))

    static = dict(config=config, rules=rules)
    with jax.set_mesh(mesh):
        tokens = made_up_texts(config.vocab_size), MADE_UP_TOKENS
        vocabulary = jax.eval_shape(partial(make_vocabulary, MADE_UP_DELIMITERS, *tokens, config.vocab_size))
        rows = empty_rows(num_rows, STRING_WIDTH)
        prompts = empty_prompts.eval_shape(**static, num_prompts=num_rows, capacity=prompt_capacity)
        sizes = dict(num_rows=num_rows, capacity=capacity, string_width=STRING_WIDTH)
        state = empty_state.eval_shape(vocabulary, **static, **sizes)
        prefix, cache = jax.tree.map(place, (prompts.cache, state.cache))
        params = abstract_params(config, rules, "per_layer", mesh, config.dtype)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        traced = advance.trace(
            params, vocabulary, rows, (prefix,), state._replace(cache=cache), count, count,
            **static, scores=scores, attention=attention,
        )  # fmt: skip
        return traced.lower(lowering_platforms=(platform_of(topology),)).compile()
