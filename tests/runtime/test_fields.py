"""`fields.py`: values of configs have the types of their fields, and paths do not depend on where a command is started."""

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from s1jax.data.condition import Condition
from s1jax.data.examples import DataConfig
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig
from s1jax.evaluate.sweep import SweepConfig
from s1jax.runtime import fields
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import with_paths
from s1jax.runtime.sharding import MeshConfig, ShardingRules
from s1jax.train.config import TrainConfig
from s1jax.train.step import StepConfig

DECODING = DecodingConfig("m", "b", "o")
CONFIGS = [
    EvaluateConfig(DECODING, Condition(8)),
    SweepConfig(DECODING, (8,)),
    TrainConfig("m", "o", DataConfig("d")),
]
WITH_FIELDS = [
    *CONFIGS,
    DECODING,
    Condition(8),
    DataConfig("d"),
    StepConfig(),
    ShardingRules(),
]  # fmt: skip  (in tests beartype checks the optimizer's)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SweepConfig(DECODING, 64), "max_thinking_tokens is 64: it must be a tuple, each item an integer"),
        (lambda: SweepConfig(DECODING, ("16",)), "max_thinking_tokens is ('16',): it must be a tuple"),
        (lambda: SweepConfig(DECODING, (True,)), "max_thinking_tokens is (True,): it must be a tuple"),
        (lambda: TrainConfig("m", 7, DataConfig("d")), "output is 7: it must be text"),
        (lambda: TrainConfig("m", "o", "d"), "data is 'd': it must be a DataConfig"),
        (lambda: TrainConfig("m", "o", DataConfig("d"), eval_source=3), "eval_source is 3: it must be text or None"),
        (lambda: TrainConfig("m", "o", DataConfig("d"), keep=True), "keep is True: it must be an integer"),
        (lambda: TrainConfig("m", "o", DataConfig("d"), mesh=MeshConfig(tensor="2")), "tensor is '2': it must be an int"),
        (lambda: DataConfig("d", batch_size=4.0), "batch_size is 4.0: it must be an integer"),
        (lambda: DataConfig("d", pack=1), "pack is 1: it must be True or False"),
        (lambda: TrainConfig("m", "o", DataConfig("d"), lora_alpha="32"), "lora_alpha is '32': it must be a number"),
        (lambda: Condition(8, dtype="float31"), "dtype is 'float31': it must be one of bfloat16, float32"),
        (lambda: Condition(8, int8=("cash",)), "int8 is ('cash',): it must be a tuple, each item one of weights, cache"),
        (lambda: StepConfig(attention="fast"), "attention is 'fast': it must be one of "),
        (lambda: Condition("8" * 500), "max_thinking_tokens is '8888"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_its_field(make, message):
    with pytest.raises(UserError, match="^" + re.escape(message)) as error:
        make()
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("config", WITH_FIELDS, ids=lambda config: type(config).__name__)
def test_every_field_of_every_config_is_checked(config):
    for field in dataclasses.fields(config):
        with pytest.raises(UserError, match=f"^{field.name} is "):
            dataclasses.replace(config, **{field.name: object()})


def test_an_integer_is_a_number():
    assert Condition(8, temperature=1).temperature == 1


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The folder of a config, which has `mine` and `data/mine.jsonl`, and the project's, which has `base/model`."""
    monkeypatch.setenv("HOME", "/home/me")
    for path in ("own/data/mine.jsonl", "own/mine", "project/base/model", "elsewhere"):
        (tmp_path / path).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return [tmp_path / "own", tmp_path / "project"]


@pytest.mark.parametrize(
    ("value", "read", "written"),
    [
        ("mine", "{own}/mine", "{own}/mine"),
        ("data/mine.jsonl", "{own}/data/mine.jsonl", "{own}/data/mine.jsonl"),
        ("base/model", "{project}/base/model", "{own}/base/model"),
        ("runs/new/hf", "{own}/runs/new/hf", "{own}/runs/new/hf"),
        ("new.jsonl", "{own}/new.jsonl", "{own}/new.jsonl"),
        ("Qwen/Qwen2.5-0.5B@main", "Qwen/Qwen2.5-0.5B@main", "{own}/Qwen/Qwen2.5-0.5B@main"),
        ("aime24", "aime24", "{own}/aime24"),
        ("/data/x", "/data/x", "/data/x"),
        ("~/x", "/home/me/x", "/home/me/x"),
    ],
)
def test_a_path_of_a_config_does_not_depend_on_the_working_directory(value, read, written, folders, monkeypatch):
    read, written = (text.format(own=folders[0], project=folders[1]) for text in (read, written))
    config = TrainConfig(value, value, DataConfig(value), eval_source=value)
    for settled in (with_paths(config, folders), with_paths(with_paths(config, folders))):
        assert (settled.model, settled.data.source, settled.eval_source) == (read,) * 3 and settled.output == written


def test_a_path_keeps_its_short_form_in_the_folder_it_starts_at(folders, monkeypatch):
    monkeypatch.chdir(folders[0])
    assert with_paths(DecodingConfig("mine", "aime24", "out/rows.jsonl"), folders).output == "out/rows.jsonl"


def test_on_a_command_line_only_the_home_directory_is_replaced(folders):
    config = with_paths(DecodingConfig("~/m", "b.jsonl", "~/rows.jsonl"))
    assert (config.model, config.benchmark, config.output) == ("/home/me/m", "b.jsonl", "/home/me/rows.jsonl")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_field_that_names_a_place_is_marked_as_a_path(config):
    for part in (config, *(getattr(config, field.name) for field in dataclasses.fields(config))):
        if dataclasses.is_dataclass(part):
            for name, hint in get_type_hints(type(part), include_extras=True).items():
                is_place = name in ("model", "benchmark", "output", "source", "eval_source") or hint is Path
                assert is_place == (fields._role(hint) is not None), name
