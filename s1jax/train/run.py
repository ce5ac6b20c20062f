"""Supervised fine-tuning: a config -> a run: batches, steps, checkpoints, an evaluation now and then, and a Hugging Face export.

The recipe is the paper's (appendix D, `configs/s1_32b.py`). What is computed is in `packing.py` (which examples a step takes),
`train_step.py`, `loss.py` and `optimizer.py`; this is the loop around them.

Invariant: a run that was stopped, at whatever moment, goes on from its last checkpoint as if nothing had been, to the bit on the same mesh.
"""

from __future__ import annotations

import json
import math
import sys
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from s1jax.checkpoint.directories import check_destination
from s1jax.checkpoint.export import save_hf, write_model_files
from s1jax.checkpoint.source import load_model, load_tokenizer, resolve_source, stored_dtype
from s1jax.checkpoint.train_state import StateStore
from s1jax.data.chat import ChatFormat
from s1jax.data.examples import DataConfig, Examples, encode_rows
from s1jax.data.packing import Packer, num_steps
from s1jax.data.rows import describe_rejects, read_rows, write_rejects
from s1jax.model import lora
from s1jax.model.flops import train_flops
from s1jax.model.qwen2 import Params, abstract_params
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable, write_file
from s1jax.runtime.hardware import peak_flops
from s1jax.runtime.preemption import Preemption
from s1jax.runtime.processes import check_same, everywhere, from_first_process, is_first_process
from s1jax.runtime.sharding import make_mesh
from s1jax.train.config import TrainConfig, identity_of, split_params, weight_dtype, with_adapters
from s1jax.train.log import LOG_NAME, TrainLog, check_trackers
from s1jax.train.optimizer import learning_rate, make_optimizer
from s1jax.train.step import (
    abstract_batch,
    abstract_state,
    check_finite,
    init_state,
    make_loss_step,
    make_train_step,
    to_device,
)

REJECTS_NAME = "rejects.jsonl"
CONFIG_NAME = "train_config.json"


def train(config: TrainConfig) -> Path:
    """Run (or resume) the fine-tuning that `config` describes; return the directory of the Hugging Face export.

    A run directory that holds a checkpoint is resumed from it, and a finished one is done already. SIGTERM and Ctrl-C save and end the
    process (`preemption.py`). Raises UserError where the run's config (but for its `NEUTRAL_FIELDS`), examples or source weights were
    others, and where examples, model and mesh do not fit.
    """
    with Preemption() as preemption:
        with preemption.nothing_to_save("starting"):
            run = _Run(config)
            if not run.is_finished:
                run.load()
        with jax.set_mesh(run.mesh), closing(run.store):
            run.advance(preemption)
        with preemption.nothing_to_save("exporting"):
            return run.export()


