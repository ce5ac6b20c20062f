"""Measurements of training: a model and lengths of examples -> figures of speed and memory, which `launch/benchmark.py train` prints.

Examples are of random ids, of lengths spread as s1K's; they are packed as in a run. `useful_tokens_per_s` counts tokens of examples, not
padding; `mfu` is by the convention of `flops.py`, against the data sheet's peak, or where there is none (a CPU) against the product of two
large matrices on this machine.

A model too large for one device is measured as a slice of a few layers of full width, twice, with other numbers of layers: the difference
is the time of a layer, and so of a whole step.

Nothing here needs more than jax, flax, optax, numpy.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.data.examples import DataConfig, Examples
from s1jax.data.packing import Packer
from s1jax.model.config import ModelConfig, qwen2_5
from s1jax.model.flops import train_flops
from s1jax.model.qwen2 import Params, init_params
from s1jax.runtime.errors import UserError
from s1jax.runtime.hardware import peak_flops
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh
from s1jax.train.optimizer import OptimizerConfig, make_optimizer
from s1jax.train.step import StepConfig, abstract_batch, abstract_state, init_state, make_train_step, to_device

Figures = dict[str, Any]


def figures(args: Any) -> Iterator[Figures]:
    """Yield what the command line of `launch/benchmark.py train` asks for."""
    mesh = MeshConfig(sequence=args.sequence, tensor=args.tensor)
    if args.examples < 1 or not 1 <= args.divide <= 250:
        raise UserError(
            f"examples is {args.examples} and divide {args.divide}: at least 1 example, and lengths divided by 1 to 250"
        )
    lengths = s1k_lengths(args.examples, args.divide)
    multiple = max(32, int(128 / args.divide))
    data = DataConfig("-", num_epochs=1, pack=not args.no_pack, row_length=args.row_length, pad_multiple=multiple)
    step_config = StepConfig(loss_chunk=args.loss_chunk, remat=args.remat, attention=args.attention)
    params = None
    if args.model and not args.slice:
        from s1jax.checkpoint.source import load_model, resolve_source

        config, params = load_model(resolve_source(args.model), make_mesh(mesh), ShardingRules(), "stacked", args.dtype)
    elif args.model:
        from s1jax.checkpoint.source import resolve_source

        config = resolve_source(args.model, weights=False).model_config(args.dtype)
    else:
        config = qwen2_5(args.size, args.dtype)
    if args.slice:
        yield slice_figures(config, mesh, lengths, data, step_config, tuple(args.slice))
    else:
        yield train_figures(config, mesh, lengths, data, step_config, params)


def s1k_lengths(num: int, divided_by: float = 1, seed: int = 0) -> np.ndarray:
    """Return numbers of tokens spread as s1K's examples: log-normal, 500 to 20,000 with a mean of about 5,000, all divided by a number."""
    lengths = np.exp(np.random.default_rng(seed).normal(np.log(4000), 0.75, num))
    return (np.clip(lengths, 500, 20_000) / divided_by).astype(int)


