"""A fine-tuning run: prepare (read and check everything), compile, load, fit (the loop over steps), export to Hugging Face's format.

In: a training config. Out: a run directory with checkpoints, metrics and the export. The recipe is the paper's (appendix D).

Invariant: an interrupted run resumes from its last checkpoint, bit for bit on the same mesh. On another mesh it agrees up to rounding.
"""

from __future__ import annotations

import json
import logging
import math
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from s1jax.checkpoint.directories import check_destination
from s1jax.checkpoint.export import save_hf, write_model_files
from s1jax.checkpoint.peft import to_peft
from s1jax.checkpoint.source import Source, load_model, load_tokenizer, resolve_source, stored_dtype
from s1jax.checkpoint.train_state import StateStore
from s1jax.data.chat import ChatFormat
from s1jax.data.examples import DataConfig, Examples, encode_rows
from s1jax.data.packing import Packer, num_steps
from s1jax.data.rows import describe_rejects, read_rows
from s1jax.model import lora
from s1jax.model.config import ModelConfig
from s1jax.model.flops import train_flops
from s1jax.model.qwen2 import Params
from s1jax.runtime import jsonl
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable, write_file
from s1jax.runtime.hardware import peak_flops
from s1jax.runtime.lock import Lock
from s1jax.runtime.preemption import Preemption
from s1jax.runtime.processes import check_same, everywhere, from_first_process, is_first_process
from s1jax.runtime.sharding import make_mesh
from s1jax.train.compile import TrainingProgram, training_program
from s1jax.train.config import TrainConfig, identity_of, weight_dtype
from s1jax.train.log import LOG_NAME, StepRecord, TrainLog, check_trackers
from s1jax.train.optimizer import learning_rate
from s1jax.train.step import TrainState, check_finite, to_device

