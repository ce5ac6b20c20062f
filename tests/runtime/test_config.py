"""`config.py`: configs by name, overrides by field, and one message for every mistake."""

import ast
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from data_tools.curation.config import CurationConfig
from s1jax.evaluate.conditions import EvaluateConfig
from s1jax.evaluate.sweep import SweepConfig, grid
from s1jax.runtime import config
from s1jax.runtime.errors import UserError
from s1jax.train.config import TrainConfig
from tests.support.flags import field_flags

COMMANDS = {"train": TrainConfig, "sweep": SweepConfig, "evaluate": EvaluateConfig}


def record(name):
    """The docstring of a config's module."""
    return ast.get_docstring(ast.parse((config.ROOT / "configs" / f"{name}.py").read_text()))


@pytest.mark.parametrize("name", config.config_names())
def test_every_config_gives_the_command_that_runs_it(name):
    assert isinstance(json.loads(json.dumps(dataclasses.asdict(config.load_config(name, object)), default=str)), dict)
    text = record(name).replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.strip().startswith("python ")]
    _, script, *argv = line.split()
    if script == "-m" and argv[0] == "data_tools.curation":
        assert argv[1] == name
        config.parse_command("", CurationConfig, argv[1:])
        return
    if script == "-m":
        assert argv[-1] == name
        return
    assert (config.ROOT / script).is_file()
    assert argv[0] == name
    config.parse_command("", COMMANDS[Path(script).stem], argv)


@pytest.mark.parametrize(("name", "config_type"), [("my_model", EvaluateConfig), ("my_model_budgets", SweepConfig)])
def test_the_config_of_ones_own_model_needs_three_flags_and_ignores_no_stop(name, config_type):
    flags = {"--model": "m", "--benchmark": "b.jsonl", "--output": "rows.jsonl", "--max-thinking-tokens": "7"}
    argv = [part for flag in flags.items() for part in flag]
    parsed = config.parse_command("", config_type, [name, *argv])
    conditions = grid(parsed) if config_type is SweepConfig else (parsed.condition,)
    assert [(c.max_thinking_tokens, c.num_ignore, c.temperature) for c in conditions] == [(7, 0, 0.0)]
    for i in range(0, 6, 2):
        with pytest.raises(UserError, match=f"^give {argv[i]}; see "):
            config.parse_command("", config_type, [name, *argv[:i], *argv[i + 2 :]])


def test_the_curves_of_the_paper_are_one_axis_each():
    budgets = config.load_config("s1_32b_aime24_budgets", SweepConfig)
    waits = config.load_config("s1_32b_aime24_waits", SweepConfig)
    assert budgets.num_ignore == (0,) and waits.num_ignore == tuple(range(9))
    assert len(waits.max_thinking_tokens) == 1
    texts = config.load_config("s1_32b_aime24_ignore_texts", SweepConfig)
    assert set(texts.ignore_text) == {"Wait", "", "Alternatively", "Hmm"} and len(grid(texts)) == 1 + 4
    assert budgets.decoding == waits.decoding == texts.decoding, "one file of rows, from which all curves are drawn"


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
    assert config.load_config(str(path), TrainConfig).output == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nonesuch"], "no config 'nonesuch'.*s1_32b"),
        ([], "which config.*s1_32b"),
        (["s1_32b", "--learning-rate", "1"], r"Unrecognized options: --learning-rate.*--optimizer.learning-rate"),
        (["s1_32b_aime24_waits"], "no CONFIG of type TrainConfig; it holds SweepConfig"),
    ],
)
def test_a_mistake_is_one_error_that_lists_what_is_valid(argv, message):
    with pytest.raises(ValueError, match=message):
        config.parse_command("", TrainConfig, argv)


