"""`train.py`: the step against torch and against itself under other splits, the recipe's schedule, and a whole run with resume."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_chat import byte_tokenizer

from s1jax import checkpoint, data, train
from s1jax.data import DataConfig
from s1jax.model import init_params
from s1jax.model_config import ModelConfig
from s1jax.sharding import MeshConfig, ShardingRules, make_mesh

CONFIG = ModelConfig(
    vocab_size=272, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
RULES = ShardingRules()
OPTIMIZER = train.OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, clip_norm=0.5)
ROWS = [
    dict(id=str(i), question=f"What is {i} + {i + 3}?", thinking=f"{i} and {i + 3} make {2 * i + 3}." * (1 + i % 3),
         answer=str(2 * i + 3), reference=str(2 * i + 3), source="test", domain="sums")
    for i in range(20)
]  # fmt: skip


def batches(**changes):
    config = DataConfig(source="-", max_length=512, batch_size=8, num_epochs=2, pad_multiple=64, **changes)
    examples, _ = data.encode_rows(ROWS, byte_tokenizer(), config)
    return data.make_batches(examples, config)


def run_steps(num_steps=4, mesh_config=None, num_micro_batches=1, loss_chunk=1024, remat=True, gather=True):
    mesh = make_mesh(mesh_config or MeshConfig(fsdp=1), jax.devices()[: 8 if mesh_config else 1])
    optimizer = train.make_optimizer(OPTIMIZER, num_steps=6)
    state = train.init_state(optimizer, init_params(CONFIG, RULES, "stacked", mesh, seed=0), mesh)
    step = train.make_train_step(CONFIG, RULES, optimizer, num_micro_batches, loss_chunk, remat)
    metrics, ds = [], batches()
    with jax.set_mesh(mesh):
        for i in range(num_steps):
            state, m = step(state, train.to_device(ds[i], mesh, RULES))
            metrics.append((float(m["loss"]), float(m["grad_norm"])))
    return np.array(metrics), jax.device_get(state.params) if gather else None


@pytest.fixture(scope="module")
def reference():
    return run_steps()


def assert_same_run(run, reference):
    np.testing.assert_allclose(run[0], reference[0], rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run[1], reference[1])


@pytest.mark.parametrize(
    "changes",
    [
        dict(num_micro_batches=4),
        dict(loss_chunk=24),
        dict(remat=False),
        dict(mesh_config=MeshConfig(fsdp=8)),
        dict(mesh_config=MeshConfig(data=2, fsdp=2, tensor=2), num_micro_batches=2),
        dict(mesh_config=MeshConfig(data=2, fsdp=1, sequence=2, tensor=2)),
    ],
)
def test_how_the_work_is_split_changes_no_step(changes, reference):
    assert_same_run(run_steps(**changes), reference)


def test_steps_equal_torch(tmp_path, reference):
    """Same weights, batches and recipe under transformers and torch.optim.AdamW."""
    import torch
    from transformers import AutoModelForCausalLM

    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = init_params(CONFIG, RULES, "stacked", mesh, seed=0)
    first = jax.device_get(params)
    checkpoint.save_hf(tmp_path / "hf", CONFIG, params, "float32", None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    no_decay = [p for n, p in model.named_parameters() if "bias" in n or "norm" in n]
    decay = [p for n, p in model.named_parameters() if not ("bias" in n or "norm" in n)]
    groups = [dict(params=decay, weight_decay=0.1), dict(params=no_decay, weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    schedule = train.learning_rate(OPTIMIZER, 6)
    ds = batches()
    for step in range(4):
        batch = {name: torch.tensor(x) for name, x in ds[step].items()}
        logits = model(batch["tokens"].long(), attention_mask=batch["segment_ids"]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].long().flatten(), reduction="none"
        )
        loss = (losses * batch["loss_weights"].flatten()).sum()
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = float(schedule(step))
        adamw.step()
        np.testing.assert_allclose([loss.item(), norm.item()], reference[0][step], rtol=1e-4)
        assert norm > OPTIMIZER.clip_norm and (step == 0 or adamw.param_groups[0]["lr"] > 1e-3)
    model.save_pretrained(tmp_path / "torch")
    _, trained = checkpoint.load_model(tmp_path / "torch", mesh, RULES, "stacked", dtype="float32")

    def moved_alike(path, ours, theirs, start):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, theirs, atol=3e-5, err_msg=name)
        assert np.abs(theirs - start).max() > 5e-3, name

    jax.tree_util.tree_map_with_path(moved_alike, reference[1], jax.device_get(trained), first)


def test_the_loss_weighs_each_sequence_the_same_by_default(reference):
    """The first step's loss, recomputed with whole logits and means by hand."""
    from flax import nnx

    from s1jax.model import graphdef

    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    batch = batches()[0]
    model = nnx.merge(graphdef(CONFIG, RULES, "stacked"), init_params(CONFIG, RULES, "stacked", mesh, seed=0))
    logits = model.logits(model(batch["tokens"], batch["positions"], batch["segment_ids"])[0])
    losses = np.array(optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]))
    mask = batch["loss_weights"] > 0
    by_sequence = np.mean([losses[b][mask[b]].mean() for b in range(8)])
    np.testing.assert_allclose(reference[0][0, 0], by_sequence, rtol=1e-5)
    assert abs(losses[mask].mean() - by_sequence) > 1e-4