REJECTS_NAME = "rejects.jsonl"
CONFIG_NAME = "train_config.json"

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Run, or resume, the fine-tuning that `config` describes. Return the directory of the Hugging Face export.

    If the run directory holds a checkpoint, the run resumes from it; if it holds a finished run, nothing is done. SIGTERM and Ctrl-C save
    and end the process. Raises UserError if the directory is in use, if it holds a run of another identity or anything that is no run,
    or if examples, model and mesh do not fit together.
    """
    from_first_process(lambda: check_output(config))
    with Preemption() as preemption, Lock(Path(config.output), inside=True):
        with preemption.nothing_to_save("starting"):
            run = prepare(config)
            if run.store is not None and run.is_finished():
                run.store.close()
                logger.info("%s is finished: nothing to do", run.output)
                return run.export_path
            compiled = compile_run(run)
            frozen, state = load(run)
            write_run_files(run)
        with closing(run.store or open_store(config)) as store, jax.set_mesh(run.program.mesh):
            state = fit(run, compiled, store, frozen, state, preemption)
        with preemption.nothing_to_save("exporting"):
            preemption.saved = f"all {run.num_steps} steps are saved in {run.output}"
            export(run, frozen, state.params)
        return run.export_path


@dataclass(frozen=True)
class Run:
    """A run that is prepared: everything is read and checked except the weights."""

    config: TrainConfig
    source: Source
    """The model to start from; its weights may be downloaded later."""
    program: TrainingProgram
    packer: Packer
    eval_packer: Packer | None
    """Batches of the held-out rows; None without an evaluation."""
    rejects: list[dict[str, Any]]
    """Rejected rows, for `rejects.jsonl`."""
    identity: dict[str, Any]
    store: StateStore | None
    """The checkpoints of a run that was started before; None for a new run."""
    first_step: int
    """The step of the checkpoint to resume from; 0 if there is none."""

    @property
    def output(self) -> Path:
        """The run directory."""
        return Path(self.config.output)

    @property
    def export_path(self) -> Path:
        """The directory of the Hugging Face export."""
        return self.output / "hf"

    @property
    def num_steps(self) -> int:
        """Number of steps of the whole run."""
        return len(self.packer)

    def needs_evaluation(self, step: int) -> bool:
        """Return whether the held-out loss after this many steps is due and not yet measured."""
        if self.eval_packer is None or (step != self.num_steps and step % self.config.eval_every):
            return False
        return step != self.first_step or self.store is None or self.store.eval_loss(step) is None

    def is_finished(self) -> bool:
        """Return whether all steps are made, evaluated and exported as the config asks."""
        store = self.store
        if store is None or self.first_step != self.num_steps or self.needs_evaluation(self.num_steps):
            return False
        # An older export belongs to an earlier run in the same directory, whose checkpoints were removed.
        return from_first_process(
            lambda: (
                stored_dtype(self.export_path) == self.config.export_dtype
                and self.export_path.stat().st_mtime >= store.saved_at(self.first_step)
            )
        )


# Prepare


def prepare(config: TrainConfig) -> Run:
    """Read the source model's config, the tokenizer, the rows and the state of the run directory, and check that all of it fits together.

    It writes nothing into a new run directory. Raises UserError if something does not fit.
    """
    output = Path(config.output)
    check_same(config, "config")
    mesh = make_mesh(config.mesh)
    source = everywhere(lambda: resolve_source(config.model, weights=False))
    check_same(source.revision, "model")
    model_config = everywhere(lambda: source.model_config(config.dtype))
    chat = everywhere(lambda: ChatFormat.of(load_tokenizer(source), config.data.thinking_format))
    examples, rejects = read_examples(config.data, chat, model_config, output)
    program = training_program(config, model_config, mesh, num_steps(len(examples), config.data))
    packer, eval_packer = Packer(examples, config.data, *program.batch_shards()), None
    if config.eval_source is not None:
        held_out = replace(config.data, source=config.eval_source, num_epochs=1)
        eval_examples, more_rejects = read_examples(held_out, chat, model_config, output)
        eval_packer = Packer(eval_examples, held_out, *program.batch_shards())
        rejects += more_rejects
    identity = identity_of(config, examples, source.fingerprint) | {"tokenizer": source.tokenizer_fingerprint}
    check_trackers(config.trackers)
    store = open_store(config) if (output / "checkpoints").is_dir() else None
    first_step = 0 if store is None else find_first_step(store, output, identity)
    return Run(config, source, program, packer, eval_packer, rejects, identity, store, first_step)


def check_output(config: TrainConfig) -> None:
    """Raise UserError if the run directory is the model, holds files that are no run's, or has something in the way of the run's files."""
    output = Path(config.output)
    if output.resolve() == Path(config.model).expanduser().resolve():
        raise UserError(f"output {config.output} is the model itself: give the run another directory")
    for name in (REJECTS_NAME, CONFIG_NAME, LOG_NAME, "config.json"):
        check_writable(output / name)
    if output.is_symlink() and not output.exists():
        raise UserError(f"{output} is a symbolic link to nothing: remove it, or give another output")
    for name in ("checkpoints", "tensorboard"):
        if (output / name).exists() and not (output / name).is_dir():
            raise UserError(f"{output / name} is a file: remove it, or give another output")
    check_destination(output / "hf", overwrite=True)
    if output.exists() and not is_run(output):
        # A lock, what a kill left of the first write, and what a new file system contains.
        strangers = {path.name for path in output.iterdir()} - {".lock", f".{CONFIG_NAME}.partial", "lost+found"}
        if CONFIG_NAME in strangers:
            raise UserError(f"{output / CONFIG_NAME} is not the record of a training run, or it is damaged")
        if strangers:
            raise UserError(
                f"{output} holds {min(strangers)}, and no {CONFIG_NAME} of a training run: give a new or empty directory as output"
            )


def is_run(directory: Path) -> bool:
    """Return whether a directory is that of a training run: it holds the record of the config, which a run writes first."""
    try:
        record = json.loads((directory / CONFIG_NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"model", "output", "data", "optimizer"} <= record.keys()


def read_examples(
    config: DataConfig, chat: ChatFormat, model_config: ModelConfig, output: Path
) -> tuple[Examples, list[dict[str, Any]]]:
    """Return the examples of a source, and its rejected rows. Raises UserError if the examples do not fit the model."""
    rows, rejects = everywhere(lambda: read_rows(config.source))
    examples, more_rejects = encode_rows(rows, chat, config)
    examples.check_fit(model_config)
    rejects += more_rejects
    logger.info(
        "%s: %s, %d of them cut to max_length %d, %s", config.source, counted(len(examples), "example"),
        examples.num_truncated, config.max_length, describe_rejects(rejects, output / REJECTS_NAME),
    )  # fmt: skip
    return examples, rejects


def open_store(config: TrainConfig) -> StateStore:
    """Open the checkpoints of a run directory, or create their directory."""
    return StateStore(Path(config.output) / "checkpoints", config.keep, keep_best=config.eval_source is not None)


def find_first_step(store: StateStore, output: Path, identity: dict[str, Any]) -> int:
    """Return the step of the newest checkpoint, or 0 if there is none.

    Raises UserError if the checkpoint belongs to a run of another identity, or if all checkpoints are damaged.
    """
    step = store.latest_step()
    if step is None:
        if damaged := sorted(path.name for path in store.directory.glob("*.damaged")):
            raise UserError(
                f"{output} has no intact checkpoint, only {', '.join(damaged)}: remove {output} to start from the beginning"
            )
        return 0
    before = store.read_metadata(step)["identity"]
    changed = [
        f"{name} {before.get(name)}, not {value}" for name, value in identity.items() if before.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{output} holds a run of another config: {'; '.join(changed)}. Give another --output, or remove it"
        )
    return step


# Compile and load


class CompiledRun(NamedTuple):
    """The compiled programs of a run; None if nothing is left for one to do."""

    step: Any
    """(state, frozen, batch) -> (state, metrics)."""
    loss: Any
    """(trained, frozen, batch) -> loss, for evaluations."""


def compile_run(run: Run) -> CompiledRun:
    """Compile the step and the evaluation. This happens before the first step, so that an error of the compiler costs no work."""
    packer = run.packer
    logger.info(
        "%s of %d examples, in micro-batches of %s of %s tokens; %.0f%% of the positions hold a token",
        counted(run.num_steps, "step"), run.config.data.batch_size, counted(packer.rows_per_micro_batch, "row"),
        " or ".join(map(str, packer.row_lengths)), 100 * packer.filling(),
    )  # fmt: skip
    has_steps = run.first_step < run.num_steps
    step = run.program.lower_step(packer.shapes).compile() if has_steps else None
    if run.eval_packer is None or not (has_steps or run.needs_evaluation(run.num_steps)):
        return CompiledRun(step, None)
    return CompiledRun(step, run.program.lower_loss(run.eval_packer.shapes).compile())


def load(run: Run) -> tuple[Params, TrainState]:
    """Return the frozen parameters (none without LoRA) and the state to start from: that of the checkpoint, or that of step 0."""
    config, program = run.config, run.program
    frozen: Params = {} if config.lora is None else load_weights(run)
    if run.store is not None and run.first_step:
        logger.info("resuming %s after step %d of %d", run.output, run.first_step, run.num_steps)
        return frozen, run.store.restore(run.first_step, program.state)
    if config.lora is None:
        trained = load_weights(run)
    else:
        trained = lora.init_adapters(program.model_config, config.rules, program.mesh, config.data.seed)
    return frozen, program.init_state(trained)


def load_weights(run: Run) -> Params:
    """Return the source model's weights, in the storage that the config asks for."""
    config, program = run.config, run.program
    store = None if config.frozen == "float" else config.frozen
    _, params = load_model(
        run.source, program.mesh, config.rules, "stacked", config.dtype, weight_dtype(config), store=store
    )
    if store is None:
        return params
    return jax.device_put(params, jax.tree.map(lambda x: x.sharding, program.frozen))