@dataclass(frozen=True)
class Arguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The source."""
    prompt: str = "?"
    """The question."""
    quick: bool = False
    """Whether to hurry."""


@pytest.mark.parametrize("value", ["--5 + 3", "--5", "-5", "-x", "--", "-", "--nonesuch=1", "-h?"])
def test_a_value_may_begin_with_dashes(value):
    for argv in ([f"--prompt={value}"], ["--prompt", value]):
        assert config.parse_arguments("", Arguments, ["a", *argv, "--quick"]) == Arguments("a", value, True)


@pytest.mark.parametrize(
    "argv", [["--prompt", "--quick"], ["--prompt", "--no-quick"], ["--prompt", "--help"], ["--prompt"]]
)
def test_an_option_is_no_value(argv):
    with pytest.raises(UserError, match=r"^Missing value for argument '--prompt'"):
        config.parse_arguments("", Arguments, ["a", *argv])


def test_a_message_of_several_parts_is_one_line_without_the_frame(monkeypatch):
    monkeypatch.setattr(config, "program", lambda: "python x.py")
    with pytest.raises(UserError) as error:
        config.parse_arguments("", Arguments, ["a", "--qick"])
    parts = str(error.value).split("; ")
    assert parts[0] == "Unrecognized options: --qick"
    assert parts[1].startswith("Perhaps you meant: --quick") and parts[2].endswith("python x.py --help")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--data.batch-size", "many"],
            r"^--data.batch-size is 'many': it must be an integer; see \S+ ",
        ),
        (["--data.row_length=many"], r"^--data.row-length is 'many': it must be an integer or None; "),
        (
            ["--trackers", "tensorboard", "none"],
            r"^--trackers is 'tensorboard none': it must be one of tensorboard, wandb",
        ),
        (["--data.batch-size", "9" * 5000], r"^--data.batch-size is '9{60}\.\.\.9{17}': it must be an integer"),
        (["--data.batch-size"], r"^Missing value for argument '--data\.batch-size'"),
        (["--dtype", "float32", "--dtype", "float31"], r"^--dtype is 'float31': it must be one of bfloat16, float32; "),
        (["stray"], "stray"),
        (
            ["--config.output", "x", "--config.seq_len=3", "--step.no-int8"],
            r"^Unrecognized options: --config.output, x, .*; use --output; ",
        ),
        (["--optimizer.learning-rate", "1e38"], "learning_rate is 1e[+]38: it must be positive and at most 1"),
        (["--rules.batch", "foo"], '"foo" is not a mesh axis; the axes are data, fsdp, sequence, tensor; '),
        (["--rules.batch", "data", "data"], "batch and length and heads: mesh axis data is used twice"),
        (["--rules.embed", "tensor"], "embed and heads: mesh axis tensor is used twice"),
        (["--output", " "], "output is empty"),
    ],
)
def test_a_value_that_cannot_be_read_is_one_line_naming_its_field(argv, message, capsys):
    with pytest.raises(ValueError, match=message) as error:
        config.parse_command("", TrainConfig, ["s1_32b", *argv])
    assert "\n" not in str(error.value) and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nimport nonesuch", r"mine\.py, line 2: ModuleNotFoundError: .*nonesuch"),
        ("CONFIG = (", r"mine\.py: SyntaxError: .*\(mine\.py, line 1\)"),
        (
            "from dataclasses import replace\nfrom configs.s1_7b import CONFIG as BASE\n\nCONFIG = replace(BASE, foo=1)",
            r"mine\.py, line 4: TypeError: TrainConfig.* got an unexpected keyword argument 'foo'",
        ),
        (
            "from s1jax.train.optimizer import OptimizerConfig\nCONFIG = OptimizerConfig(beta1=3)",
            r"mine\.py, line 2: beta1 is 3: it must be",
        ),
    ],
)
def test_a_config_that_does_not_load_is_named_with_its_line(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        config.load_config(str(tmp_path / "mine.py"), TrainConfig)


IMPORTS = (
    "from s1jax.data.examples import DataConfig\nfrom s1jax.train.config import TrainConfig\n"
    "from s1jax.evaluate.conditions import DecodingConfig\nfrom s1jax.evaluate.sweep import SweepConfig\n"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"mine\.py defines no CONFIG: it needs one of type TrainConfig or SweepConfig"),
        (IMPORTS + "CONFIG = TrainConfig", r"mine\.py: CONFIG is the class TrainConfig: call it"),
        (IMPORTS + "CONFIG = 3", r"mine\.py has no CONFIG of type TrainConfig or SweepConfig; it holds int"),
        ("raise SystemExit(3)", r"mine\.py, line 1: SystemExit: 3"),
        ("raise ValueError('a\\nb')", r"mine\.py, line 1: ValueError: a b"),
        (IMPORTS + "CONFIG = TrainConfig('m', 7, DataConfig('d'))", r"mine\.py, line 5: output is 7: it must be text"),
        (IMPORTS + "CONFIG = SweepConfig(DecodingConfig('m', 'b', 'o'), ('16',))", r"max_thinking_tokens is \('16',\)"),
    ],
)
def test_a_config_with_a_mistake_is_one_line(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        config.load_config(str(tmp_path / "mine.py"), (TrainConfig, SweepConfig))
    assert "\n" not in str(error.value)


def test_a_folder_is_no_config(tmp_path):
    (tmp_path / "d.py").mkdir()
    with pytest.raises(UserError, match=r"d\.py is a folder: give a config"):
        config.load_config(str(tmp_path / "d.py"), TrainConfig)


def test_the_project_s_configs_name_the_same_files_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quickstart = config.parse_command("", TrainConfig, ["quickstart", "--eval-source", "rows.jsonl"])
    root = config.ROOT
    assert quickstart.model == str(root / "data_tools/quickstart/tiny_base")
    assert (quickstart.output, quickstart.data.source) == (
        str(root / "out/model"),
        str(root / "out/curated/train.jsonl"),
    )
    assert quickstart.eval_source == "rows.jsonl", "a path on the command line starts where the command does"
    assert config.load_config("s1_32b_aime24_budgets", SweepConfig).decoding.benchmark == "aime24"


def test_only_the_configs_of_a_command_are_listed():
    assert "quickstart" in config.config_names(TrainConfig) and "s1_32b_gpqa" in config.config_names(EvaluateConfig)
    by_type = [config.config_names(config_type) for config_type in (*COMMANDS.values(), CurationConfig)]
    assert sorted(name for names in by_type for name in names) == config.config_names()


@pytest.mark.parametrize("config_type", [TrainConfig, SweepConfig, EvaluateConfig])
def test_help_explains_every_field(config_type, capsys):
    name = {TrainConfig: "s1_32b", SweepConfig: "s1_32b_aime24_waits", EvaluateConfig: "s1_32b_math500"}[config_type]
    with pytest.raises(SystemExit) as exit_info:
        config.parse_command("what it does", config_type, [name, "--help"])
    assert exit_info.value.code == 0
    help_text = capsys.readouterr().out
    for flag in field_flags(config_type):
        assert flag in help_text