def test_the_schedule_is_the_recipes():
    schedule = train.learning_rate(train.OptimizerConfig(), num_steps=315)
    cosine = [1e-5 * 0.5 * (1 + np.cos(np.pi * (step - 16) / 299)) for step in (157, 314)]
    np.testing.assert_allclose(
        [float(schedule(s)) for s in (0, 8, 16, 157, 314, 315)], [0, 0.5e-5, 1e-5, *cosine, 0], rtol=1e-4, atol=1e-12
    )


def test_a_thousand_rows_make_315_steps():
    assert data.num_steps(1000, DataConfig(source="-")) == 315


@pytest.fixture
def run_config(tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    tokenizer = byte_tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "base")
    params = init_params(CONFIG, RULES, "stacked", mesh, seed=0)
    checkpoint.save_hf(tmp_path / "base2", CONFIG, params, "float32", str(tmp_path / "base"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"id": "bad", "question": "no trace?"}]))
    return train.TrainConfig(
        model=str(tmp_path / "base2"),
        output=str(tmp_path / "run"),
        data=DataConfig(source=str(rows), max_length=512, batch_size=8, num_epochs=4, pad_multiple=64),
        optimizer=OPTIMIZER,
        dtype="float32",
        save_every=4,
    )


def losses_of(output):
    return [json.loads(line)["loss"] for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_exports_and_keeps_rejected_rows_aside(run_config):
    hf = train.train(run_config)
    losses = losses_of(run_config.output)
    assert len(losses) == 12 and losses[-1] < 0.9 * losses[0]
    (reject,) = map(json.loads, (Path(run_config.output) / "rejects.jsonl").read_text().splitlines())
    assert reject["id"] == "bad" and "thinking" in reject["reason"]
    config, exported = checkpoint.load_model(str(hf), make_mesh(MeshConfig()), RULES, "stacked", dtype="float32")
    _, state = checkpoint.load_model(run_config.output, make_mesh(MeshConfig()), RULES, "stacked", dtype="float32")
    assert config == CONFIG
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(jnp.float32)), exported, state
    )


