"""One step of fine-tuning: (state, batch of `packing.py`) -> (state, metrics), a pure function compiled for the mesh.

The passes of a batch are run one after another, as many as hold anything, and their gradients added up in float32; the loss weights of
a batch sum to one over all its passes, so sums are all it takes. Matrices are cast to the compute dtype once a step, so that devices
exchange them (and their gradients) in that form.

Invariants: how a batch is split over passes, rows and devices changes nothing but rounding; the same compiled step, run again, gives
the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from s1jax.data.packing import Batch, Shape
from s1jax.model.config import ModelConfig
from s1jax.model.lora import combine
from s1jax.model.qwen2 import Params, Remat, constrain_params, graphdef
from s1jax.ops.attention import Backend
from s1jax.ops.cross_entropy import weighted_cross_entropy
from s1jax.runtime.errors import UserError
from s1jax.runtime.hardware import platform
from s1jax.runtime.sharding import ShardingRules, sharding_for
from s1jax.train.optimizer import update

if TYPE_CHECKING:
    from jaxtyping import Array, Float

DevicePasses = Mapping[str, jax.Array]
DeviceBatch = tuple[DevicePasses, ...]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """What a step updates and a checkpoint holds; `step` is an int32 scalar."""

    params: Params
    opt_state: Any
    step: Any


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed; none of it changes what is computed, but for rounding."""

    loss_chunk: int = 1024
    """Positions of a device whose logits exist at a time."""
    remat: Remat = "full"
    """What of each layer the backward pass recomputes (`model.Qwen2`): `full` needs the least memory, `none` the least time."""
    attention: Backend | None = None
    """Attention backend; by default that of the platform."""
    offload_optimizer: bool = False
    """Keep the optimizer's moments in host memory."""

    def __post_init__(self) -> None:
        if self.loss_chunk < 1:
            raise UserError(f"loss_chunk is {self.loss_chunk}: it must be at least 1")
        for name, choices in (("remat", Remat), ("attention", Backend)):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise UserError(f"{name} is {value!r}: choose one of {', '.join(get_args(choices))}")