def random_examples(lengths: Sequence[int] | np.ndarray, vocab_size: int) -> Examples:
    """Return examples of random ids, a tenth of each (the question) without loss."""
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
    config: ModelConfig,
    mesh: MeshConfig,
    lengths: Sequence[int] | np.ndarray,
    data: DataConfig,
    step_config: StepConfig,
    params: Params | None = None,
) -> Figures:
    """Return the speed of training on examples of these lengths, an epoch of them after a step that is not counted.

    `params` are stacked float32 parameters on the mesh, given up; without them, random ones.
    """
    rules, devices = ShardingRules(), make_mesh(mesh)
    # In the order given: a machine to be measured needs no Grain.
    steps = np.split(np.arange(len(lengths)), range(data.batch_size, len(lengths), data.batch_size))
    num_shards, length_shards = (rules.num_shards(name, devices.shape) for name in ("batch", "length"))
    packer = Packer(random_examples(lengths, config.vocab_size), data, num_shards, length_shards, steps)
    optimizer = make_optimizer(OptimizerConfig(), len(packer) + 1)
    if params is None:
        params = init_params(config, rules, "stacked", devices, seed=0)
    target = abstract_state(optimizer, params, devices, step_config.offload_optimizer)
    shardings = jax.tree.map(lambda x: x.sharding, target)
    with jax.set_mesh(devices):
        step = make_train_step(config, rules, optimizer, step_config, data.pack, shardings=shardings)
        lowered = step.lower(target, {}, abstract_batch(packer.shapes, devices, rules))
        started = time.perf_counter()
        compiled = lowered.compile()
        compile_s = time.perf_counter() - started
        state = init_state(optimizer, params, devices, step_config.offload_optimizer)
        del params
        batches = [to_device(packer[i], devices, rules) for i in range(len(packer))]
        state, metrics = compiled(state, {}, batches[0])
        jax.block_until_ready(metrics)
        started = time.perf_counter()
        for batch in batches:
            state, metrics = compiled(state, {}, batch)
        loss = float(metrics["loss"])
        seconds = time.perf_counter() - started
    peak = peak_flops(jax.devices()[0].device_kind, config.dtype)
    of_device = measured_flops(config.dtype) if peak is None else peak
    return dict(
        devices=devices.size,
        device=jax.devices()[0].device_kind,
        dtype=config.dtype,
        layers=config.num_layers,
        steps=len(packer),
        examples_per_step=data.batch_size,
        rows_per_pass=packer.rows_per_pass,
        row_lengths=packer.row_lengths,
        most_passes=[shape.num_passes for shape in packer.shapes],
        filling=round(packer.filling(), 3),
        step_s=round(seconds / len(packer), 6),
        useful_tokens_per_s=round(float(np.sum(lengths)) / seconds, 1),
        mfu=round(train_flops(config, lengths) / seconds / of_device / devices.size, 4),
        mfu_of="data sheet" if peak else "measured product",
        peak_tflops=round(of_device / 1e12, 3),
        peak_bytes=peak_bytes(compiled),
        compile_s=round(compile_s, 1),
        loss=round(loss, 4),
    )


def slice_figures(
    config: ModelConfig,
    mesh: MeshConfig,
    lengths: Sequence[int] | np.ndarray,
    data: DataConfig,
    step_config: StepConfig,
    num_layers: tuple[int, int],
) -> Figures:
    """Return what a step of the whole model would take on this mesh, were there room, from two slices of it of these numbers of layers.

    Raises UserError unless the second is larger than the first.
    """
    small, large = num_layers
    if not 1 <= small < large <= config.num_layers:
        raise UserError(
            f"slices of {small} and {large} layers: they must grow, and be of the model's {config.num_layers}"
        )
    times = []
    for layers in num_layers:
        part = train_figures(dataclasses.replace(config, num_layers=layers), mesh, lengths, data, step_config)
        times.append(part["step_s"])
    layer_s = (times[1] - times[0]) / (large - small)
    step_s = times[0] + (config.num_layers - small) * layer_s
    flops, num_tokens = train_flops(config, lengths) / part["steps"], float(np.sum(lengths)) / part["steps"]
    peak = peak_flops(jax.devices()[0].device_kind, config.dtype) or measured_flops(config.dtype)
    return dict(
        layers=list(num_layers),
        step_s=[round(seconds, 3) for seconds in times],
        layer_s=round(layer_s, 4),
        useful_tokens_per_s=[round(num_tokens / s, 1) for s in times],
        peak_bytes=part["peak_bytes"],
        whole_step_s=round(step_s, 3),
        whole_mfu=round(flops / step_s / peak / jax.device_count(), 4),
        roofline_step_s=round(flops / peak / jax.device_count(), 3),
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the most bytes that a device of this process held so far; where it does not tell, what the program needs by its compiler."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return needed_bytes(compiled)


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes of each device that a program needs, by its compiler. Raises UserError where it does not tell."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise UserError("the compiler does not tell how much memory the step needs")
    return (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip


def measured_flops(dtype: str, size: int = 2048) -> float:
    """Return the operations per second of a product of two square matrices on one device, the best of five."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(product(a, a))
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)
