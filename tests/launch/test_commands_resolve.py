"""Every command resolves its model once, uses the weights of that commit, and builds one chat format."""

import io
import json
from pathlib import Path

import huggingface_hub
import jax
import pytest

from s1jax.checkpoint.export import save_hf
from s1jax.checkpoint.orbax import read_metadata
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition, TraceSettings
from s1jax.data.examples import DataConfig
from s1jax.decode.generate import GenerateConfig, generate
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig
from s1jax.train.config import TrainConfig
from s1jax.train.run import train
from tests.support.checkpoints import RULES, FakeHub, assert_same, convert, load, mesh_of
from tests.support.runs import sweep
from tests.support.training import OPTIMIZER, ROWS

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.integration]


@pytest.fixture(scope="module")
def commits(tiny_model, tmp_path_factory):
    """Two commits of a model, with different weights."""
    config, params = load_model(resolve_source(tiny_model), mesh_of(), RULES, "stacked", dtype="float32")
    other = tmp_path_factory.mktemp("hub") / "other"
    save_hf(other, config, jax.tree.map(lambda x: x / 2, params), "float32", Path(tiny_model))
    return [tiny_model, other]


@pytest.fixture
def hub(commits, tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "snapshots", commits)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.fixture
def formats(monkeypatch):
    """The chat formats that are built."""
    built, of = [], ChatFormat.of.__func__
    monkeypatch.setattr(ChatFormat, "of", classmethod(lambda cls, *args: built.append(of(cls, *args)) or built[-1]))
    return built


def assert_resolved_once(hub):
    first = next(iter(hub.commits))
    assert hub.num_resolved == 1 and {revision for _, revision, _ in hub.calls[1:]} <= {first}
    return first


def test_training_resolves_once_and_records_the_commit_whose_weights_it_trained(hub, formats, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = DataConfig(source=str(rows), max_length=512, batch_size=8, num_epochs=1, pad_multiple=64)
    output = tmp_path / "run"
    config = TrainConfig("a/b", str(output), data, OPTIMIZER, dtype="float32", eval_source=str(rows))
    train(config)
    commit = assert_resolved_once(hub)
    assert len(formats) == 1
    assert [weights for *_, weights in hub.calls] == [False, True], "the weights are downloaded last"
    assert json.loads((output / "train_config.json").read_text())["revision"] == commit
    metadata = read_metadata(next((output / "checkpoints").iterdir()))
    assert metadata["revision"] == metadata["identity"]["weights"] == commit
    # A run that began before revisions were recorded resumes from the same weights.
    assert "revision" not in metadata["identity"]


def test_evaluation_resolves_once_and_builds_one_format_for_all_rows(hub, formats, tmp_path):
    problems, output = tmp_path / "sums.jsonl", tmp_path / "rows.jsonl"
    problems.write_text("".join(json.dumps(dict(question=f"{i} + 1?", answer=str(i + 1))) + "\n" for i in range(3)))
    decoding = DecodingConfig(model="a/b", benchmark=str(problems), output=str(output))
    condition = TraceSettings(max_answer_tokens=4, dtype="float32")
    config = SweepConfig(decoding=decoding, max_thinking_tokens=(0, 5), condition=condition)
    sweep(config)
    assert len(output.read_text().splitlines()) == 6
    assert_resolved_once(hub)
    assert len(formats) == 1


def test_generate_resolves_once_and_builds_one_format(hub, formats):
    condition = Condition(max_thinking_tokens=4, max_answer_tokens=2, dtype="float32")
    generate(GenerateConfig("a/b", "1 + 1?", condition), io.StringIO())
    assert_resolved_once(hub)
    assert len(formats) == 1


def test_convert_resolves_once_and_writes_the_weights_of_that_commit(hub, commits, tmp_path):
    assert convert("a/b", tmp_path / "out") == 0
    assert_resolved_once(hub)
    assert_same(load(tmp_path / "out")[1], load(commits[0])[1])
