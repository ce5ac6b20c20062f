"""`evaluate.py`, `sweep.py` and `generate.py` on a tiny random model: rows, resume, and the streamed text."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_chat import byte_tokenizer

from s1jax import checkpoint, generate, scheduler
from s1jax.evaluate import DecodingConfig, EvaluateConfig, evaluate
from s1jax.metrics import SampleRow, read_samples, thinking_curve
from s1jax.model import init_params
from s1jax.request import Completion
from s1jax.sharding import MeshConfig, ShardingRules, make_mesh
from s1jax.sweep import SweepConfig, grid, sweep


@pytest.fixture
def config(tiny_model, tmp_path):
    questions = [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return SweepConfig(
        decoding=DecodingConfig(
            model=tiny_model, benchmark=str(tmp_path / "sums.jsonl"), output=str(tmp_path / "rows.jsonl"),
            max_answer_tokens=8, num_rows=8, dtype="float32",
        ),
        max_thinking_tokens=(0, 5, 20),
        num_ignore=(0, 2),
    )  # fmt: skip


def test_a_sweep_is_one_row_per_point_problem_and_sample_with_the_contracts_columns(config):
    rows = read_samples(sweep(replace(config, num_samples=2, temperature=1.0)))
    keys = {(r["problem_id"], r["max_thinking_tokens"], r["num_ignore"], r["sample_index"]) for r in rows}
    assert len(rows) == len(keys) == 3 * 3 * 2 * 2
    written = json.loads(Path(config.decoding.output).read_text().splitlines()[0])
    assert set(written) == SampleRow.__required_keys__
    for row in rows:
        assert row["num_thinking_tokens"] <= row["max_thinking_tokens"]
        assert row["num_ignored"] <= row["num_ignore"]
    assert all(point["num_over_budget"] == 0 for point in thinking_curve(rows))


def test_points_and_number_of_rows_change_no_row(config, tmp_path):
    def comparable(path):
        return sorted(json.dumps({k: v for k, v in r.items() if k != "config_hash"}) for r in read_samples(path))

    together = comparable(sweep(config))
    apart = []
    for i, point in enumerate(grid(config)):
        decoding = replace(config.decoding, output=str(tmp_path / f"point{i}.jsonl"), num_rows=2)
        apart += comparable(evaluate(EvaluateConfig(decoding, point)))
    assert together == sorted(apart)


def test_a_killed_run_goes_on_where_it_stopped(config, monkeypatch):
    whole = sweep(config).read_text().splitlines(keepends=True)
    torn = "".join(whole[:8]) + whole[8][:40]
    Path(config.decoding.output).write_text(torn)
    decoded = []
    check = scheduler.Decoder.check
    monkeypatch.setattr(
        scheduler.Decoder, "check", lambda self, request: decoded.append(request) or check(self, request)
    )
    sweep(config)
    assert sorted(Path(config.decoding.output).read_text().splitlines(keepends=True)) == sorted(whole)
    assert sum(len(request.points) for request in set(decoded)) == len(whole) - 8


def test_rows_of_another_config_are_not_added_to(config):
    sweep(config)
    before = Path(config.decoding.output).read_text()
    with pytest.raises(ValueError, match="holds rows of another config"):
        sweep(replace(config, decoding=replace(config.decoding, max_answer_tokens=9)))
    assert Path(config.decoding.output).read_text() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_thinking_tokens=(-1,)), "none negative"),
        (dict(num_ignore=()), "at least one value"),
        (dict(num_samples=0), "num_samples is 0"),
        (dict(min_thinking_tokens=(50,)), "above every budget"),
        (dict(max_thinking_tokens=(600,)), "the model has 512"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_is_written(config, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sweep(replace(config, **changes))
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_point_whose_minimum_is_above_its_budget_is_left_out():
    config = SweepConfig(decoding=None, max_thinking_tokens=(5, 20), min_thinking_tokens=(0, 10))
    assert [(p.max_thinking_tokens, p.min_thinking_tokens) for p in grid(config)] == [(5, 0), (20, 0), (20, 10)]


def test_generate_streams_the_completions_text_with_its_parts_marked(tiny_model):
    out = io.StringIO()
    config = generate.GenerateConfig(
        model=tiny_model, prompt="1 + 1?", max_thinking_tokens=60, min_thinking_tokens=60, ignore_text="Wait", max_answer_tokens=8,
        dtype="float32", temperature=1.0,
    )  # fmt: skip
    completion = generate.generate(config, out)
    text = out.getvalue()
    assert completion.num_thinking == 60 and completion.num_ignored > 0
    assert text.startswith("--- thinking ---\n") and text.count("--- answer ---\nFinal Answer:") == 1
    assert text.count("[[Wait]]") == completion.num_ignored
    assert text.index("--- answer ---") > text.rindex("[[Wait]]")


def test_streaming_a_character_waits_for_all_its_bytes():
    tokenizer = byte_tokenizer()
    ids = tokenizer("é→🙂", add_special_tokens=False)["input_ids"]
    out = io.StringIO()
    stream = generate.TranscriptStream(tokenizer, out)
    for n in range(1, len(ids) + 1):
        stream.show(Completion(tuple(ids[:n]), (False,) * n, n, 0, 0, False))
    assert out.getvalue() == "--- thinking ---\né→🙂"


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_model, tmp_path):
    mesh = make_mesh(MeshConfig())
    config, _ = checkpoint.load_model(tiny_model, mesh, ShardingRules(), "stacked")
    config = replace(config, vocab_size=200)
    params = init_params(config, ShardingRules(), "stacked", mesh, seed=0)
    checkpoint.save_hf(tmp_path / "hf", config, params, "float32", tiny_model)
    with pytest.raises(ValueError, match="the tokenizer has 259 ids, the model only 200"):
        scheduler.load_decoder(str(tmp_path / "hf"), "float32")
