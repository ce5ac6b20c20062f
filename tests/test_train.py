"""`train.py`: the step against torch and against itself under other splits, the recipe's schedule, and a whole run with resume."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_chat import byte_tokenizer

from s1jax import checkpoint, data, train
from s1jax.data import DataConfig
from s1jax.model import ModelConfig, init_params
from s1jax.sharding import MeshConfig, ShardingRules, make_mesh

CONFIG = ModelConfig(
    vocab_size=272, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip
RULES = ShardingRules()
OPTIMIZER = train.OptimizerConfig(learning_rate=3e-3, weight_decay=0.1)
ROWS = [
    dict(id=str(i), question=f"What is {i} + {i + 3}?", thinking=f"{i} and {i + 3} make {2 * i + 3}." * (1 + i % 3),
         answer=str(2 * i + 3), reference=str(2 * i + 3), source="test", domain="sums")
    for i in range(20)
]  # fmt: skip


def batches(**changes):
    config = DataConfig(source="-", max_length=512, batch_size=8, num_epochs=2, pad_multiple=64, **changes)
    examples, _ = data.encode_rows(ROWS, byte_tokenizer(), config)
    return data.make_batches(examples, config)


def run_steps(num_steps=3, mesh_config=None, num_micro_batches=1, loss_chunk=1024, remat=True):
    mesh = make_mesh(mesh_config or MeshConfig(fsdp=1), jax.devices()[: 8 if mesh_config else 1])
    optimizer = train.make_optimizer(OPTIMIZER, num_steps=6)
    state = train.init_state(optimizer, init_params(CONFIG, RULES, "stacked", mesh, seed=0), mesh)
    step = train.make_train_step(CONFIG, RULES, optimizer, num_micro_batches, loss_chunk, remat)
    metrics, ds = [], batches()
    with jax.set_mesh(mesh):
        for i in range(num_steps):
            state, m = step(state, train.to_device(ds[i], mesh, RULES))
            metrics.append((float(m["loss"]), float(m["grad_norm"])))
    return np.array(metrics), jax.device_get(state.params)


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
    checkpoint.save_hf(tmp_path / "hf", CONFIG, params, "float32", None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    no_decay = [p for n, p in model.named_parameters() if "bias" in n or "norm" in n]
    decay = [p for n, p in model.named_parameters() if not ("bias" in n or "norm" in n)]
    groups = [dict(params=decay, weight_decay=0.1), dict(params=no_decay, weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    schedule = train.learning_rate(OPTIMIZER, 6)
    ds = batches()
    for step in range(3):
        batch = {name: torch.tensor(x) for name, x in ds[step].items()}
        logits = model(batch["tokens"].long(), attention_mask=batch["segment_ids"]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].long().flatten(), reduction="none"
        )
        loss = (losses * batch["loss_weights"].flatten()).sum()
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adamw.param_groups:
            group["lr"] = float(schedule(step))
        adamw.step()
        np.testing.assert_allclose([loss.item(), norm.item()], reference[0][step], rtol=1e-4)


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
    script.write_text(
        "import os\nos.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'\n"
        "from s1jax.sharding import *\nfrom s1jax.data import *\nfrom s1jax.train import *\n"
        f"train({run_config!r})\n"
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (Path(run_config.output) / "metrics.jsonl").exists() or len(losses_of_partial(run_config.output)) < 6:
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with (Path(run_config.output) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    train.train(run_config)
    assert losses_of(run_config.output) == losses_of(whole.output)
    for name in ("model.safetensors",):
        ours, theirs = (Path(c.output) / "hf" / name for c in (run_config, whole))
        assert ours.read_bytes() == theirs.read_bytes()


def losses_of_partial(output):
    return [line for line in (Path(output) / "metrics.jsonl").read_text().split("\n")[:-1]]


def test_a_run_directory_of_another_config_is_refused(run_config):
    train.train(run_config)
    with pytest.raises(ValueError, match="holds a run of another config"):
        train.train(replace(run_config, param_dtype="bfloat16"))


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(run_config):
    optimizer = replace(OPTIMIZER, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"step \d+: loss"):
        train.train(replace(run_config, optimizer=optimizer, save_every=1))
    assert not any("nan" in str(loss).lower() for loss in losses_of(run_config.output))


def test_a_micro_batch_must_divide_the_batch(run_config):
    with pytest.raises(ValueError, match="micro_batch_size 3 does not divide"):
        train.train(replace(run_config, micro_batch_size=3))
    assert not Path(run_config.output).exists()