def test_a_killed_run_resumes_to_the_bit(run_config, tmp_path):
    whole = replace(run_config, output=str(tmp_path / "whole"))
    train.train(whole)
    script = tmp_path / "script.py"
    # Steps are slowed down, so that the kill comes between a finished checkpoint and the end.
    script.write_text(
        "import os, time\nos.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'\n"
        "from s1jax.sharding import *\nfrom s1jax.data import *\nfrom s1jax.train import *\nfrom s1jax import train\n"
        "train.to_device = lambda *args: (time.sleep(0.5), to_device(*args))[1]\n"
        f"train.train({run_config!r})\n"
    )
    output, steps = Path(run_config.output), Path(run_config.output) / "checkpoints"
    log = output / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not checkpoint.finished_steps(steps) or log.read_text().count("\n") < 6:
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 0 < max(checkpoint.finished_steps(steps)) < log.read_text().count("\n") < 12
    with log.open("a") as file:
        file.write('{"step": 7, "lo')
    train.train(run_config)
    assert losses_of(output) == losses_of(whole.output)
    ours, theirs = (Path(c.output) / "hf" / "model.safetensors" for c in (run_config, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def stop_after(monkeypatch, num_steps):
    """Let the next run end with an OSError where it has made this many steps."""
    batches = iter(range(num_steps))

    def place(*args, place=train.to_device):
        if next(batches, None) is None:
            raise OSError("stopped")
        return place(*args)

    monkeypatch.setattr(train, "to_device", place)


def test_a_run_goes_on_with_other_fields_that_change_no_result_and_without_the_source_weights(
    run_config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(OSError, match="stopped"):
            train.train(run_config)
    rows = tmp_path / "moved.jsonl"
    Path(run_config.data.source).rename(rows)
    monkeypatch.setattr(checkpoint, "load_model", None)
    hf = train.train(
        replace(
            run_config, data=replace(run_config.data, source=str(rows)), mesh=MeshConfig(fsdp=2, tensor=4), remat=False,
            micro_batch_size=4, loss_chunk=100, save_every=5, keep=2, export_dtype="float32",
        )
    )  # fmt: skip
    assert len(losses_of(run_config.output)) == 12 and checkpoint.stored_dtype(hf) == "float32"
    assert checkpoint.finished_steps(Path(run_config.output) / "checkpoints") == [10, 12]


def test_a_finished_run_is_done_and_only_its_missing_export_is_made_again(run_config, monkeypatch, capsys):
    hf = train.train(run_config)
    exported, log = (hf / "model.safetensors").read_bytes(), Path(run_config.output) / "metrics.jsonl"
    losses = losses_of(run_config.output)
    monkeypatch.setattr(checkpoint, "load_model", None)
    stop_after(monkeypatch, 0)
    with monkeypatch.context() as patch:
        patch.setattr(train, "init_state", None)
        patch.setattr(checkpoint, "StateStore", None)
        assert train.train(run_config) == hf
    assert "is finished: nothing to do" in capsys.readouterr().err
    shutil.rmtree(hf)
    assert train.train(run_config) == hf
    assert (hf / "model.safetensors").read_bytes() == exported and losses_of(log.parent) == losses
    train.train(replace(run_config, export_dtype="float32"))
    assert checkpoint.stored_dtype(hf) == "float32"


def test_a_run_directory_of_another_run_is_refused(run_config):
    train.train(replace(run_config, data=replace(run_config.data, num_epochs=1), save_every=2))
    run_config = replace(run_config, data=replace(run_config.data, num_epochs=1))

    def refused(config, told):
        with pytest.raises(ValueError, match=f"holds a run of another config: {told}. Give another --output"):
            train.train(config)

    refused(replace(run_config, param_dtype="bfloat16"), "param_dtype float32, not bfloat16")
    optimizer = replace(OPTIMIZER, learning_rate=1e-3)
    refused(replace(run_config, optimizer=optimizer), "optimizer.learning_rate 0.003, not 0.001")
    rows = Path(run_config.data.source)
    text = rows.read_text()
    rows.write_text(text.replace("make 3.", "give 3."))
    refused(run_config, r"training examples \w{12}, not \w{12}")
    rows.write_text(text)
    config = Path(run_config.model) / "config.json"
    config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    refused(run_config, r"weights \w{12}, not \w{12}")


def test_what_does_not_fit_the_model_is_refused_before_its_weights_are_read(run_config, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_model", None)
    config = Path(run_config.model) / "config.json"
    fitting = json.loads(config.read_text())
    for change, told in (
        ({"vocab_size": 258}, "token id 258, but the model's vocab_size is 258"),
        ({"max_position_embeddings": 100}, r"example \d+ has \d+ tokens, but the model's context is 100"),
    ):
        config.write_text(json.dumps(fitting | change))
        with pytest.raises(ValueError, match=told):
            train.train(run_config)
    assert not Path(run_config.output).exists()


def test_cut_examples_are_reported(run_config, capsys):
    cut = replace(run_config.data, max_length=100, too_long="truncate", num_epochs=1)
    train.train(replace(run_config, data=cut))
    told = re.search(
        r"20 examples, (\d+) of them cut to max_length 100, 1 rejected \(1 x .*thinking.*; see .*rejects.jsonl\); 3 steps of 8",
        capsys.readouterr().err,
    )
    assert told and 0 < int(told[1]) < 20


@pytest.mark.parametrize(
    ("save_every", "told"), [(100, r"step \d+: loss"), (1, r"step \d+: parameters of norm (inf|nan) after its update")]
)
def test_a_destroyed_model_stops_the_run_before_it_is_saved(save_every, told, run_config):
    optimizer = replace(OPTIMIZER, learning_rate=1.0, weight_decay=1e30)
    with pytest.raises(ValueError, match=told):
        train.train(replace(run_config, optimizer=optimizer, save_every=save_every))
    assert not any("nan" in str(loss).lower() for loss in losses_of(run_config.output))
    assert not (Path(run_config.output) / "hf").exists()
    saved = checkpoint.finished_steps(Path(run_config.output) / "checkpoints")
    assert saved == ([1] if save_every == 1 else []), "step 0 has no learning rate yet"


def test_a_micro_batch_must_divide_the_batch(run_config):
    with pytest.raises(ValueError, match="micro_batch_size 3 does not divide the batch size 8"):
        replace(run_config, micro_batch_size=3)


@pytest.mark.parametrize(
    ("micro_batch_size", "mesh", "told"),
    [
        (None, MeshConfig(data=8, fsdp=2), r"batch_size 8 is no multiple of 16, .* \(data 8 x fsdp 2\): choose a multiple of 16"),
        (4, MeshConfig(data=2, fsdp=4), r"micro_batch_size 4 is no multiple of 8, .* \(data 2 x fsdp 4\): choose a multiple"),
    ],
)  # fmt: skip
def test_every_device_group_must_get_rows_of_its_own(micro_batch_size, mesh, told):
    mesh = jax.sharding.AbstractMesh((mesh.data, mesh.fsdp, 1, 1), ("data", "fsdp", "sequence", "tensor"))
    with pytest.raises(ValueError, match=told):
        config = train.TrainConfig("model", "output", DataConfig("rows", batch_size=8))
        train.check_mesh(replace(config, micro_batch_size=micro_batch_size), mesh)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("save_every", 0, "at least 1"),
        ("loss_chunk", 0, "at least 1"),
        ("micro_batch_size", 0, "at least 1"),
        ("micro_batch_size", -1, "at least 1"),
        ("keep", 0, "at least 1"),
        ("export_dtype", "float16", "choose one of bfloat16, float32"),
        ("learning_rate", 0.0, "positive"),
        ("learning_rate", float("nan"), "positive"),
        ("learning_rate", 1.5, "at most 1"),
        ("weight_decay", float("inf"), "finite"),
        ("warmup_fraction", 1.0, "below 1"),
        ("beta2", 1.0, "below 1"),
        ("weight_decay", -0.1, "at least 0"),
        ("clip_norm", 0.0, "positive"),
    ],
)
def test_values_that_make_no_sense_are_refused(field, value, told):
    optimizer = field in {f.name for f in fields(train.OptimizerConfig)}
    with pytest.raises(ValueError, match=f"{field} is .*{value}.*: .*{told}"):
        train.OptimizerConfig(**{field: value}) if optimizer else train.TrainConfig(
            "model", "output", DataConfig("rows"), **{field: value}
        )


TWO_PROCESSES = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", 2, process)
import numpy as np
import test_train
from s1jax.sharding import MeshConfig, make_mesh
# Neighbours along tensor are devices of different processes.
devices = np.array(jax.devices()).reshape(2, 4).T.ravel()
test_train.make_mesh = lambda config, _: make_mesh(config, devices)
metrics, _ = test_train.run_steps(num_steps=2, mesh_config=MeshConfig(data=2, fsdp=2, tensor=2), gather=False)
print("metrics", *metrics.ravel())
"""


def test_two_processes_equal_one_when_rows_span_them(reference):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", TWO_PROCESSES]
    processes = [
        subprocess.Popen([*command, str(i), port], env=env, text=True, stdout=-1, stderr=subprocess.STDOUT)
        for i in range(2)
    ]
    for output in [process.communicate(timeout=300)[0] for process in processes]:
        lines = [line.split()[1:] for line in output.splitlines() if line.startswith("metrics")]
        assert len(lines) == 1, output
        np.testing.assert_allclose(np.array(lines[0], float), reference[0][:2].ravel(), rtol=2e-5)