def write_run_files(run: Run) -> None:
    """Write the files of the run directory that do not change during the run, once nothing can be refused any more."""
    if is_first_process():
        # Every field of the config, and the commit of a hub id (null for a directory). It comes first, for `is_run`.
        record = asdict(run.config) | {"revision": run.source.revision}
        write_file(run.output / CONFIG_NAME, json.dumps(record, indent=2) + "\n")
        jsonl.write(run.output / REJECTS_NAME, run.rejects)
    write_model_files(run.output, run.program.model_config, run.source.files)


# Fit


def fit(
    run: Run, compiled: CompiledRun, store: StateStore, frozen: Params, state: TrainState, preemption: Preemption
) -> TrainState:
    """Make the steps that are left, with their evaluations and checkpoints. Return the last state."""
    config, packer, mesh = run.config, run.packer, run.program.mesh
    # All rates are computed beforehand: a computation per step would wait for the devices.
    rates = jax.device_get(jax.vmap(learning_rate(config.optimizer, run.num_steps))(jnp.arange(run.num_steps)))
    peak = peak_flops(jax.devices()[0].device_kind, config.dtype)
    peak = None if peak is None else peak * mesh.size
    with TrainLog(run.output, run.first_step, run.num_steps, peak, config.trackers, run.identity) as train_log:
        if run.first_step and run.needs_evaluation(run.first_step):  # a signal interrupted the evaluation
            eval_loss = evaluate(run, compiled.loss, state.params, frozen, preemption)
            if eval_loss is None:
                preemption.stop(run.first_step)
            train_log.add_eval_loss(run.first_step - 1, eval_loss)
            store.add_eval_loss(run.first_step, eval_loss)
            train_log.start_clock()
        for step in range(run.first_step, run.num_steps):
            indices = packer.steps[step]
            batch = to_device(packer.make_batch(indices), mesh, config.rules)
            state, metrics = compiled.step(state, frozen, batch)
            lengths = packer.examples.lengths[indices]
            flops = train_flops(run.program.model_config, lengths)
            row_ids = [packer.examples.row_ids[i] for i in indices]
            train_log.step(StepRecord(step, metrics, float(rates[step]), int(lengths.sum()), flops, row_ids))
            done = step + 1
            stops, evaluates = preemption.requested(), run.needs_evaluation(done)
            if not (stops or evaluates or done == run.num_steps or done % config.save_every == 0):
                continue
            train_log.wait()
            check_finite(state.params, step)
            eval_loss = None
            if evaluates and not stops:
                eval_loss = evaluate(run, compiled.loss, state.params, frozen, preemption)
            train_log.flush(eval_loss)
            stops = stops or preemption.requested()
            store.save(done, state, checkpoint_metadata(run, done), eval_loss)
            if stops:
                store.wait()
                preemption.stop(done)
            train_log.start_clock()
    if run.eval_packer is not None:
        store.wait()  # the last step may be the best
        if (best := store.best_step()) is not None:
            logger.info("lowest loss on %s: %.4f after step %d", config.eval_source, store.eval_loss(best), best)
    return state


