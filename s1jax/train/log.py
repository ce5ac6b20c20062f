"""What a run tells while it trains: a JSON line per step, trackers, and a progress bar; and where it stops by itself.

In: the metrics of each step, in order. Out: `metrics.jsonl` with `step, loss, grad_norm, learning_rate, tokens, seconds, tokens_per_s, mfu`
(and `eval_loss` where there was an evaluation), the same as TensorBoard's events under `tensorboard/`, or to wandb or trackio.

Invariant: the file holds each step once, also after a run was killed and resumed; a step that is not finite is not written.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax

from s1jax.runtime.errors import UserError
from s1jax.runtime.files import write_file
from s1jax.runtime.processes import is_first_process
from s1jax.runtime.progress import progress

LOG_NAME = "metrics.jsonl"
Tracker = Literal["tensorboard", "wandb", "trackio"]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


class _Run(Protocol):
    """A tracker that a run reports to."""

    def log(self, numbers: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class TrainLog:
    """Writes the metrics of steps, and shows the progress. Only the first process writes."""

    def __init__(
        self, output: Path, first_step: int, num_steps: int, trackers: Sequence[Tracker], config: dict[str, Any]
    ):
        self.path = path = output / LOG_NAME
        # A line torn by a kill is of a step after the checkpoint.
        whole = path.read_text().split("\n")[:-1] if first_step and path.exists() else []
        kept = [line for number, line in enumerate(whole, 1) if _step_of(path, number, line) < first_step]
        self.writes = is_first_process()
        self.runs: list[_Run] = []
        if self.writes:
            write_file(path, "".join(line + "\n" for line in kept))
            self.file = path.open("a")
            self.runs = [_start_tracker(name, output, first_step, config) for name in trackers]
        self.bar = progress(num_steps, "train", "step", initial=first_step, hidden=not self.writes)
        self.last = time.monotonic()
        self.stopped: float | None = None

    def __enter__(self) -> TrainLog:
        self.last = time.monotonic()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()
        if self.writes:
            self.file.close()
        for run in self.runs:
            run.finish()

    def add_eval_loss(self, step: int, eval_loss: float) -> None:
        """Add to the line of `step` an evaluation that was made later; where that line is lost, to a new one."""
        if self.writes:
            self.file.close()
            rows = {row["step"]: row for row in map(json.loads, self.path.read_text().splitlines())}
            rows[step] = rows.get(step, {"step": step}) | {"eval_loss": eval_loss}
            write_file(self.path, "".join(json.dumps(row) + "\n" for row in rows.values()))
            self.file = self.path.open("a")
        for run in self.runs:
            run.log({"eval_loss": eval_loss}, step=step)

    def stop_clock(self, metrics: dict[str, jax.Array]) -> None:
        """Wait for the metrics of a step, whose time ends here: what follows until its `write` is no part of it."""
        jax.block_until_ready(metrics)
        self.stopped = time.monotonic()

    def start_clock(self) -> None:
        """Let the time of the next step begin here."""
        self.last = time.monotonic()

    def check(self, step: int, metrics: dict[str, jax.Array], row_ids: Sequence[str]) -> tuple[float, float]:
        """Return the loss and the norm of the gradient. Raises UserError, naming step and rows, if they are not finite."""
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise UserError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}; stopped before it could be saved. "
                f"Its rows: {', '.join(row_ids)}"
            )
        return loss, grad_norm

    def write(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        learning_rate: float,
        num_tokens: int,
        flops: float,
        peak_flops: float | None,
        row_ids: Sequence[str],
        eval_loss: float | None = None,
    ) -> None:
        """Wait for the metrics of a step and write them.

        `num_tokens` and `flops` are of the whole batch, `peak_flops` of all devices, `row_ids` the examples in it. Raises UserError for a
        loss or a gradient that is not finite.
        """
        loss, grad_norm = self.check(step, metrics, row_ids)
        now = self.stopped or time.monotonic()
        seconds, self.last, self.stopped = now - self.last, now, None
        mfu = None if peak_flops is None else flops / seconds / peak_flops
        row: dict[str, Any] = dict(
            step=step, loss=loss, grad_norm=grad_norm, learning_rate=learning_rate, tokens=num_tokens,
            seconds=round(seconds, 4), tokens_per_s=round(num_tokens / seconds, 1),
        )  # fmt: skip
        row |= {} if mfu is None else {"mfu": round(mfu, 4)}
        row |= {} if eval_loss is None else {"eval_loss": eval_loss}
        if self.writes:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        for run in self.runs:
            run.log({name: value for name, value in row.items() if name != "step"}, step=step)
        told = f"loss {loss:.3f}, {num_tokens / seconds:,.0f} tokens/s"
        self.bar.set_postfix_str(told + ("" if mfu is None else f", MFU {100 * mfu:.1f}%"), refresh=False)
        self.bar.update()


class _TensorBoard:
    """TensorBoard's event files; those of steps that a resumed run makes again are superseded."""

    def __init__(self, directory: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=first_step, write_to_disk=True)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


def _step_of(path: Path, number: int, line: str) -> int:
    """Return the step of a line of metrics. Raises UserError where it is none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}, line {number} is no JSON object with a step: remove that line") from error


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that does not exist, or whose package is not installed."""
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"trackers has {name!r}: choose of {', '.join(PACKAGES)}")
        if sys.modules.get(PACKAGES[name]) is None and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"tracker {name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")


def _start_tracker(name: Tracker, output: Path, first_step: int, config: dict[str, Any]) -> _Run:
    """Return a running tracker, which goes on with what the same run directory reported before."""
    if name == "tensorboard":
        return _TensorBoard(output / "tensorboard", first_step)
    run_id = hashlib.sha256(str(output.absolute()).encode()).hexdigest()[:12]
    if name == "wandb":
        import wandb

        return wandb.init(project="s1jax", id=run_id, name=output.name, dir=str(output), config=config, resume="allow")
    import trackio

    return trackio.init(project="s1jax", name=f"{output.name}-{run_id}", config=config, resume="allow")
