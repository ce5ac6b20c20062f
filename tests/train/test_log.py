"""The log of a run: when it writes the metrics of a step, which steps it refuses, and what a resumed run keeps."""

import json

import jax.numpy as jnp
import pytest

from s1jax.train.log import StepRecord, TrainLog


def open_log(directory, first_step=0, trackers=()):
    return TrainLog(directory, first_step, num_steps=9, peak_flops=1e12, trackers=trackers, config={})


def record(step, loss=2.0):
    metrics = {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1.0)}
    return StepRecord(step, metrics, learning_rate=1e-5, num_tokens=100, flops=1e9, row_ids=["a", "b"])


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_written_when_the_next_one_is_queued_or_on_flush(tmp_path):
    with open_log(tmp_path) as log:
        written = []
        for step in range(3):
            log.step(record(step))
            written.append([row["step"] for row in lines(tmp_path)])
        assert written == [[], [0], [0, 1]]
        log.wait()
        assert len(lines(tmp_path)) == 2, "waiting writes nothing"
        log.flush(eval_loss=1.5)
        log.flush()
        log.step(record(3))
    assert [row["step"] for row in lines(tmp_path)] == [0, 1, 2], "a queued step is dropped when an error ends the run"
    assert [row.get("eval_loss") for row in lines(tmp_path)] == [None, None, 1.5]
    names = ["step", "loss", "grad_norm", "learning_rate", "tokens", "seconds", "tokens_per_s", "mfu"]
    assert list(lines(tmp_path)[0]) == names and list(lines(tmp_path)[2]) == [*names, "eval_loss"]


@pytest.mark.parametrize("method", ["wait", "flush"])
def test_a_step_that_is_not_finite_is_an_error_and_is_not_written(method, tmp_path):
    with open_log(tmp_path) as log:
        log.step(record(0, loss=float("nan")))
        with pytest.raises(ValueError, match=r"step 0: the loss is nan .*Its rows: a, b"):
            getattr(log, method)()
    assert lines(tmp_path) == []


def test_the_time_between_wait_and_start_clock_belongs_to_no_step(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("s1jax.train.log.time.monotonic", lambda: now[0])
    with open_log(tmp_path) as log:
        now[0] = 1.0
        log.step(record(0))
        log.wait()
        now[0] = 100.0  # an evaluation and a checkpoint
        log.flush()
        log.start_clock()
        now[0] = 103.0
        log.step(record(1))
        log.flush()
    assert [row["seconds"] for row in lines(tmp_path)] == [1.0, 3.0]
    assert [row["tokens_per_s"] for row in lines(tmp_path)] == [100.0, 33.3]


def test_a_resumed_run_repeats_the_lines_after_its_checkpoint(tmp_path):
    with open_log(tmp_path) as log:
        for step in range(5):
            log.step(record(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with open_log(tmp_path, first_step=2) as log:
        assert [row["step"] for row in lines(tmp_path)] == [0, 1]
        log.add_eval_loss(1, 0.5)
        log.add_eval_loss(7, 0.25)
        log.step(record(2))
        log.flush()
    assert [row["step"] for row in lines(tmp_path)] == [0, 1, 7, 2]
    assert [row.get("eval_loss") for row in lines(tmp_path)] == [None, 0.5, 0.25, None]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("[]\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 5 is not a JSON object with a step"):
        open_log(tmp_path, first_step=2)
