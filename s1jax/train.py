"""Supervised fine-tuning: batches of `data.py` -> a pure jitted `train_step` on the mesh -> checkpoints and a Hugging Face export.

The recipe is the paper's (appendix D, `configs/s1_32b.py`): AdamW, linear warm-up, cosine to zero, gradient clipping, float32
master weights with bfloat16 compute, and a loss on reasoning and answer only.

Invariant: a batch's loss weights sum to one, so the loss of a step is a plain weighted sum and gradients of micro-batches simply add up.
Logits exist for `loss_chunk` positions at a time only.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from s1jax import data
from s1jax.config import counted, write_file
from s1jax.data import DataConfig
from s1jax.model import Params, Qwen2, abstract_params, graphdef
from s1jax.model_config import DType, ModelConfig
from s1jax.progress import progress
from s1jax.sharding import MeshConfig, ShardingRules, make_mesh, sharding_for

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

DeviceBatch = Mapping[str, jax.Array]

REJECTS_NAME = "rejects.jsonl"
# Fields that change no result but for rounding (or, as `data.source`, are told by what was read): a run may go on with others.
NEUTRAL_FIELDS = {
    "output", "data.source", "mesh", "rules", "micro_batch_size", "loss_chunk", "remat", "export_dtype", "save_every", "keep",
}  # fmt: skip


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to zero; the defaults are the paper's."""

    learning_rate: float = 1e-5
    """Peak learning rate."""
    warmup_fraction: float = 0.05
    """Share of the steps that warm up, rounded up to a whole step."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    """Not applied to biases and norm weights, as in the Hugging Face trainer."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        for name, is_good, told in (
            ("learning_rate", 0 < self.learning_rate <= 1, "positive and at most 1"),
            ("warmup_fraction", 0 <= self.warmup_fraction < 1, "at least 0 and below 1"),
            ("beta1", 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("epsilon", 0 < self.epsilon < math.inf, "positive and finite"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0 and finite"),
            ("clip_norm", self.clip_norm > 0, "positive"),
        ):
            if not is_good:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {told}")


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run."""

    model: str
    """Hugging Face directory or hub id, or one of our own checkpoints."""
    output: str
    """Run directory: checkpoints, metrics.jsonl, rejects.jsonl, and the Hugging Face export in hf/."""
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    rules: ShardingRules = field(default_factory=ShardingRules)
    dtype: DType = "bfloat16"
    """Compute dtype."""
    param_dtype: DType = "float32"
    """Dtype of master weights and optimizer state."""
    export_dtype: DType = "bfloat16"
    """Dtype of the exported weights."""
    micro_batch_size: int | None = None
    """Rows per forward pass over the whole mesh, a divisor of the batch size; default: the batch size."""
    loss_chunk: int = 1024
    """Positions per row whose logits exist at a time."""
    remat: bool = True
    """Recompute each layer in the backward pass."""
    save_every: int = 63
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 1
    """Number of checkpoints kept."""

    def __post_init__(self) -> None:
        if not self.output.strip():
            raise ValueError("output is empty: give the run a directory")
        for name in ("micro_batch_size", "loss_chunk", "save_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        for name in ("dtype", "param_dtype", "export_dtype"):
            if getattr(self, name) not in get_args(DType):
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(get_args(DType))}")
        if self.data.batch_size % self.rows_per_pass:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide the batch size {self.data.batch_size}"
            )

    @property
    def rows_per_pass(self) -> int:
        """Rows of a forward pass: `micro_batch_size`, or the whole batch."""
        return self.micro_batch_size or self.data.batch_size


class TrainState(NamedTuple):
    """What a step updates and a checkpoint holds; `step` is an int32 scalar."""

    params: Params
    opt_state: Any
    step: Any


def learning_rate(config: OptimizerConfig, num_steps: int) -> Callable[[Any], Any]:
    """Return the schedule: 0 at step 0, linear to the peak at ceil(warmup_fraction * num_steps), cosine to 0 at `num_steps`."""
    warmup_steps = math.ceil(config.warmup_fraction * num_steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup_steps, max(num_steps, warmup_steps + 1))


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Return clipping followed by AdamW (arXiv 1711.05101) on the schedule of `learning_rate`."""

    def decays(params: Params) -> Any:
        def is_matrix(path: tuple[Any, ...], _: Any) -> bool:
            names = [str(getattr(key, "key", key)) for key in path]
            return names[-1] == "kernel" or names[0] == "embed_tokens"

        return jax.tree_util.tree_map_with_path(is_matrix, params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )


def weighted_cross_entropy(
    model: Qwen2,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
) -> Float[Array, ""]:
    """Return the sum of weight * -log p(target); logits of `chunk` positions per row exist at a time, also in the backward pass."""
    T = targets.shape[1]
    chunk = min(chunk, T)
    padding = -T % chunk

    def tiles(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def tile_loss(total: jax.Array, tile: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden, targets, weights = tile
        losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), targets)
        return total + jnp.sum(losses * weights), None

    total, _ = jax.lax.scan(tile_loss, jnp.zeros((), jnp.float32), (tiles(hidden), tiles(targets), tiles(weights)))
    return total


def make_train_step(
    config: ModelConfig,
    rules: ShardingRules,
    optimizer: optax.GradientTransformation,
    num_micro_batches: int = 1,
    loss_chunk: int = 1024,
    remat: bool = True,
) -> Callable[[TrainState, DeviceBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """Return the jitted step (state, batch) -> (state, metrics); the state is donated.

    Call it under `jax.set_mesh`. Metrics: `loss` and `grad_norm` (before clipping), float32 scalars.
    """
    graph = graphdef(config, rules, "stacked")

    def loss_fn(params: Params, batch: DeviceBatch) -> jax.Array:
        model = nnx.merge(graph, params)
        hidden, _ = model(batch["tokens"], batch["positions"], batch["segment_ids"], remat=remat)
        return weighted_cross_entropy(model, hidden, batch["targets"], batch["loss_weights"], loss_chunk)

    def loss_and_grads(params: Params, batch: DeviceBatch) -> tuple[jax.Array, Params]:
        if num_micro_batches == 1:
            return jax.value_and_grad(loss_fn)(params, batch)
        # Row i of every micro-batch comes from the same device's share, so splitting moves nothing between devices.
        micro = {k: jnp.moveaxis(x.reshape(-1, num_micro_batches, *x.shape[1:]), 1, 0) for k, x in batch.items()}

        def accumulate(total: Any, part: DeviceBatch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, part)), None

        zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(accumulate, zeros, micro)[0]

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, grads = loss_and_grads(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(params, opt_state, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def abstract_state(optimizer: optax.GradientTransformation, params: Params, mesh: jax.sharding.Mesh) -> TrainState:
    """Return the train state of these (abstract) parameters as `jax.ShapeDtypeStruct`s: optimizer moments lie where their parameters do."""
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def with_sharding(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    opt_state = optax.tree.map_params(
        optimizer,
        lambda moment, param: with_sharding(moment, param.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: with_sharding(leaf, replicated),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(jax.tree.map(lambda p: with_sharding(p, p.sharding), params), opt_state, step)


def init_state(optimizer: optax.GradientTransformation, params: Params, mesh: jax.sharding.Mesh) -> TrainState:
    """Return the state at step 0."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, params, mesh))
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(params, opt_state, jax.device_put(jnp.zeros((), jnp.int32), shardings.step))


def to_device(batch: data.Batch, mesh: jax.sharding.Mesh, rules: ShardingRules) -> dict[str, jax.Array]:
    """Return the batch on the mesh. Every process has all of it, and puts on each of its devices what that one holds."""

    def place(x: np.ndarray) -> jax.Array:
        sharding = sharding_for(mesh, rules, ("batch", "length"), x.shape)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return {name: place(x) for name, x in batch.items()}


def check_mesh(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """Raise ValueError where the rows of a forward pass cannot be shared out evenly: each device would compute all of them."""
    shards = {axis: mesh.shape[axis] for axis in config.rules.batch}
    num_shards = math.prod(shards.values())
    if config.rows_per_pass % num_shards:
        name = "micro_batch_size" if config.micro_batch_size else "batch_size"
        shown = " x ".join(f"{axis} {size}" for axis, size in shards.items())
        raise ValueError(
            f"{name} {config.rows_per_pass} is no multiple of {num_shards}, the shards of a batch on this mesh ({shown}): "
            f"choose a multiple of {num_shards}, or give more of the devices to the mesh's tensor or sequence"
        )


def identity_of(config: TrainConfig, examples: data.Examples, weights: str) -> dict[str, Any]:
    """Return what a run must have in common with the one that it resumes; `weights` is the fingerprint of the source model."""
    fields: dict[str, Any] = {}
    for name, value in asdict(config).items():
        fields |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    fields = {name: value for name, value in fields.items() if not {name, name.split(".")[0]} & NEUTRAL_FIELDS}
    return fields | {"training examples": examples.fingerprint, "weights": weights}


def train(config: TrainConfig) -> Path:
    """Run (or resume) the fine-tuning that `config` describes; return the directory of the Hugging Face export.

    A run directory that holds a checkpoint is resumed from it, and a finished one is done already. Raises ValueError where its
    config (but for `NEUTRAL_FIELDS`), examples or source weights were others, and where examples, model and mesh do not fit.
    """
    # Here, so that a training step itself needs no more than jax, flax, optax and numpy.
    from s1jax import checkpoint, orbax_params

    output = Path(config.output)
    mesh = make_mesh(config.mesh)
    check_mesh(config, mesh)
    model_config, _ = checkpoint.read_config(config.model, config.dtype)
    rows, rejects = data.read_rows(config.data.source)
    examples, more_rejects = data.encode_rows(rows, checkpoint.load_tokenizer(config.model), config.data)
    rejects = rejects + more_rejects
    examples.check_fit(model_config)
    num_steps = data.num_steps(len(examples), config.data)

    identity = identity_of(config, examples, checkpoint.fingerprint(config.model))
    first_step = max(checkpoint.finished_steps(output / "checkpoints"), default=0)
    if first_step:
        before = orbax_params.read_metadata(output / "checkpoints" / str(first_step)).get("identity", {})
        changed = [
            f"{name} {before.get(name)}, not {value}" for name, value in identity.items() if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{output} holds a run of another config: {'; '.join(changed)}. Give another --output, or remove it"
            )
    if first_step == num_steps and checkpoint.stored_dtype(output / "hf") == config.export_dtype:
        _say(f"{output} is finished: nothing to do")
        return output / "hf"

    _say(
        f"{counted(len(examples), 'example')}, {examples.num_truncated} of them cut to max_length {config.data.max_length}, "
        f"{data.told(rejects, output / REJECTS_NAME)}; {counted(num_steps, 'step')} of {config.data.batch_size}"
    )
    optimizer = make_optimizer(config.optimizer, num_steps)
    if first_step:
        _say(f"resuming {output} after step {first_step} of {num_steps}")
        store = checkpoint.StateStore(output / "checkpoints", keep=config.keep)
        target = abstract_params(model_config, config.rules, "stacked", mesh, config.param_dtype)
        state = store.restore(first_step, abstract_state(optimizer, target, mesh))
    else:
        _, params = checkpoint.load_model(
            config.model, mesh, config.rules, "stacked", dtype=config.dtype, param_dtype=config.param_dtype
        )
        store = checkpoint.StateStore(output / "checkpoints", keep=config.keep)
        state = init_state(optimizer, params, mesh)
        del params
    checkpoint.write_model_files(output, model_config, config.model)
    if jax.process_index() == 0:
        data.write_rejects(output / REJECTS_NAME, rejects)

    num_micro_batches = config.data.batch_size // config.rows_per_pass
    step_fn = make_train_step(model_config, config.rules, optimizer, num_micro_batches, config.loss_chunk, config.remat)
    schedule = learning_rate(config.optimizer, num_steps)
    batches = data.make_batches(examples, config.data)
    with jax.set_mesh(mesh), closing(store), _Log(output / "metrics.jsonl", first_step, num_steps) as log:
        pending = None
        for step in range(first_step, num_steps):
            batch = batches[step]
            state, metrics = step_fn(state, to_device(batch, mesh, config.rules))
            # The metrics of the step before are read while the device runs this one.
            if pending is not None:
                log.write(*pending)
            pending = (step, metrics, float(schedule(step)), int(np.count_nonzero(batch["segment_ids"])))
            if step + 1 == num_steps or (step + 1) % config.save_every == 0:
                log.write(*pending)
                pending = None
                check_finite(state.params, step)
                store.save(step + 1, state, {"identity": identity})
    check_finite(state.params, num_steps - 1)
    checkpoint.save_hf(output / "hf", model_config, state.params, config.export_dtype, config.model, overwrite=True)
    return output / "hf"


def check_finite(params: Params, step: int) -> None:
    """Raise ValueError for parameters that the update of a step has destroyed: its loss was measured before it."""
    norm = float(jax.jit(optax.tree.norm)(params))
    if not math.isfinite(norm):
        raise ValueError(f"step {step}: parameters of norm {norm} after its update; stopped before they could be saved")


class _Log:
    """Writes a JSON line per step, and shows the progress; stops the run at a loss that is not finite."""

    def __init__(self, path: Path, first_step: int, num_steps: int):
        # A line torn by a kill is of a step after the checkpoint.
        whole = path.read_text().split("\n")[:-1] if first_step and path.exists() else []
        kept = [line for line in whole if json.loads(line)["step"] < first_step]
        self.writes = jax.process_index() == 0
        if self.writes:
            write_file(path, "".join(line + "\n" for line in kept))
            self.file = path.open("a")
        self.bar = progress(num_steps, "train", "step", initial=first_step, hidden=not self.writes)
        self.started = time.monotonic()
        self.num_tokens = 0

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()
        if self.writes:
            self.file.close()

    def write(self, step: int, metrics: dict[str, jax.Array], learning_rate: float, num_tokens: int) -> None:
        """Wait for the metrics of a step and write them; `num_tokens` counts the whole batch's."""
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise ValueError(f"step {step}: loss {loss}, gradient norm {grad_norm}; stopped before it could be saved")
        self.num_tokens += num_tokens
        tokens_per_s = self.num_tokens / (time.monotonic() - self.started)
        row = dict(step=step, loss=loss, grad_norm=grad_norm, learning_rate=learning_rate, tokens=num_tokens)
        if self.writes:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        self.bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s", refresh=False)
        self.bar.update()


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, file=sys.stderr)
