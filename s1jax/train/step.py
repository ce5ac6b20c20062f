"""One step of fine-tuning: (state, batch of `packing.py`) -> (state, metrics), a pure function that is jitted over the mesh.

The step computes the micro-batches of a batch one after another, skips the empty ones, and adds up the gradients in float32. The loss
weights of a batch sum to 1 over all its micro-batches, so the sum needs no further scaling. Matrices are cast to the compute dtype once per
step, so that devices exchange them (and their gradients) in that dtype.

Invariants: the split of a batch over micro-batches, rows and devices affects only rounding. The same compiled step on the same input gives
the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float32, Int, PyTree

from s1jax.data.packing import Batch, Shape
from s1jax.model.config import ModelConfig
from s1jax.model.lora import combine
from s1jax.model.qwen2 import Params, Remat, constrain_params, graphdef
from s1jax.ops.attention import Backend
from s1jax.ops.cross_entropy import weighted_cross_entropy
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types
from s1jax.runtime.hardware import platform
from s1jax.runtime.sharding import ShardingRules, sharding_for
from s1jax.train.optimizer import update

DeviceMicroBatches = Mapping[str, jax.Array]
"""`packing.MicroBatches` on the devices."""
DeviceBatch = tuple[DeviceMicroBatches, ...]
Metrics = dict[str, Float32[Array, ""]]
"""`loss` and `grad_norm` (before clipping)."""


class TrainState(NamedTuple):
    """The state that a step updates and a checkpoint holds."""

    params: Params
    """The trained parameters: master weights, or LoRA's adapters."""
    opt_state: Any
    """State of the optax optimizer."""
    step: Any
    """int32 scalar: the number of steps that were made."""


