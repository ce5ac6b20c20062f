"""Preflight of training: a training config and a topology -> the compiled training step and its memory, without the hardware."""

import math
from typing import Any

from s1jax.data.packing import Shape, bucket_lengths, rows_per_micro_batch
from s1jax.model.config import ModelConfig
from s1jax.model.flops import train_flops
from s1jax.perf.compiled import REMATERIALISATION, captured_stderr, compile_for
from s1jax.perf.topology import platform_of, topology_devices
from s1jax.runtime.hardware import peak_flops
from s1jax.runtime.sharding import make_mesh
from s1jax.train.compile import TrainingProgram, training_program
from s1jax.train.config import TrainConfig


def check_train(config: TrainConfig, model_config: ModelConfig, topology: str) -> dict[str, Any]:
    """Compile the training step of a config for a topology. Return its memory and its least time, for `launch/preflight.py`.

    Raises UserError if the step does not fit and the compiler gives up for that reason.
    """
    mesh = make_mesh(config.mesh, topology_devices(topology))
    program = training_program(config, model_config, mesh, num_steps=100)  # the number does not change the program
    largest, *shorter = worst_case_shapes(program)
    with captured_stderr() as text:
        _, figures = compile_for(
            topology,
            mesh,
            lambda: program.lower_step([largest, *shorter], platform_of(topology)).compile(),
            "state_gib",
        )
    flops = train_flops(program.model_config, [largest.row_length] * config.data.batch_size)
    peak = peak_flops(mesh.devices.flat[0].device_kind, config.dtype)
    return figures | dict(
        micro_batches=largest.max_micro_batches,
        rows_per_micro_batch=largest.rows_per_micro_batch,
        row_length=largest.row_length,
        shorter_row_lengths=[shape.row_length for shape in shorter],
        step_pflops=float(f"{flops / 1e15:.5g}"),
        roofline_step_s=None if peak is None else round(flops / peak / mesh.size, 3),
        involuntary_rematerialisations=text.getvalue().count(REMATERIALISATION),
    )


def worst_case_shapes(program: TrainingProgram) -> list[Shape]:
    """Return the shapes of the largest step that a config allows, without reading its examples.

    All examples have `max_length` tokens, unless the config sets `row_length`. So the longest rows hold one example each, and there is one
    micro-batch of each shorter row length.
    """
    data = program.config.data
    num_shards, length_shards = program.batch_shards()
    longest, *shorter = bucket_lengths(data, data.max_length, length_shards)
    rows = rows_per_micro_batch(data, longest, num_shards)
    return [Shape(math.ceil(data.batch_size / rows), rows, longest), *(Shape(1, rows, length) for length in shorter)]
