"""The metrics of a run: one JSON line per step, trackers (TensorBoard, wandb, trackio) and a progress bar.

In: the metrics of each step, in order. Out: `metrics.jsonl` with `step, loss, grad_norm, learning_rate, tokens, seconds, tokens_per_s`, and
where they exist `mfu` and `eval_loss`. Trackers receive the same numbers.

Metrics arrive one step late: `step` queues a step and writes the one before, so that the devices never wait for the host.

Invariant: the file holds each step once, even if a run was killed and resumed. A step whose loss or gradient is not finite is not written.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError
from s1jax.runtime.processes import from_first_process, is_first_process
from s1jax.runtime.progress import progress

LOG_NAME = "metrics.jsonl"
Tracker = Literal["tensorboard", "wandb", "trackio"]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


class StepRecord(NamedTuple):
    """One step, as the log needs it."""

    step: int
    metrics: dict[str, jax.Array]
    """`loss` and `grad_norm`, which the devices may still be computing."""
    learning_rate: float
    num_tokens: int
    """Tokens of the whole batch, without padding."""
    flops: float
    """Floating-point operations of the whole batch, by the convention of `model/flops.py`."""
    row_ids: Sequence[str]
    """The ids of the examples in the batch."""

    def read(self) -> tuple[float, float]:
        """Wait for the metrics; return the loss and the norm of the gradient. Raises UserError if one is not finite."""
        loss, grad_norm = float(self.metrics["loss"]), float(self.metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise UserError(
                f"step {self.step}: the loss is {loss} and the norm of the gradient {grad_norm}; the run stopped before saving this step. "
                f"Its rows: {', '.join(self.row_ids)}"
            )
        return loss, grad_norm


class TrainLog:
    """Writes the metrics of steps and shows the progress. Only the first process writes. Use it as a context manager."""

    def __init__(
        self,
        output: Path,
        first_step: int,
        num_steps: int,
        peak_flops: float | None,
        trackers: Sequence[Tracker],
        config: dict[str, Any],
    ):
        """Open the log of the run directory `output`, and drop lines from `first_step` on, which the run is about to repeat.

        `peak_flops` is the peak of all devices together, in operations per second; None if it is unknown. `config` is shown by trackers.
        """
        self.path = output / LOG_NAME
        self.peak_flops = peak_flops
        self.writes = is_first_process()
        from_first_process(lambda: jsonl.write(self.path, _rows_before(self.path, first_step)))
        self.file = jsonl.Appender(self.path)
        self.trackers = [_start_tracker(name, output, first_step, config) for name in trackers if self.writes]
        self.bar = progress(num_steps, "train", "step", initial=first_step, hidden=not self.writes)
        self.queued: StepRecord | None = None
        self.began = time.monotonic()
        self.ended: float | None = None

    def __enter__(self) -> TrainLog:
        self.start_clock()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()
        self.file.__exit__()
        for tracker in self.trackers:
            tracker.finish()

    def step(self, record: StepRecord) -> None:
        """Queue a step, whose metrics may still be computed, and write the step before. Raises UserError if that one is not finite."""
        self.flush()
        self.queued = record

    def wait(self) -> None:
        """Wait for the queued step and stop the clock: the time until `start_clock` belongs to no step.

        Raises UserError if the step's loss or gradient is not finite.
        """
        assert self.queued is not None
        jax.block_until_ready(self.queued.metrics)
        self.ended = time.monotonic()
        self.queued.read()

    def flush(self, eval_loss: float | None = None) -> None:
        """Write the queued step, if there is one, with its evaluation loss, if there is one.

        Raises UserError if the step's loss or gradient is not finite.
        """
        if self.queued is None:
            return
        record, self.queued = self.queued, None
        loss, grad_norm = record.read()
        now = self.ended or time.monotonic()
        seconds, self.began, self.ended = now - self.began, now, None
        tokens_per_s = record.num_tokens / seconds
        shown = f"loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s"
        row: dict[str, Any] = dict(
            step=record.step, loss=loss, grad_norm=grad_norm, learning_rate=record.learning_rate, tokens=record.num_tokens,
            seconds=round(seconds, 4), tokens_per_s=round(tokens_per_s, 1),
        )  # fmt: skip
        if self.peak_flops is not None:
            mfu = record.flops / seconds / self.peak_flops
            row["mfu"] = round(mfu, 4)
            shown += f", MFU {100 * mfu:.1f}%"
        if eval_loss is not None:
            row["eval_loss"] = eval_loss
        if self.writes:
            self.file.append([row])
        for tracker in self.trackers:
            tracker.log({name: value for name, value in row.items() if name != "step"}, step=record.step)
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()

    def start_clock(self) -> None:
        """Let the time of the next step begin now."""
        self.began = time.monotonic()

    def add_eval_loss(self, step: int, eval_loss: float) -> None:
        """Add an evaluation loss to the line of an earlier step, or to a new line if that one was lost. Call it before the first `step`."""
        if self.writes:
            rows = {row["step"]: row for _, row in jsonl.read(self.path)}
            rows[step] = rows.get(step, {"step": step}) | {"eval_loss": eval_loss}
            jsonl.write(self.path, rows.values())
        for tracker in self.trackers:
            tracker.log({"eval_loss": eval_loss}, step=step)


class _TensorBoard:
    """TensorBoard's event files. Events of steps that a resumed run repeats are superseded."""

    def __init__(self, directory: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=first_step, write_to_disk=True)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


def _rows_before(path: Path, first_step: int) -> list[dict[str, Any]]:
    """Return the rows of the steps before `first_step`. Raises UserError if a line has no step."""
    rows = jsonl.read(path) if first_step and path.exists() else []
    for number, row in rows:
        if not (isinstance(row, dict) and isinstance(row.get("step"), int)):
            raise UserError(f"{path}, line {number} is not a JSON object with a step: remove that line")
    return [row for _, row in rows if row["step"] < first_step]


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError if a tracker does not exist, or if its package is not installed."""
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"trackers contains {name!r}: choose from {', '.join(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"tracker {name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")


def _start_tracker(name: Tracker, output: Path, first_step: int, config: dict[str, Any]) -> Any:
    """Return a running tracker, which has `log(numbers, step)` and `finish()`. A resumed run continues the one of its directory."""
    if name == "tensorboard":
        return _TensorBoard(output / "tensorboard", first_step)
    run_id = hashlib.sha256(str(output.absolute()).encode()).hexdigest()[:12]
    if name == "wandb":
        import wandb

        return wandb.init(project="s1jax", id=run_id, name=output.name, dir=str(output), config=config, resume="allow")
    import trackio

    return trackio.init(project="s1jax", name=f"{output.name}-{run_id}", config=config, resume="allow")
