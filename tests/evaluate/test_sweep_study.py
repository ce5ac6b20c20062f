"""`sweep.py`: one file of sample rows holds a whole study: several models, benchmarks and conditions."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from s1jax.checkpoint.export import save_hf
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.data.condition import TraceSettings
from s1jax.decode.engine import Engine
from s1jax.evaluate import run
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig
from s1jax.results.figures import plot_thinking
from s1jax.results.samples import read_samples, row_key
from s1jax.results.tables import format_thinking_table
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh
from tests.support.models import random_params
from tests.support.runs import sweep

pytestmark = pytest.mark.integration

BUDGETS, TOP_P = (4, 12), (0.9, 1.0)


@pytest.fixture
def requests(monkeypatch):
    """Every request that is decoded."""
    decoded, stream = [], Engine.stream

    def record(engine, requests, **options):
        decoded.extend(requests)
        return stream(engine, requests, **options)

    monkeypatch.setattr(Engine, "stream", record)
    return decoded


@pytest.fixture
def other_model(tiny_model, tmp_path):
    """A checkpoint with the tokenizer of `tiny_model`, but other weights."""
    mesh = make_mesh(MeshConfig())
    config, _ = load_model(resolve_source(tiny_model), mesh, ShardingRules(), "stacked")
    save_hf(tmp_path / "other", config, random_params(config, "stacked", mesh, seed=1), "float32", Path(tiny_model))
    return str(tmp_path / "other")


@pytest.fixture
def study(tiny_model, other_model, tmp_path):
    """Eight sweeps into one file: two models, two benchmarks, two values of top_p."""
    benchmarks = []
    for name in ("sums", "differences"):
        benchmarks.append(str(tmp_path / f"{name}.jsonl"))
        # The ids are those of the other benchmark's problems.
        problems = [dict(id=f"p{i}", question=f"{i}, {name}?", answer=str(i)) for i in range(2)]
        Path(benchmarks[-1]).write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return [
        SweepConfig(
            decoding=DecodingConfig(model, benchmark, str(tmp_path / "rows.jsonl"), num_rows=8),
            max_thinking_tokens=BUDGETS,
            condition=TraceSettings(max_answer_tokens=8, temperature=1.0, top_p=top_p, dtype="float32"),
        )
        for model, benchmark, top_p in itertools.product((tiny_model, other_model), benchmarks, TOP_P)
    ]


def test_a_study_resumes_exactly_what_is_missing_and_plot_keeps_its_curves_apart(
    study, requests, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "commit", lambda: "the same")  # an edit of the checkout between two runs is no difference
    paths = {sweep(config) for config in study}
    (path,) = paths
    whole = path.read_text().splitlines(keepends=True)
    rows = read_samples(path)
    assert len(rows) == len({row_key(row) for row in rows}) == 8 * 2 * len(BUDGETS)
    assert len({(row["model"], row["weights"]) for row in rows}) == len({row["model"] for row in rows}) == 2
    assert len(requests) == 8 * 2

    seed = 0
    kept = sorted(random.Random(seed).sample(range(len(whole)), 21))
    path.write_text("".join(whole[i] for i in kept))
    requests.clear()
    for config in study:
        sweep(config)
    after = path.read_text().splitlines(keepends=True)
    assert after[: len(kept)] == [whole[i] for i in kept], "rows that are there are left alone"
    assert sorted(after) == sorted(whole), f"kept {kept} of seed {seed}"
    assert sum(len(request.points) for request in requests) == len(whole) - len(kept)
    requests.clear()
    for config in study:
        sweep(config)
    assert requests == []

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), path.write(b"picture")))
    points = plot_thinking(rows, tmp_path / "thinking.png")
    assert [point["n"] for point in points] == [2] * 8 * len(BUDGETS), "no point pools rows of two conditions"
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert len(set(labels)) == len(labels) == 4
    assert sorted({label.split(", ")[1] for label in labels}) == [
        "top-p 0.9: thinking budget",
        "top-p 1: thinking budget",
    ]
    for ax in figures[0].axes:
        lines = [line for line in ax.lines if line.get_linestyle() == "-"]
        assert [len(line.get_xdata()) for line in lines] == [len(BUDGETS)] * 4
    *titles, _ = [block.splitlines()[0] for block in format_thinking_table(rows).split("\n\n")]
    assert len(set(titles)) == len(titles) == 8 and all("top-p " in title for title in titles)


def test_weights_that_share_a_models_name_make_curves_and_rows_of_their_own(study, other_model):
    config = study[-1]
    rows = read_samples(sweep(config))
    weights = Path(other_model, "model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    both = read_samples(sweep(config))
    assert both[: len(rows)] == rows and len(both) == 2 * len(rows)
    *titles, _ = [block.splitlines()[0] for block in format_thinking_table(both).split("\n\n")]
    assert {title.rpartition(", ")[2] for title in titles} == {f"weights {row['weights'][:6]}" for row in both}
    assert len(titles) == 2 and replace(config).decoding.model in titles[0]
