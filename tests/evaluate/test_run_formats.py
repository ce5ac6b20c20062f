"""A model in a thinking format of its own, from training rows to sample rows."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from s1jax.checkpoint.export import save_hf
from s1jax.data.condition import Condition, TraceSettings
from s1jax.data.examples import DataConfig
from s1jax.decode.generate import GenerateConfig, generate
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig
from s1jax.evaluate.sweep import SweepConfig
from s1jax.results.samples import is_forced, read_samples
from s1jax.train.config import TrainConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.run import train
from tests.support.models import one_device, random_params
from tests.support.runs import evaluate, sweep
from tests.support.tokenizers import llama2_tokenizer, qwen3_tokenizer, qwq_tokenizer, r1_tokenizer
from tests.support.training import CONFIG

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("quick_compilation")]

TRACE = "It is 4."


@pytest.fixture(scope="module", params=[qwq_tokenizer, qwen3_tokenizer, r1_tokenizer])
def think_model(request, tmp_path_factory):
    """A tiny model that this project trained on rows of one short trace, with a tokenizer that has the tags as tokens."""
    directory = tmp_path_factory.mktemp("think")
    request.param().save_pretrained(directory / "tokenizer")
    base = directory / "base"
    save_hf(base, CONFIG, random_params(CONFIG, "stacked", one_device()), "float32", directory / "tokenizer")
    rows = [dict(question=f"1 + {i}?", thinking=TRACE, answer="4") for i in range(16)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(str(directory / "rows.jsonl"), max_length=256, batch_size=8, num_epochs=30, pad_multiple=64)
    config = TrainConfig(
        str(base), str(directory / "run"), data, OptimizerConfig(learning_rate=1e-2), dtype="float32", export_dtype="float32",
        save_every=1000, trackers=(),
    )  # fmt: skip
    return str(train(config))


@pytest.fixture
def decoding(think_model, tmp_path):
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps(dict(question=f"1 + {i}?", answer="4")) + "\n" for i in (3, 5))
    )
    return DecodingConfig(think_model, str(tmp_path / "sums.jsonl"), str(tmp_path / "rows.jsonl"), num_rows=4)


def test_a_model_trained_on_think_rows_meets_its_budgets_and_ends_its_own_traces(decoding):
    condition = TraceSettings(max_answer_tokens=16, dtype="float32")
    rows = read_samples(sweep(SweepConfig(decoding, (0, 3, 50), num_ignore=(0, 1), condition=condition)))
    assert {row["thinking_format"] for row in rows} == {"think"} and len(rows) == 2 * 3 * 2
    for row in rows:
        budget, trace = row["max_thinking_tokens"], f"{TRACE}\n"
        if budget == 50 and row["num_ignore"] == 0:
            assert (row["thinking"], row["answer_text"]) == (trace, "\n\nAnswer: 4")
            assert row["correct"] and row["num_thinking_tokens"] == len(trace)
        elif budget == 50:
            assert row["thinking"].startswith(trace + "Wait") and row["num_ignored"] == 1
        else:
            assert row["num_thinking_tokens"] == budget and row["thinking"] == trace[:budget]
            assert row["answer_text"].startswith("\n\nFinal Answer:")


def test_the_transcript_of_a_think_model_shows_no_tags(think_model):
    natural, forced = "is 4.\n--- answer ---\nAnswer: 4\n", "\n--- answer ---\n[[Final Answer:]]"
    for budget, shown in ((50, f"--- thinking ---\nIt {natural}"), (2, f"--- thinking ---\nIt{forced}")):
        out = io.StringIO()
        generate(GenerateConfig(think_model, "1 + 3?", Condition(budget, max_answer_tokens=16, dtype="float32")), out)
        assert out.getvalue().startswith(shown)


def test_a_row_holds_the_format_that_auto_stands_for_so_that_its_name_resumes_the_run(decoding):
    condition = Condition(3, max_answer_tokens=4, dtype="float32")
    before = evaluate(EvaluateConfig(decoding, condition)).read_text()
    assert evaluate(EvaluateConfig(decoding, replace(condition, thinking_format="think"))).read_text() == before
    evaluate(EvaluateConfig(decoding, replace(condition, prompt_suffix="Be brief.")))
    evaluate(EvaluateConfig(decoding, replace(condition, system_prompt="Be brief.")))
    after = Path(decoding.output).read_text()
    assert after.startswith(before) and len(read_samples(decoding.output)) == 6


def test_a_format_that_does_not_fit_is_refused_before_the_weights_are_loaded(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("s1jax.evaluate.run.load_engine", None)
    model, output = tmp_path / "model", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_model, model)
    r1_tokenizer().save_pretrained(model)
    (tmp_path / "sums.jsonl").write_text(json.dumps(dict(question="1 + 3?", answer="4")) + "\n")
    decoding = DecodingConfig(str(model), str(tmp_path / "sums.jsonl"), str(output))
    with pytest.raises(ValueError, match=r"the thinking format s1 does not fit the tokenizer .*: it lacks the token"):
        evaluate(EvaluateConfig(decoding, Condition(3, thinking_format="s1")))
    assert not output.exists()


def test_a_model_that_does_not_think_answers_its_chat_prompt_as_transformers_does(tiny_model, tmp_path, capsys, caplog):
    """The tokenizer shows no thinking format."""
    import torch
    from transformers import AutoModelForCausalLM

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = llama2_tokenizer()
    tokenizer.save_pretrained(model)
    questions = [f"{i} + 1?" for i in range(3)]
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps(dict(question=question, answer="4")) + "\n" for question in questions)
    )
    decoding = DecodingConfig(str(model), str(tmp_path / "sums.jsonl"), str(tmp_path / "rows.jsonl"), num_rows=2)
    condition = Condition(0, thinking_format="none", max_answer_tokens=9, dtype="float32")
    rows = read_samples(evaluate(EvaluateConfig(decoding, condition)))
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    chat = [[{"role": "user", "content": question}] for question in questions]
    without_text = list(range(len(tokenizer), theirs.config.vocab_size))
    for turn, row in zip(chat, sorted(rows, key=lambda row: row["problem_id"]), strict=True):
        prompt = tokenizer.apply_chat_template(turn, return_tensors="pt", add_generation_prompt=True, return_dict=True)
        written = theirs.generate(**prompt, max_new_tokens=9, do_sample=False, suppress_tokens=without_text)
        reply = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])
        assert row["answer_text"] == reply.removesuffix("</s>")
        assert (row["thinking"], row["num_thinking_tokens"], row["num_forced_tokens"]) == ("", 0, 0)
        assert (row["thinking_format"], row["wrap_up"], row["max_thinking_tokens"]) == ("none", "", 0)
        assert not is_forced(row) and row["num_answer_tokens"] > 0
    before = Path(decoding.output).read_text()
    settings = TraceSettings(thinking_format="none", max_answer_tokens=9, dtype="float32", temperature=1.0)
    drawn = read_samples(sweep(SweepConfig(decoding, (0,), condition=settings, num_samples=3)))
    assert Path(decoding.output).read_text().startswith(before) and len(drawn) == 3 + 9
    with pytest.raises(ValueError, match="max_thinking_tokens is 5; it must be 0 under the thinking format none"):
        sweep(SweepConfig(decoding, (0, 5), condition=settings))
    caplog.set_level("INFO", "s1jax")
    out = io.StringIO()
    generate(GenerateConfig(str(model), questions[0], condition), out)
    assert out.getvalue().strip() == f"--- answer ---\n{rows[0]['answer_text']}".strip()
    assert "budget" not in caplog.text.splitlines()[-1] and "thinking" not in caplog.text.splitlines()[-1]
