"""`control_data.py`: which labels rows get, which rows are rejected, and that a model learns control from them."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from data_tools.curation import control_data
from data_tools.curation.control_data import ControlDataConfig, label_rows, write_mixture
from s1jax.checkpoint.source import load_tokenizer, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition
from s1jax.data.control_methods import count_steps
from s1jax.data.examples import DataConfig, encode_rows
from s1jax.data.rows import read_rows
from s1jax.decode.engine import load_engine
from s1jax.decode.questions import request_of
from s1jax.runtime import jsonl
from s1jax.runtime.sharding import make_mesh
from s1jax.train import run
from s1jax.train.config import TrainConfig
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.run import train
from tests.support.training import ROW

METHODS = ("budget_forcing", "token_conditional", "step_conditional")


@pytest.fixture
def config(tmp_path, tiny_model):
    jsonl.write(tmp_path / "train.jsonl", [ROW, {**ROW, "thinking": "a\n\nb\n\nc"}])
    return ControlDataConfig(str(tmp_path / "train.jsonl"), tmp_path / "out" / "mixture.jsonl", tiny_model)


def test_each_row_is_written_once_per_method_with_the_label_of_its_trace():
    row = {**ROW, "thinking": "one\n\ntwo\n\nthree"}
    labelled, rejects = label_rows([row, ROW], METHODS, len)
    assert labelled == [
        row,
        {**row, "method": "token_conditional", "requested": "16"},
        {**row, "method": "step_conditional", "requested": "4"},
        ROW,
        {**ROW, "method": "token_conditional", "requested": "1"},
        {**ROW, "method": "step_conditional", "requested": "1"},
    ]
    assert not rejects
    assert label_rows([row], ("step_conditional",), len)[0] == labelled[2:3]


def test_a_row_that_has_a_label_is_rejected():
    row = {**ROW, "method": "token_conditional", "requested": "8"}
    assert label_rows([row], METHODS, len) == ([], [{**row, "reason": "it has a label already: token_conditional 8"}])


def test_the_files_hold_every_row_and_are_read_back_as_they_were_written(config):
    bad = {"question": "q", "note": "no trace"}
    done = {**ROW, "method": "step_conditional", "requested": "4"}
    rows = [row for _, row in jsonl.read(config.source)]
    jsonl.write(config.source, [*rows, bad, done])
    labelled = write_mixture(config)
    assert read_rows(str(config.output)) == (labelled, []) and len(labelled) == 3 * len(rows)
    # The model's tokenizer has one token per byte; a line break stands before and after a trace.
    labels = [row.get("requested") for row in labelled]
    assert labels == [None, "4", "1", None, "16", "4"]
    rejects = [row for _, row in jsonl.read(config.rejects)]
    assert [(row["question"], row["reason"][:22]) for row in rejects] == [
        ("q", "no trace is found in t"),
        ("q", "it has a label already"),
    ]


def test_writing_again_changes_nothing_and_files_of_other_rows_are_kept(config):
    write_mixture(config)
    content = config.output.read_bytes()
    write_mixture(config)
    assert config.output.read_bytes() == content
    with pytest.raises(ValueError, match=r"mixture\.jsonl holds other rows: remove it"):
        write_mixture(replace(config, methods=("token_conditional",)))
    assert config.output.read_bytes() == content
    config.output.unlink()
    with pytest.raises(ValueError, match=r"mixture\.rejects\.jsonl holds other rows: remove it"):
        write_mixture(config)


def test_rows_that_all_have_labels_are_an_error_that_writes_nothing(config):
    jsonl.write(config.source, [{**ROW, "method": "token_conditional", "requested": "8"}])
    with pytest.raises(ValueError, match=r"no row of .*train\.jsonl can be labelled: it has a label already"):
        write_mixture(config)
    assert not config.output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(methods=()), "must name each method once"),
        (dict(methods=("token_conditional", "token_conditional")), "must name each method once"),
        (dict(methods=("class_conditional",)), "methods is"),
        (dict(output=Path("{tmp}/train.jsonl")), "would change"),
        (dict(source="{tmp}", output=Path("{tmp}/x.jsonl")), "would change"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config, changes, message, tmp_path):
    changes = {
        name: type(value)(str(value).format(tmp=tmp_path)) if isinstance(value, str | Path) else value
        for name, value in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_the_command_line_names_the_rows_the_tokenizer_and_the_methods(config, monkeypatch, caplog):
    argv = [config.source, "--output", str(config.output), "--tokenizer", config.tokenizer]
    monkeypatch.setattr(sys, "argv", ["control_data", *argv, "--methods", "token_conditional", "step_conditional"])
    with caplog.at_level("INFO", "data_tools"):
        control_data.main()
    assert [row["requested"] for _, row in jsonl.read(config.output)] == ["4", "1", "16", "4"]
    assert "token_conditional: 2 rows; labels: 4 (1 x), 16 (1 x)" in caplog.text


def train_on_mixture(config, output, monkeypatch, **changes):
    """Train on one device for so many epochs. Return the run's log."""
    monkeypatch.setattr(run, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
    data = DataConfig(str(config.output), max_length=512, pad_multiple=64, **changes)
    optimizer = OptimizerConfig(learning_rate=0.01, weight_decay=0)
    train(TrainConfig(config.tokenizer, str(output), data, optimizer, dtype="float32", save_every=999, trackers=()))
    return [row for _, row in jsonl.read(output / "metrics.jsonl")]


@pytest.mark.integration
@pytest.mark.usefixtures("quick_compilation")
def test_a_run_trains_on_every_row_of_a_mixture(config, tmp_path, monkeypatch):
    rows = write_mixture(config)
    log = train_on_mixture(config, tmp_path / "run", monkeypatch, batch_size=3, num_epochs=1)
    chat = ChatFormat.of(load_tokenizer(resolve_source(config.tokenizer)))
    assert len(log) == 2
    assert sum(step["tokens"] for step in log) == encode_rows(rows, chat, DataConfig("-"))[0].lengths.sum()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_a_model_that_knows_a_mixture_by_heart_counts_its_steps_down(config, tmp_path, monkeypatch):
    jsonl.write(config.source, [ROW | {"question": "2+2?", "thinking": "Add.\n\nIt is 4.\n\nYes.", "answer": "4"}])
    write_mixture(config)
    train_on_mixture(config, tmp_path / "run", monkeypatch, batch_size=3, num_epochs=120)
    source = resolve_source(tmp_path / "run" / "hf")
    condition = Condition(100, max_answer_tokens=20, method="step_conditional", requested="4", dtype="float32")
    chat = ChatFormat.of(load_tokenizer(source), condition.thinking_format)
    engine, _ = load_engine(source, "float32", num_rows=1, chat=chat)
    ((_, (answer,)),) = engine.stream([request_of(chat, "2+2?", condition)])
    thinking, answer_text = chat.split_completion(answer.tokens, answer.num_thinking)
    assert thinking == "4 steps left\nAdd.\n<|im_start|>3 steps left\nIt is 4.\n<|im_start|>2 steps left\nYes.\n"
    assert (answer_text, answer.finish_reason, count_steps(thinking)) == ("\nAnswer: 4", "stop", 3)