class _Run:
    """One call of `train`."""

    def __init__(self, config: TrainConfig):
        """Read the config, the rows and what is there of the run; no weights."""
        self.config, self.output = config, Path(config.output)
        if self.output.resolve() == Path(config.model).expanduser().resolve():
            raise UserError(f"output {config.output} is the model itself: give the run another directory")
        check_same(config, "config")
        from_first_process(self._check_output)
        self.mesh = make_mesh(config.mesh)
        self.source = everywhere(lambda: resolve_source(config.model, weights=False))
        check_same(self.source.revision, "model")
        self.model_config = with_adapters(config, self.source.model_config(config.dtype))
        chat = everywhere(lambda: ChatFormat.of(load_tokenizer(self.source)))
        self.examples, self.rejects = self._read(config.data, chat)
        self.num_steps = num_steps(len(self.examples), config.data)
        num_shards, length_shards = (config.rules.num_shards(x, self.mesh.shape) for x in ("batch", "length"))
        self.packer = Packer(self.examples, config.data, num_shards, length_shards)
        self.eval_packer = None
        if config.eval_source is not None:
            held_out = replace(config.data, source=config.eval_source, num_epochs=1)
            examples, rejects = self._read(held_out, chat)
            self.eval_packer = Packer(examples, held_out, num_shards, length_shards)
            self.rejects += rejects
        self.optimizer = make_optimizer(config.optimizer, self.num_steps)
        target = abstract_params(self.model_config, config.rules, "stacked", self.mesh, weight_dtype(config))
        self.frozen_target, target = split_params(config, target)
        self.target = abstract_state(self.optimizer, target, self.mesh, config.step.offload_optimizer)
        self.identity = identity_of(config, self.examples, self.source.fingerprint)
        self.identity["tokenizer"] = self.source.tokenizer_fingerprint
        check_trackers(config.trackers)
        self.first_step = 0
        if (self.output / "checkpoints").is_dir():
            self.first_step = self.store.latest_step() or 0
        damaged = sorted(path.name for path in (self.output / "checkpoints").glob("*.damaged"))
        if damaged and not self.first_step:
            raise UserError(
                f"no checkpoint of {self.output} is whole, only {', '.join(damaged)} is there: remove {self.output} to begin anew"
            )
        if self.first_step:
            self._compare(self.store.read_metadata(self.first_step)["identity"])

    def _check_output(self) -> None:
        """Raise UserError where something lies in the way of what will be written."""
        if self.output.is_symlink() and not self.output.exists():
            raise UserError(f"{self.output} is a symbolic link to nothing")
        for name in (REJECTS_NAME, CONFIG_NAME, LOG_NAME, "config.json"):
            check_writable(self.output / name)
        for name in ("checkpoints", "tensorboard"):
            if (self.output / name).exists() and not (self.output / name).is_dir():
                raise UserError(f"{self.output / name} is a file: remove it, or give another output")
        check_destination(self.output / "hf", overwrite=True)

    def _read(self, config: DataConfig, chat: ChatFormat) -> tuple[Examples, list[dict[str, Any]]]:
        """Return the examples of a source, and its rejected rows. Raises UserError where they do not fit the model."""
        rows, rejects = everywhere(lambda: read_rows(config.source))
        examples, more_rejects = encode_rows(rows, chat, config)
        examples.check_fit(self.model_config)
        rejects += more_rejects
        _say(
            f"{config.source}: {counted(len(examples), 'example')}, {examples.num_truncated} of them cut to max_length "
            f"{config.max_length}, {describe_rejects(rejects, self.output / REJECTS_NAME)}"
        )
        return examples, rejects

    def _compare(self, before: dict[str, Any]) -> None:
        """Raise UserError where a run directory is that of another run."""
        changed = [
            f"{name} {before.get(name)}, not {value}"
            for name, value in self.identity.items()
            if before.get(name) != value
        ]
        if changed:
            raise UserError(
                f"{self.output} holds a run of another config: {'; '.join(changed)}. Give another --output, or remove it"
            )

    @cached_property
    def is_finished(self) -> bool:
        """Whether all steps were made, evaluated and exported as asked when the run was begun."""
        return from_first_process(self._is_finished)

    def _is_finished(self) -> bool:
        if self.first_step != self.num_steps or self._evaluates(self.num_steps):
            return False
        if stored_dtype(self.output / "hf") != self.config.export_dtype:
            return False
        # Else of an earlier run in the same place, whose checkpoints were removed.
        return (self.output / "hf").stat().st_mtime >= self.store.saved_at(self.first_step)

    def load(self) -> None:
        """Compile the step, and put the state on the devices."""

        config, packer = self.config, self.packer
        _say(
            f"{counted(self.num_steps, 'step')} of {config.data.batch_size} examples, in passes of "
            f"{counted(packer.rows_per_pass, 'row')} of {' or '.join(map(str, packer.row_lengths))} tokens; "
            f"{packer.filling():.0%} of it is not padding"
        )
        self._compile()
        self.frozen: Params = {}
        if config.lora is not None:
            self.frozen = self._load_weights()
        if self.first_step:
            _say(f"resuming {self.output} after step {self.first_step} of {self.num_steps}")
            self.state = self.store.restore(self.first_step, self.target)
            self._write_files()
            return
        if config.lora is None:
            params = self._load_weights()
        else:
            params = lora.init_adapters(self.model_config, config.rules, self.mesh, config.data.seed)
        self.state = init_state(self.optimizer, params, self.mesh, config.step.offload_optimizer)
        self._write_files()

    @cached_property
    def store(self) -> StateStore:
        """The run's checkpoints; a new run has no directory of them before it is asked for."""
        best = self.eval_packer is not None
        return StateStore(self.output / "checkpoints", keep=self.config.keep, keep_best=best)

    def _write_files(self) -> None:
        """Write what the run directory needs besides checkpoints; only once nothing is left to refuse."""

        write_model_files(self.output, self.model_config, self.source.files)
        if is_first_process():
            write_rejects(self.output / REJECTS_NAME, self.rejects)
            # Every field of the config, and the commit of a hub id (null for a directory).
            record = asdict(self.config) | {"revision": self.source.revision}
            write_file(self.output / CONFIG_NAME, json.dumps(record, indent=2) + "\n")

    def _compile(self) -> None:
        """Compile the steps and evaluations that are left, so that nothing large is compiled once there is something to lose."""
        with jax.set_mesh(self.mesh):
            if self.first_step == self.num_steps and not self._evaluates(self.num_steps):
                return
            shardings = jax.tree.map(lambda x: x.sharding, self.target)
            how = (self.config.step, self.config.data.pack)
            step = make_train_step(
                self.model_config, self.config.rules, self.optimizer, *how, self.config.data.seed, shardings
            )
            batch = abstract_batch(self.packer.shapes, self.mesh, self.config.rules)
            self.step = step.lower(self.target, self.frozen_target, batch).compile()
            if self.eval_packer is not None:
                batch = abstract_batch(self.eval_packer.shapes, self.mesh, self.config.rules)
                loss = make_loss_step(self.model_config, self.config.rules, *how)
                self.loss = loss.lower(self.target.params, self.frozen_target, batch).compile()

    def _load_weights(self) -> Params:
        """Return the source model's weights, stored as the config says."""
        config = self.config
        store = None if config.frozen == "float" else config.frozen
        how = dict(layout="stacked", dtype=config.dtype, param_dtype=weight_dtype(config), store=store)
        _, params = load_model(self.source, self.mesh, config.rules, **how)  # type: ignore[arg-type]
        if store is None:
            return params
        return jax.device_put(params, jax.tree.map(lambda x: x.sharding, self.frozen_target))

    def advance(self, preemption: Preemption) -> None:
        """Make the steps that are left."""
        if self.is_finished:
            _say(f"{self.output} is finished: nothing to do")
            return
        config = self.config
        # All at once, since a step's own would wait until the device has run what was given to it before.
        rates = jax.device_get(jax.vmap(learning_rate(config.optimizer, self.num_steps))(jnp.arange(self.num_steps)))
        peak = peak_flops(jax.devices()[0].device_kind, config.dtype)
        peak = None if peak is None else peak * self.mesh.size
        log = TrainLog(self.output, self.first_step, self.num_steps, config.trackers, self.identity)
        with log:
            pending: partial[None] | None = None
            if self.first_step and self._evaluates(self.first_step):  # a signal came before it was done
                eval_loss = self._evaluate(preemption)
                if eval_loss is None:
                    preemption.stop(self.first_step)
                log.add_eval_loss(self.first_step - 1, eval_loss)
                self.store.add_eval_loss(self.first_step, eval_loss)
                log.start_clock()
            for step in range(self.first_step, self.num_steps):
                indices = self.packer.steps[step]
                batch = to_device(self.packer.make_batch(indices), self.mesh, config.rules)
                self.state, metrics = self.step(self.state, self.frozen, batch)
                # The metrics of the step before are read while the devices run this one.
                if pending is not None:
                    pending()
                lengths = self.examples.lengths[indices]
                pending = partial(
                    log.write,
                    step,
                    metrics,
                    learning_rate=float(rates[step]),
                    num_tokens=int(lengths.sum()),
                    flops=train_flops(self.model_config, lengths),
                    peak_flops=peak,
                    row_ids=[self.examples.row_ids[i] for i in indices],
                )
                done, stops = step + 1, preemption.requested()
                ends, evaluates = done == self.num_steps, self._evaluates(done)
                if not (ends or stops or evaluates or done % config.save_every == 0):
                    continue
                log.stop_clock(metrics)
                log.check(step, metrics, pending.keywords["row_ids"])
                check_finite(self.state.params, step)
                eval_loss = self._evaluate(preemption) if evaluates and not stops else None
                pending(eval_loss=eval_loss)
                pending = None
                stops = stops or preemption.requested()
                self._save(done, eval_loss)
                if stops:
                    self.store.wait()
                    preemption.stop(done)
                log.start_clock()
        if self.eval_packer is not None:
            self.store.wait()  # the last step may be the best
        if self.eval_packer is not None and (best := self.store.best_step()) is not None:
            _say(f"lowest loss on {config.eval_source}: {self.store.eval_loss(best):.4f} after step {best}")

    def _evaluates(self, done: int) -> bool:
        """Whether the loss on the held-out rows is to be measured after this many steps, and is not yet."""
        if self.eval_packer is None or (done != self.num_steps and done % self.config.eval_every):
            return False
        return done != self.first_step or self.store.eval_loss(done) is None

    def _evaluate(self, preemption: Preemption) -> float | None:
        """Return the loss on the held-out rows, averaged as in training; None where a signal came before it was done."""
        packer = self.eval_packer
        assert packer is not None
        total = weight = 0.0
        for indices in packer.steps:
            if preemption.requested():
                return None
            share = packer.num_targets[indices].sum() if self.config.data.loss_average == "token" else len(indices)
            batch = to_device(packer.make_batch(indices), self.mesh, self.config.rules)
            total += float(share) * float(self.loss(self.state.params, self.frozen, batch))
            weight += float(share)
        if not math.isfinite(total):
            raise UserError(f"the loss on {self.config.eval_source} is {total}; stopped before it could be saved")
        return total / weight

    def _save(self, step: int, eval_loss: float | None) -> None:
        """Begin to save the state, with all that a run needs to go on from it."""
        metadata = {
            "identity": self.identity,
            "config": asdict(self.config),
            "revision": self.source.revision,
            "next_batch": step,  # all there is of the data's state: a batch is a function of its number
            "seed": self.config.data.seed,  # all there is of random state: keys are made of it and the step
        }
        self.store.save(step, self.state, metadata, eval_loss)

    def export(self) -> Path:
        """Write the final weights for Hugging Face."""

        if not self.is_finished:
            config, model_config, params = self.config, self.model_config, self.state.params
            if config.lora is not None:
                model_config, params = lora.merge(
                    model_config, config.rules, self.mesh, self.frozen, params, config.export_dtype, lazily=True
                )
            save_hf(self.output / "hf", model_config, params, config.export_dtype, self.source.files, overwrite=True)
        return self.output / "hf"


def _say(message: str) -> None:
    if is_first_process():
        print(message, file=sys.stderr)
