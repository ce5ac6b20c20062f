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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from s1jax import data
from s1jax.data import DataConfig
from s1jax.model import DType, ModelConfig, Params, Qwen2, abstract_params, graphdef
from s1jax.sharding import MeshConfig, ShardingRules, make_mesh, sharding_for

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

Batch = Mapping[str, jax.Array]


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
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Return the jitted step (state, batch) -> (state, metrics); the state is donated.

    Call it under `jax.set_mesh`. Metrics: `loss` and `grad_norm` (before clipping), float32 scalars.
    """
    graph = graphdef(config, rules, "stacked")

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        model = nnx.merge(graph, params)
        hidden, _ = model(batch["tokens"], batch["positions"], batch["segment_ids"], remat=remat)
        return weighted_cross_entropy(model, hidden, batch["targets"], batch["loss_weights"], loss_chunk)

    def loss_and_grads(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        if num_micro_batches == 1:
            return jax.value_and_grad(loss_fn)(params, batch)
        # Row i of every micro-batch comes from the same device's share, so splitting moves nothing between devices.
        micro = {k: jnp.moveaxis(x.reshape(-1, num_micro_batches, *x.shape[1:]), 1, 0) for k, x in batch.items()}

        def accumulate(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, part)), None

        zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(accumulate, zeros, micro)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
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


def to_device(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, rules: ShardingRules) -> dict[str, jax.Array]:
    """Return the global batch, given this process's rows of it."""

    def place(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding_for(mesh, rules, ("batch", "length"), shape), x, shape)

    return {name: place(x) for name, x in batch.items()}


def train(config: TrainConfig) -> Path:
    """Run (or resume) the fine-tuning that `config` describes; return the directory of the Hugging Face export.

    A run directory that holds a checkpoint of the same config is resumed from it; of another config, ValueError.
    """
    # Here, so that a training step itself needs no more than jax, flax, optax and numpy.
    from s1jax import checkpoint

    output = Path(config.output)
    tokenizer = checkpoint.load_tokenizer(config.model)
    rows, rejects = data.read_rows(config.data.source)
    examples, more_rejects = data.encode_rows(rows, tokenizer, config.data)
    rejects = rejects + more_rejects
    batches = data.make_batches(examples, config.data, jax.process_index(), jax.process_count())
    num_steps = data.num_steps(len(examples), config.data)
    micro_batch_size = config.micro_batch_size or config.data.batch_size
    if config.data.batch_size % micro_batch_size:
        raise ValueError(f"micro_batch_size {micro_batch_size} does not divide the batch size {config.data.batch_size}")

    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, num_steps)
    schedule = learning_rate(config.optimizer, num_steps)
    model_config, params = checkpoint.load_model(
        config.model, mesh, config.rules, "stacked", dtype=config.dtype, param_dtype=config.param_dtype
    )
    num_micro_batches = config.data.batch_size // micro_batch_size
    step_fn = make_train_step(model_config, config.rules, optimizer, num_micro_batches, config.loss_chunk, config.remat)

    identity = {k: v for k, v in asdict(config).items() if k not in ("mesh", "rules", "output", "save_every", "keep")}
    store = checkpoint.StateStore(output / "checkpoints", keep=config.keep)
    first_step = store.latest_step() or 0
    if first_step:
        abstract = abstract_state(
            optimizer, abstract_params(model_config, config.rules, "stacked", mesh, config.param_dtype), mesh
        )
        del params
        state, metadata = store.restore(first_step, abstract)
        if metadata["config"] != json.loads(json.dumps(identity)):
            raise ValueError(f"{output} holds a run of another config; give another --output, or remove it")
        _say(f"resuming {output} after step {first_step} of {num_steps}")
    else:
        state = init_state(optimizer, params, mesh)
        del params
    checkpoint.write_model_files(output, model_config, config.model)
    data.write_rejects(output / "rejects.jsonl", rejects)
    _say(f"{len(examples)} examples, {len(rejects)} rejected; {num_steps} steps of {config.data.batch_size}")

    log = _Log(output / "metrics.jsonl", first_step, num_steps)
    with jax.set_mesh(mesh), log:
        pending = None
        for step in range(first_step, num_steps):
            batch = batches[step]
            num_tokens = int(np.count_nonzero(batch["segment_ids"])) * jax.process_count()
            state, metrics = step_fn(state, to_device(batch, mesh, config.rules))
            # The metrics of the step before are read while the device runs this one.
            if pending is not None:
                log.write(*pending)
            pending = (step, metrics, float(schedule(step)), num_tokens)
            last = step + 1 == num_steps
            if last or (step + 1) % config.save_every == 0:
                log.write(*pending)
                pending = None
                store.save(step + 1, state, {"config": identity})
    store.wait()
    store.close()
    checkpoint.save_hf(output / "hf", model_config, state.params, config.export_dtype, config.model, overwrite=True)
    return output / "hf"


class _Log:
    """Writes a JSON line per step, and a progress bar on a terminal; stops the run at a loss that is not finite."""

    def __init__(self, path: Path, first_step: int, num_steps: int):
        from tqdm import tqdm

        # A line torn by a kill is of a step after the checkpoint.
        whole = path.read_text().split("\n")[:-1] if first_step and path.exists() else []
        kept = [line for line in whole if json.loads(line)["step"] < first_step]
        self.writes = jax.process_index() == 0
        if self.writes:
            path.write_text("".join(line + "\n" for line in kept))
            self.file = path.open("a")
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc="train",
            unit="step",
            file=sys.stderr,
            mininterval=0.2 if on_terminal else 10,
            disable=not self.writes,
        )
        self.started = time.monotonic()
        self.num_tokens = 0

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()
        if self.writes:
            self.file.close()

    def write(self, step: int, metrics: dict[str, jax.Array], rate: float, num_tokens: int) -> None:
        """Wait for the metrics of a step and write them."""
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise ValueError(f"step {step}: loss {loss}, gradient norm {grad_norm}; stopped before it could be saved")
        self.num_tokens += num_tokens
        tokens_per_s = self.num_tokens / (time.monotonic() - self.started)
        row = dict(step=step, loss=loss, grad_norm=grad_norm, learning_rate=rate, tokens=num_tokens)
        if self.writes:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        self.bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s", refresh=False)
        self.bar.update()


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, file=sys.stderr)