def make_train_step(
    config: ModelConfig,
    rules: ShardingRules,
    optimizer: optax.GradientTransformation,
    step_config: StepConfig,
    packed: bool = True,
    seed: int = 0,
    shardings: TrainState | None = None,
) -> Any:
    """Return the jitted step (state, frozen, batch) -> (state, metrics); the state is donated, and comes back on `shardings`.

    `frozen` is what the model has besides the state's parameters (`lora.py`), {} for nothing. `packed=False` promises one example a row;
    `seed` decides how bfloat16 state is rounded. Metrics: `loss` and `grad_norm` (before clipping), float32 scalars. Call it under
    `jax.set_mesh`.
    """

    def loss_and_grads(params: Params, frozen: Params, batch: DeviceBatch) -> tuple[jax.Array, Params]:
        cast, frozen = _cast_matrices(params, config.dtype), _cast_matrices(frozen, config.dtype)

        def of_pass(passes: DevicePasses, i: Any) -> tuple[jax.Array, Params]:
            def of_params(params: Params) -> jax.Array:
                return _loss_of_pass(config, rules, step_config, packed, combine(frozen, params), passes, i)

            loss, grads = jax.value_and_grad(of_params)(cast)
            return loss, constrain_params(grads, config, rules)

        if [passes["tokens"].shape[0] for passes in batch] == [1]:
            return of_pass(batch[0], 0)

        def add(passes: DevicePasses, i: jax.Array, total: Any) -> Any:
            loss, grads = jax.tree.map(jnp.add, total, of_pass(passes, i))
            return loss, constrain_params(grads, config, rules)

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        return _over_passes(batch, add, (jnp.zeros((), jnp.float32), constrain_params(zeros, config, rules)))

    def step(state: TrainState, frozen: Params, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        loss, grads = loss_and_grads(state.params, frozen, batch)
        opt_state = state.opt_state
        if step_config.offload_optimizer:
            opt_state = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), opt_state)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params, opt_state = update(optimizer, grads, opt_state, state.params, key)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), grads))}
        return TrainState(params, opt_state, state.step + 1), metrics

    # GPUs would add up the gradients of the embedding's rows in any order.
    options = {"xla_gpu_exclude_nondeterministic_ops": True} if platform() == "gpu" else None
    out_shardings = None if shardings is None else (shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def make_loss_step(config: ModelConfig, rules: ShardingRules, step_config: StepConfig, packed: bool = True) -> Any:
    """Return the jitted function (params, frozen, batch) -> loss of a batch, without gradients. Call it under `jax.set_mesh`."""

    def loss(params: Params, frozen: Params, batch: DeviceBatch) -> jax.Array:
        whole = combine(_cast_matrices(frozen, config.dtype), _cast_matrices(params, config.dtype))

        def add(passes: DevicePasses, i: jax.Array, total: jax.Array) -> jax.Array:
            return total + _loss_of_pass(config, rules, step_config, packed, whole, passes, i)

        return _over_passes(batch, add, jnp.zeros((), jnp.float32))

    return jax.jit(loss)


def _over_passes(batch: DeviceBatch, add: Callable[[DevicePasses, jax.Array, Any], Any], total: Any) -> Any:
    """Return what `add(passes, i, total)` makes of the total, pass after pass of those that a step takes."""
    for passes in batch:
        total = jax.lax.fori_loop(0, passes["num_passes"], functools.partial(add, passes), total)
    return total


def _loss_of_pass(config, rules, step_config, packed, params, passes, i) -> Float[Array, ""]:
    """Return the weighted loss of the rows of pass `i`."""
    rows = {name: x[i] for name, x in passes.items() if name != "num_passes"}
    # Where there is one pass, `x[i]` is the same in every turn: XLA would take it all out of the loop, with memory of its own, and
    # compute it also for steps that do not take it.
    rows = jax.lax.optimization_barrier((i, rows))[1]
    model = nnx.merge(graphdef(config, rules, "stacked"), params)
    how = dict(remat=step_config.remat, attention=step_config.attention, packed=packed)
    hidden, _ = model(rows["tokens"], rows["positions"], rows["segment_ids"], **how)
    weight = model.output_weight()
    return weighted_cross_entropy(hidden, weight, rows["targets"], rows["loss_weights"], rules, step_config.loss_chunk)


def _cast_matrices(params: Params, dtype: str) -> Params:
    """Return parameters with the layers' float matrices in the compute dtype (the output layer's is cast in `loss.py`)."""

    def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        is_matrix = path[0].key == "layers" and path[-1].key == "kernel" and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_matrix else x

    return jax.tree_util.tree_map_with_path(cast, params)


def abstract_state(
    optimizer: optax.GradientTransformation, params: Params, mesh: jax.sharding.Mesh, offload: bool = False
) -> TrainState:
    """Return the train state of these (abstract) parameters as `jax.ShapeDtypeStruct`s.

    Optimizer moments lie where their parameters do; with `offload`, in the memory of that device's host.
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
    optimizer: optax.GradientTransformation, params: Params, mesh: jax.sharding.Mesh, offload: bool = False
) -> TrainState:
    """Return the state at step 0, placed as `abstract_state` says."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, params, mesh, offload))
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(params, opt_state, jax.device_put(jnp.zeros((), jnp.int32), shardings.step))


def check_finite(params: Params, step: int) -> None:
    """Raise UserError for parameters that the update of a step has destroyed: its loss was measured before it."""
    norm = float(jax.jit(optax.tree.norm)(params))
    if not math.isfinite(norm):
        raise UserError(f"step {step}: parameters of norm {norm} after its update; stopped before they could be saved")


def to_device(batch: Batch, mesh: jax.sharding.Mesh, rules: ShardingRules) -> DeviceBatch:
    """Return a batch on the mesh. Every process has all of it, and puts on each of its devices what that one holds."""

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, batch_sharding(mesh, rules, x.shape), lambda index: x[index])

    return jax.tree.map(place, batch)


def abstract_batch(
    shapes: Sequence[Shape], mesh: jax.sharding.Mesh, rules: ShardingRules
) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
    """Return the batches of a run as `jax.ShapeDtypeStruct`s on the mesh."""

    def of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, rules, shape))

    def passes(shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        size = (shape.num_passes, shape.rows_per_pass, shape.row_length)
        ids = {name: of(size, jnp.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
        return ids | {"loss_weights": of(size, jnp.float32), "num_passes": of((), jnp.int32)}

    return tuple(map(passes, shapes))


def batch_sharding(mesh: jax.sharding.Mesh, rules: ShardingRules, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
    """Return where an array of a batch lies: [M, R, T] by rows and length, a scalar everywhere."""
    return sharding_for(mesh, rules, (None, "batch", "length")[: len(shape)], shape)
