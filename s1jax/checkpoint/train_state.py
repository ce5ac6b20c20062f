"""The checkpoints of a training run. Orbax writes them in the background while training continues.

    DIRECTORY/STEP/    state/ (arrays), metadata/ (a JSON object), metrics/ (the evaluation loss), s1jax_files.json (sizes and checksums)
    DIRECTORY/         STEP.orbax-checkpoint-tmp (being written), removed/ (being removed), STEP.damaged (set aside)

A step is complete, with sizes and checksums, before a rename makes it a checkpoint, and only then is an older one removed. So from the
first save on there is always a whole checkpoint, whatever ends the process. The next `save`, `wait` or `close` raises the error of a save.
"""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s1jax.checkpoint import orbax
from s1jax.runtime.files import write_file
from s1jax.runtime.processes import barrier, is_first_process

logger = logging.getLogger(__name__)

TEMPORARY = ".orbax-checkpoint-tmp"
REMOVED = "removed"


class StateStore:
    """The last `keep` checkpoints of a run and, with `keep_best`, the one with the lowest evaluation loss.

    All processes call every method and share the directory. Saving copies the state to the host, and the copy is written in the background.
    """

    def __init__(self, directory: str | Path, keep: int = 2, keep_best: bool = False):
        """Open or make the directory.

        Damaged steps are renamed to STEP.damaged, and half-written ones are removed, each with a warning. The newest step is read whole to
        compare checksums. If they differ, the one before it is read, and so on.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        self.directory = Path(os.path.abspath(directory))
        self._saving: int | None = None
        orbax.quieten()
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
            todelete_subdir=REMOVED,  # so that an interrupted removal does not look like a damaged step
            async_options=ocp.AsyncOptions(post_finalization_callback=self._record),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        # Otherwise each save would advance the count of steps on which JAX agrees about preemption (`preemption.py`).
        self._manager.reached_preemption = lambda step: False  # type: ignore[method-assign]

    def save(self, step: int, state: Any, metadata: dict[str, Any], eval_loss: float | None = None) -> None:
        """Wait for the previous save, then begin to save a pytree of arrays and a JSON object.

        A step without a finite `eval_loss` is never the best. Raises OSError if the step exists already, or if this save or the previous
        one failed. A failure leaves older checkpoints as they are.
        """
        import orbax.checkpoint as ocp

        self.wait()
        self._set_damaged_aside()
        self._saving = step
        with self._errors_of_a_save():
            self._manager.reload()  # so that a damaged step does not count as one that is kept
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata))
            metrics = {} if eval_loss is None else {"eval_loss": float(eval_loss)}
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def add_eval_loss(self, step: int, eval_loss: float) -> None:
        """Add the evaluation loss of a finished step that was saved without one."""
        if is_first_process():
            write_file(self.directory / str(step) / orbax.EVAL_LOSS, json.dumps({"eval_loss": eval_loss}))
        barrier(f"evaluated step {step} in {self.directory}")

    def eval_loss(self, step: int) -> float | None:
        """Return the evaluation loss of a step, or None if it has none."""
        return orbax.read_eval_loss(self.directory / str(step))

    def saved_at(self, step: int) -> float:
        """Return when a finished step was written, in seconds since the epoch, by the clock of the file system."""
        return (self.directory / str(step) / orbax.FILES_NAME).stat().st_mtime

    def latest_step(self) -> int | None:
        """Return the newest finished step, or None if there is none."""
        return orbax.newest_step(self.directory)

    def best_step(self) -> int | None:
        """Return the finished step with the lowest evaluation loss (the newest of equals), or None if no step has a finite loss."""
        ranks = {step: _rank({"eval_loss": self.eval_loss(step)}) for step in orbax.finished_steps(self.directory)}
        ranked = [step for step, rank in ranks.items() if rank < math.inf]
        return min(ranked, key=lambda step: (ranks[step], -step), default=None)

    def read_metadata(self, step: int) -> dict[str, Any]:
        """Return the JSON object that was saved with a finished step."""
        return orbax.read_metadata(self.directory / str(step))

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Return the state of a step, with the shapes, dtypes and shardings (including the kind of memory) of `abstract_state`.

        Raises UserError if there is no such step, or if it is damaged or holds another tree.
        """
        import orbax.checkpoint as ocp

        others = [other for other in orbax.finished_steps(self.directory) if other != step]
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        with orbax.named_errors(self.directory / str(step), f"; its other steps: {others}"):
            return self._manager.restore(step, args=args)["state"]

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises OSError if it failed."""
        with self._errors_of_a_save():
            self._manager.wait_until_finished()
        self._saving = None
        self._empty_removed()

    def close(self) -> None:
        """Wait until the last save is on disk, and release the threads. Raises OSError if the save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _empty_removed(self) -> None:
        if is_first_process():
            shutil.rmtree(self.directory / REMOVED, ignore_errors=True)

    def _set_damaged_aside(self, checksums: bool = False) -> None:
        """Rename damaged steps. With `checksums`, read steps whole, the newest first, until the checksums of one are right."""
        if is_first_process():
            for path in reversed(orbax.step_directories(self.directory)):
                fault = orbax.find_fault(path) or (orbax.find_damage(path, checksums=True) if checksums else None)
                if fault is None:
                    checksums = False
                    continue
                moved = path.with_name(f"{path.name}.damaged")
                if moved.exists():
                    shutil.rmtree(moved)
                path.rename(moved)
                logger.warning("%s is not a finished checkpoint (%s): renamed to %s", path, fault, moved.name)
        barrier(f"checked {self.directory}")

    def _record(self) -> None:
        """Record the files of a step just before it is renamed. Orbax calls this in a thread of process 0."""
        (partial,) = self.directory.glob(f"{self._saving}{TEMPORARY}*")
        orbax.record_files(partial, checksums=True)

    @contextlib.contextmanager
    def _errors_of_a_save(self) -> Iterator[None]:
        """Turn any error of a save into one OSError that names the step, and remove its half-written files."""
        try:
            yield
        except Exception as error:
            reason = orbax.describe_write_error(error, self.directory)
            if is_first_process():
                for path in self.directory.glob(f"{self._saving}{TEMPORARY}*"):
                    shutil.rmtree(path, ignore_errors=True)
            raise OSError(
                f"cannot save step {self._saving} in {self.directory}: {reason}. "
                "Older checkpoints are unchanged: mend this, and the same command resumes"
            ) from error


def _rank(metrics: dict[str, Any]) -> float:
    """Return the number that steps are ranked by, the lowest first: the evaluation loss, or infinity if it is absent or not finite."""
    loss = metrics.get("eval_loss")
    return loss if loss is not None and math.isfinite(loss) else math.inf
