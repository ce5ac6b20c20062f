"""Preflight of training: a training config and a topology -> the compiled training step and its memory, without the hardware."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax

from s1jax.data.packing import Shape, lengths_of_rows, rows_per_pass
from s1jax.model.config import ModelConfig
from s1jax.model.flops import train_flops
from s1jax.model.qwen2 import abstract_params
from s1jax.perf.benchmark_train import needed_bytes
from s1jax.perf.compiled import REMATERIALISATION, explain_lack_of_room, mesh_text, stderr_to_text, to_gib
from s1jax.perf.topology import MEMORY, platform_of, topology_devices
from s1jax.runtime.hardware import peak_flops
from s1jax.runtime.sharding import make_mesh
from s1jax.train.config import TrainConfig, split_params, weight_dtype, with_adapters
from s1jax.train.optimizer import make_optimizer
from s1jax.train.step import abstract_batch, abstract_state, make_train_step


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
    with stderr_to_text() as text, explain_lack_of_room(topology):
        compiled = compile_train(config, model_config, devices, platform_of(topology), shapes)
    total, memory = needed_bytes(compiled), compiled.memory_analysis()
    assert memory is not None
    room = MEMORY.get(topology.partition(":")[0])
    flops = train_flops(model_config, [length] * config.data.batch_size)
    peak = peak_flops(devices.devices.flat[0].device_kind, config.dtype)
    return dict(
        topology=topology,
        devices=devices.size,
        mesh=mesh_text(devices),
        rows=f"{rows} x {length}",
        passes=shapes[0].num_passes,
        shorter_rows=shorter,
        state_gib=to_gib(memory.argument_size_in_bytes),
        temporaries_gib=to_gib(memory.temp_size_in_bytes),
        total_gib=to_gib(total),
        memory_gib=None if room is None else to_gib(room),
        fits=None if room is None else total < room,
        step_pflops=float(f"{flops / 1e15:.5g}"),
        roofline_step_s=None if peak is None else round(flops / peak / devices.size, 3),
        involuntary_rematerialisations=text().count(REMATERIALISATION),
        compile_s=round(time.perf_counter() - started, 1),
    )


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
