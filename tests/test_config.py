"""`config.py`: configs by name, overrides by field, and one message for every mistake."""

import json

import pytest

from s1jax import config
from s1jax.evaluate import EvaluateConfig
from s1jax.sweep import SweepConfig
from s1jax.train import TrainConfig


@pytest.mark.parametrize("name", config.config_names())
def test_every_config_says_what_it_reproduces_and_how_to_run_it(name):
    module = config.ROOT / "configs" / f"{name}.py"
    text = module.read_text()
    loaded = config.load_config(name, object)
    assert name in text.split('"""')[1], "the docstring gives the command"
    assert isinstance(json.loads(config.to_json(loaded)), dict)


def test_overrides_reach_nested_fields():
    parsed = config.parse_command(
        "", TrainConfig, ["s1_32b", "--data.batch-size", "4", "--optimizer.learning_rate", "2e-5"]
    )
    assert (parsed.data.batch_size, parsed.optimizer.learning_rate, parsed.data.num_epochs) == (4, 2e-5, 5)
    assert parsed.model == "Qwen/Qwen2.5-32B-Instruct"


def test_a_config_may_be_a_file_anywhere(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\nfrom configs.s1_7b import CONFIG as BASE\nCONFIG = replace(BASE, output='x')\n"
    )
    assert config.load_config(str(path), TrainConfig).output == "x"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nonesuch"], "no config 'nonesuch'.*s1_32b"),
        ([], "which config.*s1_32b"),
        (["s1_32b", "--learning-rate", "1"], r"unknown field --learning-rate.*--optimizer.learning-rate"),
        (["s1_32b_aime24"], "no CONFIG of type TrainConfig; it holds SweepConfig"),
    ],
)
def test_a_mistake_is_one_error_that_lists_what_is_valid(argv, message):
    with pytest.raises(ValueError, match=message):
        config.parse_command("", TrainConfig, argv)


def test_a_value_of_the_wrong_type_exits_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as exit_info:
        config.parse_command("", TrainConfig, ["s1_32b", "--data.batch-size", "many"])
    assert exit_info.value.code not in (0, None)
    assert "many" in capsys.readouterr().err


@pytest.mark.parametrize("config_type", [TrainConfig, SweepConfig, EvaluateConfig])
def test_help_explains_every_field(config_type, capsys):
    name = {TrainConfig: "s1_32b", SweepConfig: "s1_32b_aime24", EvaluateConfig: "s1_32b_math500"}[config_type]
    with pytest.raises(SystemExit) as exit_info:
        config.parse_command("what it does", config_type, [name, "--help"])
    assert exit_info.value.code == 0
    help_text = capsys.readouterr().out
    for flag in config.field_flags(config_type):
        assert flag in help_text


def test_the_hash_changes_with_a_field_and_not_with_an_excluded_one():
    a = config.load_config("s1_32b", TrainConfig)
    b = config.load_config("s1_7b", TrainConfig)
    assert config.config_hash(a) != config.config_hash(b)
    assert config.config_hash(a, exclude=("model", "output")) == config.config_hash(b, exclude=("model", "output"))


def test_bad_input_is_one_line_and_a_nonzero_exit(capsys):
    def main():
        raise ValueError("the shop is closed: come tomorrow")

    with pytest.raises(SystemExit) as exit_info:
        config.run_command(main)
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == "error: the shop is closed: come tomorrow\n"
