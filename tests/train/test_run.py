"""Whole training runs: what they learn, which files they write, how they stop and resume, and what they refuse."""

import json
import logging
import os
import pickle
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint.export import save_hf
from s1jax.checkpoint.orbax import finished_steps
from s1jax.checkpoint.source import load_model, resolve_source, stored_dtype
from s1jax.checkpoint.train_state import StateStore
from s1jax.data.examples import DataConfig
from s1jax.runtime import jsonl
from s1jax.runtime.preemption import Preemption
from s1jax.runtime.sharding import MeshConfig, make_mesh
from s1jax.train import run
from s1jax.train.compile import TrainingProgram
from s1jax.train.config import TrainConfig
from s1jax.train.run import train
from s1jax.train.step import StepConfig, to_device
from tests.support.disk import full_disk
from tests.support.tokenizers import byte_tokenizer
from tests.support.training import CONFIG, OPTIMIZER, ROWS, RULES, params_on

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def run_config(tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    tokenizer = byte_tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "base")
    params = params_on(mesh)
    save_hf(tmp_path / "base2", CONFIG, params, "float32", tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"id": "bad", "question": "no trace?"}]))
    return TrainConfig(
        model=str(tmp_path / "base2"),
        output=str(tmp_path / "run"),
        data=DataConfig(source=str(rows), max_length=512, batch_size=8, num_epochs=4, pad_multiple=64),
        optimizer=OPTIMIZER,
        dtype="float32",
        save_every=4,
    )


def losses_of(output):
    return [json.loads(line)["loss"] for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.integration
def test_a_run_learns_exports_and_keeps_rejected_rows_aside(run_config):
    hf = train(run_config)
    losses = losses_of(run_config.output)
    assert len(losses) == 12 and losses[-1] < 0.9 * losses[0]
    (reject,) = map(json.loads, (Path(run_config.output) / "rejects.jsonl").read_text().splitlines())
    assert reject["id"] == "bad" and "no trace" in reject["reason"]
    written = json.loads((Path(run_config.output) / "train_config.json").read_text())
    assert written["data"]["source"] == run_config.data.source and written["step"]["remat"] == "full"
    config, exported = load_model(resolve_source(hf), make_mesh(MeshConfig()), RULES, "stacked", dtype="float32")
    _, state = load_model(resolve_source(run_config.output), make_mesh(MeshConfig()), RULES, "stacked", dtype="float32")
    assert config == CONFIG
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(jnp.float32)), exported, state
    )


@pytest.mark.integration
def test_the_next_batch_is_made_while_the_devices_run_a_step(run_config, monkeypatch):
    metrics, are_ready = [], []
    compile_run, put = run.compile_run, run.to_device

    def compile_and_record(prepared):
        compiled = compile_run(prepared)
        return compiled._replace(step=lambda *args: metrics.append(compiled.step(*args)) or metrics[-1])

    def look_and_put(*args):
        are_ready.append(all(x.is_ready() for x in jax.tree.leaves(metrics[-1:])))
        return put(*args)

    monkeypatch.setattr(run, "compile_run", compile_and_record)
    monkeypatch.setattr(run, "to_device", look_and_put)
    train(replace(run_config, save_every=100))
    assert are_ready[0] and not all(are_ready[1:])


def eval_losses_of(output):
    rows = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    return {row["step"] + 1: row["eval_loss"] for row in rows if "eval_loss" in row}


RUN = """
import pickle, sys, time
import jax
from s1jax.runtime.command import configure_logging
from s1jax.runtime.processes import start_processes
from s1jax.train import run
from s1jax.train.step import to_device
configure_logging()
start_processes()
run.to_device = lambda *args: (time.sleep({pause}), to_device(*args))[1]
{patch}
run.train(pickle.loads({config!r}))
"""


@pytest.fixture
def code_of(run_config):
    """Python code of a run in a process of its own, in which each step takes `pause` seconds longer than usual.

    `patch` is code that runs before the training, in which `run` is the module `s1jax.train.run`.
    """

    def code_of(config=run_config, pause=0.3, patch=""):
        return RUN.format(pause=pause, patch=patch, config=pickle.dumps(config))

    return code_of


