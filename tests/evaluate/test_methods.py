"""`methods.py`: the control methods of the paper, from their conditions to rows of one file."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from s1jax.checkpoint.source import load_tokenizer, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition, Limits, TraceSettings
from s1jax.decode.engine import Engine
from s1jax.evaluate.conditions import EvaluateConfig, traces_of
from s1jax.evaluate.methods import conditions_of
from s1jax.evaluate.sweep import grid
from s1jax.results.control import summarise_curves
from s1jax.results.samples import read_samples
from s1jax.results.tables import format_thinking_table
from tests.support.runs import evaluate, sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")

LIMITS = (Limits(64), Limits(512))


def of(method, requested=(), limits=LIMITS, max_tries=1, **settings):
    conditions = conditions_of(method, TraceSettings(**settings), limits, requested, max_tries)
    return [(c.requested, c.max_thinking_tokens) for c in conditions]


def test_each_method_has_the_papers_conditions():
    assert of("budget_forcing") == [("", 64), ("", 512)]
    assert of("token_conditional", ("16", "1024", "long")) == [("16", 512), ("1024", 512)]
    assert of("token_conditional_forced", ("16", "1024")) == [("16", 16), ("1024", 1024)]
    assert of("step_conditional", ("4", "8")) == [("4", 512), ("8", 512)]
    assert of("class_conditional") == [("short", 512), ("long", 512)]
    assert of("class_conditional", ("long", "16")) == [("long", 512)]
    assert of("class_conditional_forced") == [("short", 64), ("short", 512), ("long", 64), ("long", 512)]
    assert of("rejection_sampling", max_tries=4, temperature=1.0) == [("", 64), ("", 512)]
    with pytest.raises(ValueError, match="token_conditional needs numbers in requested"):
        of("token_conditional", ("long",))


def test_forced_and_unforced_answers_come_from_one_trace():
    settings = TraceSettings()
    conditions = [
        condition
        for method in ("token_conditional", "token_conditional_forced")
        for condition in conditions_of(method, settings, LIMITS, ("16", "32"), 1)
    ]
    traces = traces_of(conditions)
    assert [[c.max_thinking_tokens for c in trace.conditions] for trace in traces] == [[512, 16], [512, 32]]
    series = replace(conditions[0], method="rejection_sampling", requested="", temperature=1.0, max_tries=4)
    plain = replace(series, method="budget_forcing", max_tries=1)
    assert len(traces_of([series, replace(series, max_thinking_tokens=8), plain])) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(requested=("16",)), "no method asks for 16: budget_forcing"),
        (dict(method=("class_conditional",), requested=("long", "16")), "no method asks for 16: class_conditional"),
        (dict(method=("class_conditional",), num_ignore=(1,)), r"num_ignore is \(1,\): it has no effect under class"),
        (dict(max_tries=5), "max_tries is 5: it has no effect under budget_forcing"),
        (dict(method=("none",)), "method is"),
    ],
)
def test_a_setting_without_effect_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        grid(replace(config, **{"num_ignore": (0,), "max_thinking_tokens": (5, 20), **changes}))


@pytest.mark.integration
def test_methods_that_need_two_formats_are_refused_in_one_run(config, tmp_path):
    config = replace(config, num_ignore=(0,), requested=("2",))
    with pytest.raises(
        ValueError, match="step_conditional needs the thinking format steps, and step_conditional_forced"
    ):
        sweep(replace(config, method=("step_conditional", "step_conditional_forced")))
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.slow
@pytest.mark.integration
def test_all_methods_write_one_file_and_are_compared_in_one_table(config, tmp_path, monkeypatch):
    prompts, chat = Counter(), ChatFormat.of(load_tokenizer(resolve_source(config.decoding.model)))

    def submit(engine, request, submit=Engine.submit):
        prompts[chat.decode(request.prompt)] += 1
        return submit(engine, request)

    monkeypatch.setattr(Engine, "submit", submit)
    runs = [
        dict(method=("budget_forcing", "token_conditional", "token_conditional_forced"), requested=("8", "16")),
        dict(method=("class_conditional", "class_conditional_forced")),
        dict(method=("step_conditional",), requested=("2",)),
        dict(method=("step_conditional_forced",), requested=("2",)),
        dict(method=("rejection_sampling",), max_tries=3, condition=replace(config.condition, temperature=1.0)),
    ]
    for changes in runs:
        sweep(replace(config, **{"max_thinking_tokens": (5, 40), "num_ignore": (0,), **changes}))
    rows = read_samples(config.decoding.output)
    counts = Counter(row["method"] for row in rows)
    assert counts == {
        "budget_forcing": 6, "token_conditional": 6, "token_conditional_forced": 6, "class_conditional": 6,
        "class_conditional_forced": 12, "step_conditional": 3, "step_conditional_forced": 6, "rejection_sampling": 6,
    }  # fmt: skip
    for row in rows:
        if row["method"] == "rejection_sampling":
            over = row["finish_reason"] == "rejected"
            assert row["num_rejected_tokens"] == (row["num_tries"] - 1 + over) * (row["max_thinking_tokens"] + 1)
            assert row["num_thinking_tokens"] <= row["max_thinking_tokens"] + over
        else:
            assert row["num_thinking_tokens"] <= row["max_thinking_tokens"]
            assert (row["num_tries"], row["num_rejected_tokens"]) == (1, 0)
    asked = "".join(prompts)
    for text in ("up to 8 tokens.", "up to 16 tokens.", "up to 2 steps.", "a short amount of", "a long amount of"):
        assert text in asked
    # Per problem one trace of budget forcing, and one for each amount of tokens, forced and unforced together.
    assert sum(n for text, n in prompts.items() if "0 + 1?" in text and "tokens." in text) == 2
    table = format_thinking_table(rows).split("\n\n")[-1]
    assert all(f"\n{method}" in table for method in counts) and len(summarise_curves(rows)) == len(counts)
    before = (tmp_path / "rows.jsonl").read_bytes()
    for changes in runs:
        sweep(replace(config, **{"max_thinking_tokens": (5, 40), "num_ignore": (0,), **changes}))
    assert (tmp_path / "rows.jsonl").read_bytes() == before


@pytest.mark.integration
def test_a_prompted_answer_is_that_of_the_question_with_the_prompt(config, tmp_path):
    asked = Condition(12, max_answer_tokens=8, dtype="float32", method="token_conditional", requested="8")
    prompted = read_samples(evaluate(EvaluateConfig(config.decoding, asked)))
    lines = [json.loads(line) for line in (tmp_path / "sums.jsonl").read_text().splitlines()]
    lines = [line | {"question": f"{line['question']}\n\nThink for up to 8 tokens."} for line in lines]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    decoding = replace(config.decoding, benchmark=str(tmp_path / "asked.jsonl"), output=str(tmp_path / "plain.jsonl"))
    plain = read_samples(evaluate(EvaluateConfig(decoding, replace(asked, method="budget_forcing", requested=""))))
    texts = ("thinking", "answer_text", "num_thinking_tokens")
    assert [[row[name] for name in texts] for row in prompted] == [[row[name] for name in texts] for row in plain]
