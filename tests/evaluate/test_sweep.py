"""`sweep.py`: a grid of conditions, one row per point, problem and sample."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from s1jax.data.condition import Condition
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig, traces_of
from s1jax.evaluate.run import write_samples
from s1jax.evaluate.sweep import SweepConfig, grid
from s1jax.results.metrics import thinking_curve
from s1jax.results.samples import COLUMNS, read_samples, row_key
from s1jax.runtime.config import parse_command
from tests.support.runs import evaluate, sweep
from tests.support.samples import comparable


def drawn(config, **changes):
    """The config with answers drawn at temperature 1, and other changes of its condition."""
    return replace(config, condition=replace(config.condition, temperature=1.0, **changes))


@pytest.mark.integration
def test_a_sweep_is_one_row_per_point_problem_and_sample_with_the_contracts_columns(config):
    config = replace(drawn(config), num_samples=2)
    output, asked = write_samples(config.decoding, grid(config), config.num_samples)
    rows = read_samples(output)
    assert {row_key(row) for row in rows} == asked
    keys = {(r["problem_id"], r["max_thinking_tokens"], r["num_ignore"], r["sample_index"]) for r in rows}
    assert len(rows) == len(keys) == 3 * 3 * 2 * 2
    written = json.loads(Path(config.decoding.output).read_text().splitlines()[0])
    assert list(written) == list(COLUMNS)
    for row in rows:
        assert row["num_thinking_tokens"] <= row["max_thinking_tokens"]
        assert row["num_ignored"] <= row["num_ignore"]
    assert all(point["num_over_budget"] == 0 for point in thinking_curve(rows))


@pytest.mark.integration
def test_points_and_number_of_rows_change_no_row(config, tmp_path):
    apart = []
    for i, condition in enumerate(grid(config)):
        decoding = replace(config.decoding, output=str(tmp_path / f"point{i}.jsonl"), num_rows=2)
        apart += comparable(evaluate(EvaluateConfig(decoding, condition)))
    assert comparable(sweep(config)) == sorted(apart)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_thinking_tokens=(-1,)), "none negative"),
        (dict(num_ignore=()), "at least one value"),
        (dict(num_samples=0), "num_samples is 0"),
        (dict(ignore_text=()), "give at least one text"),
        (dict(ignore_text=("Wait", "\ud800")), "lone surrogate"),
        (dict(ignore_text=("Wait", "Hmm"), num_ignore=(0,)), "no attempt to end thinking is ignored"),
        (dict(min_thinking_tokens=(50,)), "above every budget"),
        (dict(max_thinking_tokens=(600,)), "the model has 512"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_is_written(config, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sweep(replace(config, **changes))
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_point_whose_minimum_is_above_its_budget_is_left_out():
    config = SweepConfig(
        decoding=DecodingConfig("model", "problems", "rows"), max_thinking_tokens=(5, 20), min_thinking_tokens=(0, 10)
    )
    assert [tuple(c.limits) for c in grid(config)] == [(5, 0, 0), (20, 0, 0), (20, 10, 0)]
    (trace,) = traces_of(grid(config))
    assert tuple(trace.condition.limits) == (20, 10, 0)


def test_a_limit_outside_a_sweeps_axes_is_refused(config):
    with pytest.raises(ValueError, match="a sweep takes its limits from lists of its own: give TraceSettings"):
        replace(config, condition=Condition(0, num_ignore=2))


def test_the_condition_and_the_axes_of_a_sweep_can_be_given_on_the_command_line():
    argv = [
        "quickstart_votes",
        "--top-p",
        "0.9",
        "--int8",
        "weights",
        "--max-thinking-tokens",
        "8",
        "16",
    ]
    config = parse_command("", SweepConfig, argv)
    condition = Condition(16, max_answer_tokens=8, temperature=1.0, top_p=0.9, dtype="float32", int8=("weights",))
    (trace,) = traces_of(grid(config))
    assert trace.condition == condition and len(grid(config)) == 2


def test_each_ignore_text_is_a_point_and_a_trace_only_where_something_is_ignored():
    argv = ["quickstart_ignore_texts", "--max-thinking-tokens", "8", "16", "--num-ignore", "0", "2"]
    config = parse_command("", SweepConfig, [*argv, "--ignore-text", "", "Hmm", "Wait", "Hmm"])
    points = [(c.max_thinking_tokens, c.num_ignore, c.ignore_text) for c in grid(config)]
    assert points == [(b, k, text) for b in (8, 16) for k in (0, 2) for text in ("", "Hmm", "Wait")[: 3 if k else 1]]
    traces = traces_of(grid(config))
    assert [(len(trace.conditions), trace.condition.ignore_text) for trace in traces] == [
        (4, ""),
        (2, "Hmm"),
        (2, "Wait"),
    ]


@pytest.mark.integration
def test_a_sweep_of_ignore_texts_equals_a_sweep_of_each_text(config, tmp_path):
    config = replace(drawn(config), num_ignore=(0, 2), ignore_text=("Wait", "", "Hmm"))
    rows = comparable(sweep(config))
    apart = []
    for i, text in enumerate(config.ignore_text):
        decoding = replace(config.decoding, output=str(tmp_path / f"text{i}.jsonl"))
        one = replace(config, decoding=decoding, ignore_text=(text,), num_ignore=(0, 2) if i == 0 else (2,))
        apart += comparable(sweep(one))
    assert rows == sorted(apart) and len(rows) == 3 * 3 * (1 + 3)


@pytest.mark.integration
def test_rejection_resumes_and_each_budget_alone_gives_the_same_rows(config, tmp_path):
    settings = replace(config.condition, temperature=1.0)
    config = replace(
        config, condition=settings, method=("rejection_sampling",), max_tries=4, num_ignore=(0,), num_samples=2,
        max_thinking_tokens=(3, 10, 40),
    )  # fmt: skip
    whole = comparable(sweep(config))
    apart = replace(config.decoding, output=str(tmp_path / "apart.jsonl"))
    for condition in grid(config):
        write_samples(apart, [condition], 2)
    assert comparable(tmp_path / "apart.jsonl") == whole
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[::3]))
    assert comparable(sweep(config)) == whole