def wait_for(process, condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def num_lines(log):
    return log.read_text().count("\n") if log.exists() else 0


def exported(config):
    return (Path(config.output) / "hf" / "model.safetensors").read_bytes()


@pytest.mark.integration
def test_a_run_killed_at_three_random_moments_resumes_to_the_bit(run_config, tmp_path, code_of, processes, rng):
    run_config = replace(run_config, save_every=2)
    whole = replace(run_config, output=str(tmp_path / "whole"))
    train(whole)
    output = Path(run_config.output)
    log, steps = output / "metrics.jsonl", output / "checkpoints"
    moments = sorted(rng.choice(np.arange(3, 12), 3, replace=False))
    for moment in moments:
        process = processes.start("-c", code_of())
        wait_for(process, lambda moment=moment: num_lines(log) >= moment and finished_steps(steps))
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it ended before it was killed, after {moment} of 12 steps"
        with log.open("a") as file:
            file.write('{"step": 7, "lo')
    train(run_config)
    assert losses_of(output) == losses_of(whole.output) and len(losses_of(output)) == 12, moments
    assert exported(run_config) == exported(whole), moments


@pytest.mark.integration
def test_sigterm_saves_the_step_it_is_at_and_the_run_resumes_to_the_bit(run_config, tmp_path, code_of, processes):
    run_config = replace(run_config, save_every=100)
    whole = replace(run_config, output=str(tmp_path / "whole"))
    train(whole)
    output = Path(run_config.output)
    process = processes.start("-c", code_of(run_config))
    wait_for(process, lambda: num_lines(output / "metrics.jsonl") >= 4)
    process.terminate()
    stderr = process.communicate()[1]
    (saved,) = finished_steps(output / "checkpoints")
    assert process.returncode == 143 and f"saved step {saved}; the same command resumes" in stderr and 4 <= saved < 12
    assert "Traceback" not in stderr
    train(run_config)
    assert losses_of(output) == losses_of(whole.output) and exported(run_config) == exported(whole)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("patch", "doing", "saved"),
    [
        ("from s1jax.train import compile as compile_module\n"
         "compile_module.make_train_step = lambda *a, **k: (print('compiling', file=sys.stderr, flush=True), time.sleep(30), "
         "print('waited', file=sys.stderr))", "starting", []),
        ("compile_run = run.compile_run\n"
         "def slow(prepared):\n"
         "    compiled = compile_run(prepared)\n"
         "    def loss(*args): print('evaluating', file=sys.stderr, flush=True); time.sleep(2); return compiled.loss(*args)\n"
         "    return compiled._replace(loss=loss)\n"
         "run.compile_run = slow", "evaluating", [4]),
    ],
    ids=["compilation", "evaluation"],
)  # fmt: skip
def test_sigterm_ends_a_run_that_compiles_or_evaluates(patch, doing, saved, run_config, code_of, processes):
    config = replace(run_config, eval_source=run_config.data.source, eval_every=4, save_every=100)
    process = processes.start("-c", code_of(config, patch=patch, pause=0))
    for line in process.stderr:
        if line.strip() in ("compiling", "evaluating"):
            break
    process.terminate()
    stderr = process.communicate()[1]
    assert process.returncode == 143 and "waited" not in stderr
    assert "the same command resumes" in stderr and "Traceback" not in stderr and (saved or f"while {doing}" in stderr)
    assert finished_steps(Path(config.output) / "checkpoints") == saved
    if saved:  # the resumed run makes the interrupted evaluation
        assert eval_losses_of(config.output) == {}
        train(config)
        whole = replace(config, output=config.output + "2")
        train(whole)
        assert list(eval_losses_of(config.output)) == [4, 8, 12]
        assert eval_losses_of(config.output) == eval_losses_of(whole.output)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("devices", "mesh"),
    [
        pytest.param(8, MeshConfig(data=2, fsdp=4), marks=pytest.mark.slow),
        (8, MeshConfig(fsdp=2, sequence=2, tensor=2)),
        pytest.param(4, MeshConfig(), marks=pytest.mark.slow),
        pytest.param(1, MeshConfig(), marks=pytest.mark.slow),
    ],
)
def test_a_run_resumed_on_another_mesh_equals_the_uninterrupted_one(devices, mesh, run_config, tmp_path, monkeypatch):
    whole = replace(run_config, output=str(tmp_path / "whole"), export_dtype="float32")
    train(whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(OSError, match="stopped"):
            train(replace(whole, output=run_config.output))
    monkeypatch.setattr(run, "make_mesh", lambda config: make_mesh(config, jax.devices()[:devices]))
    train(replace(whole, output=run_config.output, mesh=mesh))
    np.testing.assert_allclose(losses_of(run_config.output), losses_of(whole.output), rtol=1e-5)
    params = [
        load_model(resolve_source(output), make_mesh(MeshConfig()), RULES, "stacked", dtype="float32")[1]
        for output in (run_config.output, whole.output)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *params)


@pytest.mark.integration
def test_two_processes_take_over_a_run_of_one_stop_together_and_give_it_back(
    run_config, tmp_path, code_of, processes, monkeypatch
):
    whole = replace(run_config, output=str(tmp_path / "whole"), export_dtype="float32", mesh=MeshConfig(data=2, fsdp=4))
    train(whole)
    config = replace(whole, output=run_config.output)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(OSError, match="stopped"):
            train(config)
    note_questions = (
        "from s1jax.data.chat import ChatFormat\nencode = ChatFormat.encode_example\n"
        f"note = lambda question: open(r'{tmp_path}/read_by' + str(jax.process_index()), 'a').write(question + '\\n')\n"
        "ChatFormat.encode_example = lambda chat, *texts: (note(texts[0]), encode(chat, *texts))[1]"
    )
    first, second = processes.start_two("-c", code_of(config, patch=note_questions))
    log = Path(config.output) / "metrics.jsonl"
    wait_for(first, lambda: num_lines(log) >= 7)
    second.terminate()
    ends = processes.finish(first, second)
    assert [end.code for end in ends] == [143, 143], ends
    saved = max(finished_steps(Path(config.output) / "checkpoints"))
    assert 7 <= saved < 12 and f"saved step {saved}" in ends[0].err
    questions = [row["question"] for row in ROWS]
    assert [(tmp_path / f"read_by{i}").read_text().splitlines() for i in range(2)] == [questions[::2], questions[1::2]]
    train(config)
    np.testing.assert_allclose(losses_of(config.output), losses_of(whole.output), rtol=1e-5)


@pytest.mark.integration
def test_held_out_loss_is_measured_and_the_best_checkpoint_kept(run_config, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    config = replace(run_config, eval_source=str(held_out), eval_every=2, save_every=4, keep=1)
    train(config)
    losses = eval_losses_of(config.output)
    assert list(losses) == [2, 4, 6, 8, 10, 12] and losses[12] < losses[2]
    # By hand: the mean over examples of each example's mean.
    _, params = load_model(resolve_source(config.output), make_mesh(MeshConfig()), RULES, "stacked", dtype="float32")
    alone = replace(config.data, source=str(held_out), num_epochs=1, batch_size=1)
    prepared = run.prepare(replace(config, output=str(tmp_path / "other"), data=alone))
    loss = run.compile_run(prepared).loss
    with jax.set_mesh(prepared.program.mesh), Preemption() as preemption:
        np.testing.assert_allclose(run.evaluate(prepared, loss, params, {}, preemption), losses[12], rtol=1e-5)
    best = min(losses, key=lambda step: losses[step])
    assert {best, 12} == set(finished_steps(Path(config.output) / "checkpoints"))


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("frozen", ["float", "nf4"])
def test_a_lora_run_learns_resumes_and_exports_a_merged_model(frozen, run_config, monkeypatch):
    config = replace(
        run_config, lora_rank=8, frozen=frozen, optimizer=replace(OPTIMIZER, learning_rate=3e-2),
        eval_source=run_config.data.source, eval_every=4, export_dtype="float32",
        data=replace(run_config.data, pack=False, rows_per_micro_batch=4), mesh=MeshConfig(fsdp=4, tensor=2),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(OSError, match="stopped"):
            train(config)
    hf = train(config)
    settings = json.loads((hf / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 8 and settings["base_model_name_or_path"] == config.model
    assert (hf / "adapter" / "adapter_model.safetensors").is_file()
    losses = losses_of(config.output)
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.05
    last = json.loads((Path(config.output) / "metrics.jsonl").read_text().splitlines()[-1])["eval_loss"]
    # The export is a plain model of the same loss.
    plain = replace(
        config, model=str(hf), output=config.output + "2", lora_rank=None, frozen="float", eval_every=1,
        data=replace(config.data, batch_size=20, num_epochs=1), optimizer=replace(OPTIMIZER, learning_rate=1e-30),
    )  # fmt: skip
    train(plain)
    first = json.loads((Path(plain.output) / "metrics.jsonl").read_text().splitlines()[0])["eval_loss"]
    np.testing.assert_allclose(first, last, rtol=1e-4)


@pytest.mark.integration
def test_tensorboard_holds_the_metrics(run_config):
    from tensorboardX.proto.event_pb2 import Event

    train(replace(run_config, data=replace(run_config.data, num_epochs=1)))
    (path,) = (Path(run_config.output) / "tensorboard").iterdir()
    content, found = path.read_bytes(), {}
    while content:  # length (8 bytes), its checksum (4), event, its checksum (4)
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        content = content[12 + size + 4 :]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    np.testing.assert_allclose([loss for _, loss in found["loss"]], losses_of(run_config.output), rtol=1e-6)
    assert {"grad_norm", "learning_rate", "tokens_per_s"} <= set(found)


@pytest.mark.integration
def test_trackers_are_given_every_step_and_an_absent_one_is_named(run_config, monkeypatch):
    seen = []

    class Run:
        def log(self, numbers, step):
            seen.append((step, numbers["loss"]))

        def finish(self):
            seen.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: Run(), __spec__="wandb"))
    config = replace(run_config, data=replace(run_config.data, num_epochs=1), trackers=("wandb",))
    train(config)
    assert seen == [*enumerate(losses_of(config.output)), "finished"]
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match="tracker trackio needs the package trackio: pip install trackio"):
        train(replace(config, output=config.output + "2", trackers=("trackio",)))


def stop_after(monkeypatch, num_steps):
    """Let the next run end with an OSError after it has made this many steps."""
    batches = iter(range(num_steps))

    def place(*args, place=to_device):
        if next(batches, None) is None:
            raise OSError("stopped")
        return place(*args)

    monkeypatch.setattr(run, "to_device", place)


@pytest.mark.integration
def test_a_run_goes_on_with_other_fields_that_change_no_result_and_without_the_source_weights(
    run_config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(OSError, match="stopped"):
            train(run_config)
    rows = tmp_path / "moved.jsonl"
    Path(run_config.data.source).rename(rows)
    monkeypatch.setattr(run, "load_model", None)
    hf = train(
        replace(
            run_config, data=replace(run_config.data, source=str(rows), pack=False, rows_per_micro_batch=4, num_row_lengths=1),
            mesh=MeshConfig(fsdp=2, tensor=4), step=StepConfig(remat="none", loss_chunk=100), save_every=5, keep=2, export_dtype="float32",
        )
    )  # fmt: skip
    assert len(losses_of(run_config.output)) == 12 and stored_dtype(hf) == "float32"
    assert finished_steps(Path(run_config.output) / "checkpoints") == [10, 12]


@pytest.mark.integration
def test_a_finished_run_is_done_and_only_a_missing_or_damaged_export_is_made_again(run_config, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    hf = train(run_config)
    exported, log = (hf / "model.safetensors").read_bytes(), Path(run_config.output) / "metrics.jsonl"
    losses = losses_of(run_config.output)
    monkeypatch.setattr(run, "load_model", None)
    stop_after(monkeypatch, 0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgram, "init_state", None)
        patch.setattr(TrainingProgram, "lower_step", None)
        assert train(run_config) == hf
    assert "is finished: nothing to do" in caplog.text
    for damage in (lambda: os.truncate(hf / "model.safetensors", 999), lambda: shutil.rmtree(hf)):
        damage()
        assert train(run_config) == hf
        assert (hf / "model.safetensors").read_bytes() == exported and losses_of(log.parent) == losses
    train(replace(run_config, export_dtype="float32"))
    assert stored_dtype(hf) == "float32"
    os.utime(hf, (0, 0))  # as if an earlier run in the same directory had written it
    train(replace(run_config, export_dtype="float32"))
    assert hf.stat().st_mtime > 0
    monkeypatch.undo()
    train(replace(run_config, export_dtype="float32", eval_source=run_config.data.source))
    ((step, loss),) = eval_losses_of(run_config.output).items()
    assert step == 12 and f"lowest loss on {run_config.data.source}: {loss:.4f} after step 12" in caplog.text


def test_what_lies_in_the_way_of_a_runs_files_is_refused_at_the_start(run_config, monkeypatch):
    monkeypatch.setattr(run, "load_tokenizer", None)
    output = Path(run_config.output)
    output.mkdir()
    for name, message in (
        ("checkpoints", "checkpoints is a file"),
        ("tensorboard", "is a file"),
        ("hf", "is not a directory"),
    ):
        (output / name).touch()
        with pytest.raises(ValueError, match=message):
            train(run_config)
        (output / name).unlink()
    for name in ("metrics.jsonl", "train_config.json"):
        (output / name).mkdir()
        with pytest.raises(ValueError, match=f"{name} cannot be written: it is a directory"):
            train(run_config)
        (output / name).rmdir()
    assert not list(output.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", ""),
        ("metrics.jsonl", '{"step": 0}\n'),
        ("rejects.jsonl", ""),
        ("config.json", "{}"),
        ("train_config.json", '{"model": "of another tool"}'),
        ("train_config.json", "{"),
        (".hidden", ""),
    ],
)
def test_a_directory_of_somebody_else_s_files_is_no_run_directory(name, content, run_config, monkeypatch):
    monkeypatch.setattr(run, "load_tokenizer", None)
    output = Path(run_config.output)
    output.mkdir()
    (output / name).write_text(content)
    with pytest.raises(
        ValueError,
        match=f"{output} holds {name}, and no train_config.json of a|{output}/train_config.json is not the record of a",
    ):
        train(run_config)
    assert [(path.name, path.read_text()) for path in output.iterdir()] == [(name, content)]


def test_a_new_file_system_and_what_a_kill_left_of_the_first_file_are_no_strangers(run_config, monkeypatch):
    output = Path(run_config.output)
    (output / "lost+found").mkdir(parents=True)
    for name in (".lock", ".train_config.json.partial"):
        (output / name).touch()
    run.check_output(run_config)


@pytest.mark.integration
def test_a_disk_that_fills_up_ends_a_run_with_one_line_and_the_run_resumes_to_the_bit(
    run_config, tmp_path, monkeypatch
):
    whole = replace(run_config, output=str(tmp_path / "whole"))
    train(whole)
    append, log = jsonl.Appender.append, Path(run_config.output) / "metrics.jsonl"

    def append_on_full_disk(self, rows):
        with full_disk(1200):
            append(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(jsonl.Appender, "append", append_on_full_disk)
        with pytest.raises(OSError, match=f"{log} cannot be written: .*run the same command again"):
            train(run_config)
    assert not (log.parent / ".lock").exists()
    train(run_config)
    assert losses_of(run_config.output) == losses_of(whole.output) and exported(run_config) == exported(whole)


@pytest.mark.slow
def test_of_runs_that_start_at_once_in_one_directory_one_goes_on(run_config, tmp_path, code_of, processes):
    whole = replace(run_config, output=str(tmp_path / "whole"))
    train(whole)
    for i in range(int(os.environ.get("S1JAX_TEST_STARTS", 3))):
        config = replace(run_config, output=str(tmp_path / str(i)))
        ends = processes.finish(*(processes.start("-c", code_of(config, pause=0)) for _ in range(2)))
        (refused,) = [end for end in ends if end.code]
        message = rf"UserError: {config.output} is being written by process \d+ on \S+ \(since "
        assert re.search(message, refused.err), ends
        assert losses_of(config.output) == losses_of(whole.output) and exported(config) == exported(whole)
        assert not (Path(config.output) / ".lock").exists()


@pytest.mark.integration
def test_a_run_directory_of_another_run_is_refused(run_config):
    train(replace(run_config, data=replace(run_config.data, num_epochs=1), save_every=2))
    run_config = replace(run_config, data=replace(run_config.data, num_epochs=1))

    def refused(config, change):
        with pytest.raises(ValueError, match=f"holds a run of another config: {change}. Give another --output"):
            train(config)

    refused(replace(run_config, param_dtype="bfloat16"), "param_dtype float32, not bfloat16")
    optimizer = replace(OPTIMIZER, learning_rate=1e-3)
    refused(replace(run_config, optimizer=optimizer), "optimizer.learning_rate 0.003, not 0.001")
    rows = Path(run_config.data.source)
    text = rows.read_text()
    rows.write_text(text.replace("make 3.", "give 3."))
    refused(run_config, r"training examples \w{12}, not \w{12}")
    rows.write_text(text)
    config = Path(run_config.model) / "config.json"
    text_of_config = config.read_text()
    config.write_text(text_of_config.replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    refused(run_config, r"weights \w{12}, not \w{12}")
    config.write_text(text_of_config)
    tokenizer = Path(run_config.model) / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"version": "1.0"', '"version": "1.0" '))
    refused(run_config, r"tokenizer \w{12}, not \w{12}")


def test_what_does_not_fit_the_model_is_refused_before_its_weights_are_read(run_config, monkeypatch):
    monkeypatch.setattr(run, "load_model", None)
    config = Path(run_config.model) / "config.json"
    fitting = json.loads(config.read_text())
    for change, message in (
        ({"vocab_size": 258}, "with id 258, but the model's vocab_size is 258"),
        ({"max_position_embeddings": 100}, r"example \d+ has \d+ tokens, but the model's context is 100"),
    ):
        config.write_text(json.dumps(fitting | change))
        with pytest.raises(ValueError, match=message):
            train(run_config)
    assert not Path(run_config.output).exists()


@pytest.mark.integration
def test_cut_examples_are_reported(run_config, caplog):
    caplog.set_level(logging.INFO)
    cut = replace(run_config.data, max_length=100, too_long="truncate", num_epochs=1)
    train(replace(run_config, data=cut))
    found = re.search(
        r"20 examples, (\d+) of them cut to max_length 100, 1 rejected \(1 x no trace.*; see .*rejects.jsonl\)\n3 steps of 8 examples",
        "\n".join(caplog.messages),
    )
    assert found and 0 < int(found[1]) < 20


@pytest.mark.integration
@pytest.mark.parametrize(
    ("save_every", "message"),
    [(100, r"step \d+: the loss is"), (1, r"step \d+: the norm of the parameters is (inf|nan) after the update")],
)
def test_a_destroyed_model_stops_the_run_before_it_is_saved(save_every, message, run_config):
    optimizer = replace(OPTIMIZER, learning_rate=1.0, weight_decay=1e30)
    with pytest.raises(ValueError, match=message):
        train(replace(run_config, optimizer=optimizer, save_every=save_every))
    assert not any("nan" in str(loss).lower() for loss in losses_of(run_config.output))
    assert not (Path(run_config.output) / "hf").exists()
    saved = finished_steps(Path(run_config.output) / "checkpoints")
    assert saved == ([1] if save_every == 1 else []), "step 0 has no learning rate yet"


@pytest.mark.integration
def test_a_loss_that_is_not_finite_names_its_step_and_the_rows_in_it(run_config):
    with pytest.raises(ValueError, match=r"step \d+: the loss is .*(nan|inf).*Its rows: \d+(, \d+){3,7}") as error:
        train(replace(run_config, optimizer=replace(OPTIMIZER, learning_rate=1.0, weight_decay=1e30)))
    named = set(re.search("Its rows: (.*)", str(error.value))[1].split(", "))
    assert named <= {row["id"] for row in ROWS} and len(named) in (4, 8)


@pytest.mark.parametrize(
    ("mesh", "rows", "message"),
    [
        (MeshConfig(data=2, fsdp=4), 4, "rows_per_micro_batch is 4: it must be a multiple of 8"),
        (MeshConfig(fsdp=1, sequence=8), None, r"4 .*heads.* 8"),
    ],
)
def test_rows_that_the_mesh_cannot_split_are_refused(mesh, rows, message, run_config):
    with pytest.raises(ValueError, match=message):
        train(replace(run_config, mesh=mesh, data=replace(run_config.data, rows_per_micro_batch=rows)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("save_every", 0, "at least 1"),
        ("eval_every", 0, "at least 1"),
        ("keep", 0, "at least 1"),
        ("export_dtype", "float16", "one of bfloat16, float32"),
        ("frozen", "int4", "one of float, int8, nf4"),
        ("frozen", "nf4", "set lora_rank"),
        ("lora_rank", 0, "at least 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(field, value, message):
    with pytest.raises(ValueError, match=f"{field.removeprefix('lora_')} is .*{value}.*: .*{message}"):
        TrainConfig("model", "output", DataConfig("rows"), **{field: value})


def test_a_run_does_not_take_the_models_own_directory(run_config):
    with pytest.raises(ValueError, match="is the model itself"):
        train(replace(run_config, output=run_config.model))


@pytest.mark.integration
def test_an_evaluation_that_is_made_later_counts_for_the_best(run_config, monkeypatch):
    config = replace(run_config, eval_source=run_config.data.source, eval_every=2, save_every=2, keep=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 4 + 2 * 3)  # steps 0 to 3, and two evaluations of three batches each
        with pytest.raises(OSError, match="stopped"):
            train(config)
    (step,) = finished_steps(Path(config.output) / "checkpoints")
    store = StateStore(Path(config.output) / "checkpoints", keep=1, keep_best=True)
    store.add_eval_loss(step, 0.0)
    assert store.best_step() == step
    store.close()
    train(config)
    assert finished_steps(Path(config.output) / "checkpoints") == [step, 12]
