"""A run on real rows and the real 135M model: the held-out loss falls, and the export thinks in s1's format, in transformers too."""

import json
from pathlib import Path

import jax
import pytest

from s1jax.checkpoint.source import resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.examples import DataConfig
from s1jax.decode import engine as decode_engine
from s1jax.decode.engine import load_engine
from s1jax.runtime.preemption import Preemption
from s1jax.runtime.sharding import MeshConfig, make_mesh
from s1jax.train import run
from s1jax.train.config import TrainConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.run import train
from s1jax.train.step import StepConfig
from tests.support.decoding import make_request

pytestmark = pytest.mark.integration

NUM_TOKENS = 32


def as_trace(row: dict) -> dict:
    """A GSM8K row with its worked solution as the trace."""
    thinking, _, answer = row["solution"].rpartition("####")
    return {
        "question": row["question"],
        "thinking": thinking or row["solution"],
        "answer": answer.strip() or row["answer"],
    }


@pytest.mark.slow
def test_a_run_on_real_rows_lowers_held_out_loss_and_its_export_thinks_under_transformers_too(
    real_model, shared, tmp_path, monkeypatch
):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gsm8k = [json.loads(line) for line in (shared / "data" / "gsm8k_train.jsonl").read_text().splitlines()[:72]]
    rows = (shared / "data" / "s1k_rows_with_traces.jsonl").read_text().splitlines()
    rows += [json.dumps(as_trace(row)) for row in gsm8k[:56]]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(as_trace(row)) + "\n" for row in gsm8k[56:]))
    config = TrainConfig(
        model=str(real_model),
        output=str(tmp_path / "run"),
        data=DataConfig(
            source=str(tmp_path / "rows.jsonl"), max_length=2048, too_long="truncate", batch_size=4, num_epochs=1
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        mesh=MeshConfig(fsdp=1, data=1),
        step=StepConfig(remat="attention"),
        dtype="float32",
        export_dtype="float32",
        eval_source=str(tmp_path / "held_out.jsonl"),
        eval_every=1000,
    )
    for module in (run, decode_engine):
        monkeypatch.setattr(module, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))

    # The loss before the first step.
    prepared = run.prepare(config)
    loss = run.compile_run(prepared).loss
    frozen, state = run.load(prepared)
    with jax.set_mesh(prepared.program.mesh), Preemption() as preemption:
        before = run.evaluate(prepared, loss, state.params, frozen, preemption)
    assert len(prepared.packer.examples) == 61
    del frozen, state
    hf = train(config)
    lines = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    print(f"held-out loss {before:.4f} -> {lines[-1]['eval_loss']:.4f} in {len(lines)} steps")
    assert lines[-1]["eval_loss"] < before - 0.1

    tokenizer = AutoTokenizer.from_pretrained(hf)
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)

    def under_transformers(prompt, num_tokens):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False)
        return out[0, len(prompt) :].tolist()

    question = gsm8k[60]["question"]
    chat = ChatFormat.of(tokenizer)
    think = list(chat.delimiters.think)
    opening = under_transformers(chat.encode_chat(question), len(think) + 1)
    assert opening[: len(think)] == think and tokenizer.decode(opening[len(think) :]) == "\n"
    engine, _ = load_engine(resolve_source(hf), "float32", MeshConfig(fsdp=-1))
    prompt = tuple(chat.encode_prompt(question))
    (ours,) = engine.decode([make_request(prompt, max_thinking_tokens=NUM_TOKENS, max_answer_tokens=1)])
    theirs = under_transformers(list(prompt), NUM_TOKENS)
    print(tokenizer.decode(theirs))
    assert list(ours.tokens[:NUM_TOKENS]) == theirs
