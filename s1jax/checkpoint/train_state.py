"""The checkpoints of a training run: a pytree of arrays and a JSON object per step, written by Orbax while training goes on.

    DIRECTORY/STEP/    state/ (arrays), metadata/ (the JSON object), metrics/ (the evaluation loss), s1jax_files.json (what a whole one has)
    DIRECTORY/         STEP.orbax-checkpoint-tmp (being written), removed/ (being removed), STEP.damaged (set aside)

A step is written under a temporary name, its files' sizes and checksums are recorded there, and a rename makes it a checkpoint. Only then
is an older one removed. So there is a whole checkpoint at every moment after the first, whatever ends the process.

Invariant: no error of a save is lost: it is raised by the next `save`, `wait` or `close`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from s1jax.checkpoint import orbax
from s1jax.checkpoint.orbax import (
    FILES_NAME,
    find_damage,
    find_fault,
    finished_steps,
    newest_step,
    read_eval_loss,
    write_eval_loss,
)
from s1jax.runtime.errors import UserError
from s1jax.runtime.processes import barrier, is_first_process

logger = logging.getLogger(__name__)

TEMPORARY = ".orbax-checkpoint-tmp"
REMOVED = "removed"


class StateStore:
    """The last `keep` checkpoints of a run, and with `keep_best` the one of the lowest evaluation loss, each whole or absent.

    Saving copies the state off the devices and writes it in the background. All processes call every method, on a shared directory.
    """

    def __init__(self, directory: str | Path, keep: int = 2, keep_best: bool = False):
        """Open or make the directory.

        Damaged steps are renamed to STEP.damaged and half-written ones removed, each with a message on stderr; the newest that is whole by
        its sizes is read to compare checksums.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        if keep < 1:
            raise UserError(f"keep {keep}: at least one checkpoint must be kept")
        self.directory = Path(os.path.abspath(directory))
        self._saving: int | None = None
        _quieten()
        if is_first_process():
            for path in self.directory.glob(f"*{TEMPORARY}*"):
                logger.warning("%s is a half-written checkpoint: removed", path)
                shutil.rmtree(path)
        self._empty_removed()
        self._set_damaged_aside(checksums=True)

        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if keep_best:
            best = policies.BestN(get_metric_fn=_rank, reverse=True, n=1, keep_checkpoints_without_metrics=False)
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=_rank,  # without it Orbax writes no metrics
            best_mode="min",
            todelete_subdir=REMOVED,  # a removal that is broken off does not look like a damaged step
            async_options=ocp.AsyncOptions(post_finalization_callback=self._record),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        # Else each save would tell JAX's agreement on preemption (`preemption.py`) a count of its own.
        self._manager.reached_preemption = lambda step: False  # type: ignore[method-assign]

    def save(self, step: int, state: Any, metadata: dict[str, Any], eval_loss: float | None = None) -> None:
        """Begin to save a pytree of arrays and a JSON object, after the save before has ended.

        A step without an `eval_loss`, or whose loss is not finite, is never the best. Raises UserError for a step that exists, and OSError
        where this save or the one before failed (the disk is full, say), which leaves the older checkpoints as they are.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if step in finished_steps(self.directory):
            raise UserError(f"{self.directory} already has step {step}")
        self._set_damaged_aside()
        self._saving = step
        with self._told():
            self._manager.reload()  # a damaged step does not count among those kept
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata))
            metrics = {} if eval_loss is None else {"eval_loss": float(eval_loss)}
            if not self._manager.save(step, args=args, metrics=metrics, force=True):
                raise OSError("Orbax declined")

    def add_eval_loss(self, step: int, eval_loss: float) -> None:
        """Give a finished step that was saved without it its evaluation loss. Raises UserError for a step that is not there."""
        path = self._finished(step)
        if is_first_process():
            write_eval_loss(path, eval_loss)
        barrier(f"evaluated {path}")

    def eval_loss(self, step: int) -> float | None:
        """Return the evaluation loss of a step, None without one."""
        return read_eval_loss(self.directory / str(step))

    def saved_at(self, step: int) -> float:
        """Return when a finished step was written, in seconds since the epoch by the clock of its disk."""
        return (self._finished(step) / FILES_NAME).stat().st_mtime

    def latest_step(self) -> int | None:
        """Return the newest finished step."""
        return newest_step(self.directory)

    def best_step(self) -> int | None:
        """Return the finished step of the lowest evaluation loss, the newest of equals; None where none has a finite one."""
        ranks = {step: _rank({"eval_loss": self.eval_loss(step)}) for step in finished_steps(self.directory)}
        ranked = [step for step, rank in ranks.items() if rank < math.inf]
        return min(ranked, key=lambda step: (ranks[step], -step), default=None)

    def read_metadata(self, step: int) -> dict[str, Any]:
        """Return the JSON object that was saved with a step. Raises UserError for a step that is not there."""
        return orbax.read_metadata(self._finished(step))

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Return the state of a step, with the shapes, dtypes and shardings (kinds of memory too) of `abstract_state`.

        Raises UserError for a step that is not there, is damaged, or holds another tree.
        """
        import orbax.checkpoint as ocp

        path = self._finished(step)
        others = [other for other in finished_steps(self.directory) if other != step]
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        with orbax.named_errors(path, f"; its other steps: {others}"):
            return self._manager.restore(step, args=args)["state"]

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises OSError with what went wrong in it."""
        with self._told():
            self._manager.wait_until_finished()
        self._saving = None
        self._empty_removed()

    def close(self) -> None:
        """Wait, and release the threads. Raises OSError with what went wrong in the last save."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _finished(self, step: int) -> Path:
        steps = finished_steps(self.directory)
        if step not in steps:
            raise UserError(f"{self.directory} has no step {step}; it has {steps or 'none'}")
        return self.directory / str(step)

    def _empty_removed(self) -> None:
        if is_first_process() and (self.directory / REMOVED).is_dir():
            shutil.rmtree(self.directory / REMOVED)

    def _set_damaged_aside(self, checksums: bool = False) -> None:
        """Rename damaged steps; with `checksums`, the newest is read whole until one is found that is as it was written."""
        if is_first_process():
            for path in reversed(orbax.step_directories(self.directory)):
                fault = find_fault(path) or (find_damage(path, checksums=True) if checksums else None)
                if fault is None:
                    checksums = False
                    continue
                moved = path.with_name(f"{path.name}.damaged")
                if moved.exists():
                    shutil.rmtree(moved)
                path.rename(moved)
                logger.warning("%s is no finished checkpoint (%s): renamed to %s", path, fault, moved.name)
        barrier(f"checked {self.directory}")

    def _record(self) -> None:
        """Record the files of the step that is about to be renamed to its final name; Orbax calls it in a thread of process 0."""
        (partial,) = self.directory.glob(f"{self._saving}{TEMPORARY}*")
        orbax.record_files(partial, checksums=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn whatever Orbax raises for a save into one OSError that names it, and remove what there is of it."""
        try:
            yield
        except Exception as error:
            free = shutil.disk_usage(self.directory).free / 1e9
            if "No space left on device" in str(error):
                of = " of files" if free > 0.01 else ""
                reason = f"the disk is full{of} ({free:.2f} GB were free), and older checkpoints are as they were"
            else:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({free:.2f} GB were free)"
            if is_first_process():
                for path in self.directory.glob(f"{self._saving}{TEMPORARY}*"):
                    shutil.rmtree(path, ignore_errors=True)
            raise OSError(f"cannot save step {self._saving} in {self.directory}: {reason}") from error


def _rank(metrics: dict[str, Any]) -> float:
    """Return an evaluation loss to sort by, lowest best: infinity where it is absent or not finite."""
    loss = metrics.get("eval_loss")
    return loss if loss is not None and math.isfinite(loss) else math.inf


@functools.cache
def _quieten() -> None:
    """Leave out what is printed of an error beside the error itself, which is raised: one full disk would fill pages."""

    def is_not_raised_too(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts

    def report(unraisable: Any, default: Callable[[Any], object] = sys.unraisablehook) -> None:
        # Orbax ends its event loop at the first array's error, and TensorStore cannot deliver the others'.
        if repr(unraisable.exc_value) != "RuntimeError('Event loop is closed')":
            default(unraisable)

    logging.getLogger("absl").addFilter(is_not_raised_too)
    # Of the tasks of Orbax's event loop it waits for the first that fails.
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    sys.unraisablehook = report