@dataclass(frozen=True)
class StepConfig:
    """Settings of the computation of a step. They affect speed, memory and rounding, but no result beyond rounding."""

    loss_chunk: int = 1024
    """Number of positions per device whose logits exist at the same time."""
    remat: Remat = "full"
    """How much of each layer the backward pass recomputes (`model/qwen2.py`). `full` needs the least memory, `none` the least time."""
    attention: Backend | None = None
    """Attention backend. Default: the platform's."""
    offload_optimizer: bool = False
    """Keep the optimizer's moments in host memory."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.loss_chunk < 1:
            raise UserError(f"loss_chunk is {self.loss_chunk}: it must be at least 1")


def make_train_step(
    config: ModelConfig,
    rules: ShardingRules,
    optimizer: optax.GradientTransformation,
    step_config: StepConfig,
    packed: bool = True,
    seed: int = 0,
    shardings: TrainState | None = None,
) -> Any:
    """Return the jitted step (state, frozen, batch) -> (state, metrics). Call this function and the step under `jax.set_mesh`.

    The step donates the old state; the new state has the given `shardings`. `frozen` holds the parameters that are not trained, or {}.
    `packed=False` promises that every row holds one example. `seed` determines the stochastic rounding of bfloat16 state.
    """

    def loss_and_grads(params: Params, frozen: Params, batch: DeviceBatch) -> tuple[Float32[Array, ""], Params]:
        cast, frozen = _cast_matrices(params, config.dtype), _cast_matrices(frozen, config.dtype)

        def of_micro_batch(arrays: DeviceMicroBatches, i: Int[Array, ""] | int) -> tuple[Float32[Array, ""], Params]:
            def of_params(params: Params) -> Float32[Array, ""]:
                return _micro_batch_loss(config, rules, step_config, packed, combine(frozen, params), arrays, i)

            loss, grads = jax.value_and_grad(of_params)(cast)
            return loss, constrain_params(grads, config, rules)

        if [arrays["tokens"].shape[0] for arrays in batch] == [1]:  # nothing to add up
            return of_micro_batch(batch[0], 0)

        def add(arrays: DeviceMicroBatches, i: Int[Array, ""], total: Any) -> Any:
            loss, grads = jax.tree.map(jnp.add, total, of_micro_batch(arrays, i))
            return loss, constrain_params(grads, config, rules)

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        return _over_micro_batches(batch, add, (jnp.zeros((), jnp.float32), constrain_params(zeros, config, rules)))

    def step(state: TrainState, frozen: Params, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        loss, grads = loss_and_grads(state.params, frozen, batch)
        opt_state = state.opt_state
        if step_config.offload_optimizer:
            opt_state = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), opt_state)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params, opt_state = update(optimizer, grads, opt_state, state.params, key)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), grads))}
        return TrainState(params, opt_state, state.step + 1), metrics

    # By default, a GPU adds up the gradients of the embedding's rows in a random order.
    options = {"xla_gpu_exclude_nondeterministic_ops": True} if platform() == "gpu" else None
    out_shardings = None if shardings is None else (shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def make_loss_step(config: ModelConfig, rules: ShardingRules, step_config: StepConfig, packed: bool = True) -> Any:
    """Return the jitted function (params, frozen, batch) -> loss of a batch, a float32 scalar. Call it under `jax.set_mesh`."""

    def loss(params: Params, frozen: Params, batch: DeviceBatch) -> Float32[Array, ""]:
        whole = combine(_cast_matrices(frozen, config.dtype), _cast_matrices(params, config.dtype))

        def add(arrays: DeviceMicroBatches, i: Int[Array, ""], total: Float32[Array, ""]) -> Float32[Array, ""]:
            return total + _micro_batch_loss(config, rules, step_config, packed, whole, arrays, i)

        return _over_micro_batches(batch, add, jnp.zeros((), jnp.float32))

    return jax.jit(loss)


def _over_micro_batches(batch: DeviceBatch, add: Callable[..., Any], total: Any) -> Any:
    """Apply `total = add(arrays, i, total)` to each micro-batch `i` that is not empty, and return the last total."""
    for arrays in batch:
        total = jax.lax.fori_loop(0, arrays["num_micro_batches"], functools.partial(add, arrays), total)
    return total


def _micro_batch_loss(config, rules, step_config, packed, params, arrays, i) -> Float32[Array, ""]:
    """Return the weighted loss of micro-batch `i`."""
    rows = {name: x[i] for name, x in arrays.items() if name != "num_micro_batches"}
    # If M is 1, `x[i]` does not depend on the loop. Without this barrier XLA would move the whole computation out of the loop, where it
    # needs memory of its own and runs even in steps that skip the micro-batch.
    rows = jax.lax.optimization_barrier((i, rows))[1]
    model = nnx.merge(graphdef(config, rules, "stacked"), params)
    hidden, _ = model(
        rows["tokens"], rows["positions"], rows["segment_ids"],
        remat=step_config.remat, attention=step_config.attention, packed=packed,
    )  # fmt: skip
    weight = model.output_weight()
    return weighted_cross_entropy(hidden, weight, rows["targets"], rows["loss_weights"], rules, step_config.loss_chunk)


def _cast_matrices(params: Params, dtype: str) -> Params:
    """Return parameters with the layers' float matrices in the compute dtype. `cross_entropy.py` casts the output layer's matrix."""

    def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        is_matrix = path[0].key == "layers" and path[-1].key == "kernel" and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_matrix else x

    return jax.tree_util.tree_map_with_path(cast, params)


def abstract_state(
    optimizer: optax.GradientTransformation, params: Params, mesh: jax.sharding.Mesh, offload: bool = False
) -> TrainState:
    """Return the train state of these (abstract) parameters as `jax.ShapeDtypeStruct`s.

    An optimizer moment has the sharding of its parameter. With `offload` it lies in host memory instead of device memory.
    """
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def with_sharding(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    opt_state = optax.tree.map_params(
        optimizer,
        lambda moment, param: with_sharding(
            moment, param.sharding.with_memory_kind("pinned_host") if offload else param.sharding
        ),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: with_sharding(leaf, replicated),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(jax.tree.map(lambda p: with_sharding(p, p.sharding), params), opt_state, step)


def init_state(
    optimizer: optax.GradientTransformation, params: PyTree[Array], mesh: jax.sharding.Mesh, offload: bool = False
) -> TrainState:
    """Return the state at step 0, with the shardings of `abstract_state`."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, params, mesh, offload))
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(params, opt_state, jax.device_put(jnp.zeros((), jnp.int32), shardings.step))


def check_finite(params: PyTree[Array], step: int) -> None:
    """Raise UserError if the update of this step left parameters that are not finite. The step's loss cannot show that."""
    norm = float(jax.jit(optax.tree.norm)(params))
    if not math.isfinite(norm):
        raise UserError(
            f"step {step}: the norm of the parameters is {norm} after the update; the run stopped before saving them"
        )


def to_device(batch: Batch, mesh: jax.sharding.Mesh, rules: ShardingRules) -> DeviceBatch:
    """Put a batch on the mesh. Every process has the whole batch, and gives each of its devices that device's part."""

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, batch_sharding(mesh, rules, x.shape), lambda index: x[index])

    return jax.tree.map(place, batch)


def abstract_batch(
    shapes: Sequence[Shape], mesh: jax.sharding.Mesh, rules: ShardingRules
) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
    """Return a batch of these shapes as `jax.ShapeDtypeStruct`s on the mesh."""

    def of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, rules, shape))

    def micro_batches(shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        size = (shape.max_micro_batches, shape.rows_per_micro_batch, shape.row_length)
        ids = {name: of(size, jnp.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
        return ids | {"loss_weights": of(size, jnp.float32), "num_micro_batches": of((), jnp.int32)}

    return tuple(map(micro_batches, shapes))


def batch_sharding(mesh: jax.sharding.Mesh, rules: ShardingRules, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
    """Return the sharding of an array of a batch. The mesh splits R and T of [M, R, T], and replicates a scalar."""
    return sharding_for(mesh, rules, (None, "batch", "length")[: len(shape)], shape)
