"""Benchmark of training: a model and the lengths of examples -> speed and memory, as `launch/benchmark.py train` prints them.

The examples consist of random ids and have lengths like s1K's. They are packed as in a run, and the step is the run's
(`train/compile.py`). `useful_tokens_per_s` counts the tokens of examples, not padding. `mfu` (model FLOPs utilisation, as defined in
`model/flops.py`) is relative to the peak in the data sheet. If there is none (on a CPU), it is relative to the product of two large
matrices on the same machine.

A model that is too large for one device is measured as a slice: a few of its layers at full width, with two different numbers of layers.
The difference gives the time of one layer, and so that of a whole step.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.data.examples import DataConfig, Examples
from s1jax.data.packing import Packer
from s1jax.model.config import ModelConfig, config_of_size
from s1jax.model.flops import train_flops
from s1jax.model.qwen2 import Params, init_params
from s1jax.perf.compiled import needed_bytes
from s1jax.perf.measure import measured_flops, timed
from s1jax.perf.topology import published_config
from s1jax.runtime.errors import UserError
from s1jax.runtime.hardware import peak_flops
from s1jax.runtime.sharding import MeshConfig, make_mesh
from s1jax.train.compile import training_program
from s1jax.train.config import TrainConfig
from s1jax.train.step import StepConfig, to_device


def figures(args: Any) -> Iterator[dict[str, Any]]:
    """Yield the figures for the command line `launch/benchmark.py train`, whose parsed arguments are `args`.

    Raises UserError if an argument is out of range.
    """
    if args.examples < 1 or not 1 <= args.divide <= 250:
        raise UserError(f"examples must be at least 1, divide from 1 to 250: they are {args.examples}, {args.divide}")
    lengths = s1k_lengths(args.examples, args.divide)
    config = TrainConfig(
        model=args.model or args.size,
        output="-",
        data=DataConfig(
            "-", num_epochs=1, pack=not args.no_pack, row_length=args.row_length, pad_multiple=max(32, int(128 / args.divide))
        ),
        mesh=MeshConfig(sequence=args.sequence, tensor=args.tensor),
        step=StepConfig(loss_chunk=args.loss_chunk, remat=args.remat, attention=args.attention),
        dtype=args.dtype,
    )  # fmt: skip
    model_config = published_config(args.model, args.dtype) if args.model else config_of_size(args.size, args.dtype)
    if args.slice:
        yield slice_figures(config, model_config, lengths, tuple(args.slice))
        return
    params = None
    if args.model:
        _, params = load_model(resolve_source(args.model), make_mesh(config.mesh), config.rules, "stacked", args.dtype)
    yield train_figures(config, model_config, lengths, params)


def s1k_lengths(num: int, divided_by: float) -> np.ndarray:
    """Return `num` lengths in tokens that are distributed like s1K's, and then divided by `divided_by`.

    The distribution is log-normal, cut at 500 and 20,000, with a mean of about 5,000.
    """
    lengths = np.exp(np.random.default_rng(0).normal(np.log(4000), 0.75, num))
    return (np.clip(lengths, 500, 20_000) / divided_by).astype(int)


def random_examples(lengths: Sequence[int] | np.ndarray, vocab_size: int) -> Examples:
    """Return examples of random ids. The first tenth of each stands for the question and has no loss."""
    rng = np.random.default_rng(0)
    masks = [np.arange(n) >= n // 10 for n in lengths]
    return Examples(
        tokens=rng.integers(8, min(vocab_size, 10_000), int(np.sum(lengths))).astype(np.int32),
        loss_mask=np.concatenate(masks),
        offsets=np.cumsum([0, *lengths]),
        row_ids=tuple(str(i) for i in range(len(lengths))),
        pad=0,
        num_truncated=0,
    )


def train_figures(
    config: TrainConfig, model_config: ModelConfig, lengths: Sequence[int] | np.ndarray, params: Params | None = None
) -> dict[str, Any]:
    """Train on one epoch of examples of these lengths, after one step of warm-up. Return the speed and the memory.

    `params` are stacked float32 parameters on the mesh, which this function gives up. Without them the parameters are random.
    """
    mesh, batch_size = make_mesh(config.mesh), config.data.batch_size
    # Examples keep their order, so that a machine under test needs no Grain.
    steps = np.split(np.arange(len(lengths)), range(batch_size, len(lengths), batch_size))
    program = training_program(config, model_config, mesh, num_steps=len(steps) + 1)
    examples = random_examples(lengths, model_config.vocab_size)
    packer = Packer(examples, config.data, *program.batch_shards(), steps)
    if params is None:
        params = init_params(model_config, config.rules, "stacked", mesh, seed=0)
    compile_s, compiled = timed(program.lower_step(packer.shapes).compile)
    with jax.set_mesh(mesh):
        state = program.init_state(params)
        del params
        batches = [to_device(packer[i], mesh, config.rules) for i in range(len(packer))]
        state, metrics = compiled(state, {}, batches[0])
        jax.block_until_ready(metrics)
        started = time.perf_counter()
        for batch in batches:
            state, metrics = compiled(state, {}, batch)
        loss = float(metrics["loss"])
        seconds = time.perf_counter() - started
    data_sheet = peak_flops(jax.devices()[0].device_kind, config.dtype)
    peak = measured_flops(config.dtype) if data_sheet is None else data_sheet
    return dict(
        devices=mesh.size,
        device=jax.devices()[0].device_kind,
        dtype=config.dtype,
        layers=model_config.num_layers,
        steps=len(packer),
        examples_per_step=batch_size,
        rows_per_micro_batch=packer.rows_per_micro_batch,
        row_lengths=packer.row_lengths,
        max_micro_batches=[shape.max_micro_batches for shape in packer.shapes],
        filling=round(packer.filling(), 3),
        step_s=round(seconds / len(packer), 6),
        useful_tokens_per_s=round(float(np.sum(lengths)) / seconds, 1),
        mfu=round(train_flops(model_config, lengths) / seconds / peak / mesh.size, 4),
        mfu_of="measured product" if data_sheet is None else "data sheet",
        peak_tflops=round(peak / 1e12, 3),
        peak_bytes=peak_bytes(compiled),
        compile_s=round(compile_s, 1),
        loss=round(loss, 4),
    )


def slice_figures(
    config: TrainConfig, model_config: ModelConfig, lengths: Sequence[int] | np.ndarray, num_layers: tuple[int, int]
) -> dict[str, Any]:
    """Measure slices of the model with two numbers of layers. Return the time of a step of the whole model, extrapolated from them.

    It is the time on devices with enough memory for the whole model. Raises UserError unless the second number is larger than the first.
    """
    small, large = num_layers
    if not 1 <= small < large <= model_config.num_layers:
        raise UserError(
            f"slice is {small} {large}: give two numbers of layers, the smaller first, from 1 to the model's {model_config.num_layers}"
        )
    parts = [
        train_figures(config, dataclasses.replace(model_config, num_layers=layers), lengths) for layers in num_layers
    ]
    times, num_steps = [part["step_s"] for part in parts], parts[-1]["steps"]
    layer_s = (times[1] - times[0]) / (large - small)
    step_s = times[0] + (model_config.num_layers - small) * layer_s
    flops, num_tokens = train_flops(model_config, lengths) / num_steps, float(np.sum(lengths)) / num_steps
    peak = peak_flops(jax.devices()[0].device_kind, config.dtype) or measured_flops(config.dtype)
    return dict(
        layers=list(num_layers),
        step_s=[round(seconds, 3) for seconds in times],
        layer_s=round(layer_s, 4),
        useful_tokens_per_s=[round(num_tokens / s, 1) for s in times],
        peak_bytes=parts[-1]["peak_bytes"],
        whole_step_s=round(step_s, 3),
        whole_mfu=round(flops / step_s / peak / jax.device_count(), 4),
        roofline_step_s=round(flops / peak / jax.device_count(), 3),
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the largest number of bytes in use so far on a device of this process. If the device does not report it, ask the compiler."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or needed_bytes(compiled)