def evaluate(run: Run, loss: Any, params: Params, frozen: Params, preemption: Preemption) -> float | None:
    """Return the loss on the held-out rows, averaged as in training; None if a signal interrupted the evaluation.

    Raises UserError if the loss is not finite.
    """
    packer, config = run.eval_packer, run.config
    assert packer is not None
    total = weight = 0.0
    for indices in packer.steps:
        if preemption.requested():
            return None
        share = packer.num_targets[indices].sum() if config.data.loss_average == "token" else len(indices)
        batch = to_device(packer.make_batch(indices), run.program.mesh, config.rules)
        total += float(share) * float(loss(params, frozen, batch))
        weight += float(share)
    if not math.isfinite(total):
        raise UserError(f"the loss on {config.eval_source} is {total}; the run stopped before saving this step")
    return total / weight


def checkpoint_metadata(run: Run, step: int) -> dict[str, Any]:
    """Return everything that a resumed run needs in addition to the state."""
    return {
        "identity": run.identity,
        "config": asdict(run.config),
        "revision": run.source.revision,
        "next_batch": step,  # the whole state of the data: a batch is a function of its number
        "seed": run.config.data.seed,  # the whole random state: keys are made from the seed and the step
    }


# Export


def export(run: Run, frozen: Params, params: Params) -> None:
    """Write the trained model as a Hugging Face directory. LoRA's adapters are merged, and also written alone, for PEFT."""
    config, model_config, mesh, source = run.config, run.program.model_config, run.program.mesh, run.source
    adapter = None
    if config.lora is not None:
        base = source.name.partition("@")[0] if source.revision else str(source.directory)
        adapter = to_peft(model_config, params, base, source.revision)  # merging gives the adapters up
        model_config, params = lora.merge(model_config, config.rules, mesh, frozen, params, config.export_dtype)
    save_hf(run.export_path, model_config, params, config.export_dtype, source.files, overwrite=True, adapter=adapter)
