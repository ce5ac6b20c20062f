"""`config.py`: configs by name, overrides by field, and one message for every mistake."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from data_tools.quickstart.tiny_base import TinyBaseConfig
from s1jax.evaluate.conditions import EvaluateConfig
from s1jax.evaluate.sweep import SweepConfig
from s1jax.runtime import config
from s1jax.runtime.command import counted, listed, run_command
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable
from s1jax.train.config import TrainConfig

COMMANDS = {"train": TrainConfig, "sweep": SweepConfig, "evaluate": EvaluateConfig}
S1_CONFIGS = [name for name in config.config_names() if name.startswith("s1_")]


def record(name):
    """The docstring of a config's module."""
    return ast.get_docstring(ast.parse((config.ROOT / "configs" / f"{name}.py").read_text()))


@pytest.mark.parametrize("name", config.config_names())
def test_every_config_gives_the_command_that_runs_it(name):
    assert isinstance(json.loads(config.to_json(config.load_config(name, object))), dict)
    (line,) = [line for line in record(name).splitlines() if line.strip().startswith("python ")]
    _, script, *argv = line.split()
    if script == "-m":
        assert argv[-1] == name
        return
    assert (config.ROOT / script).is_file()
    assert argv[0] == name
    config.parse_command("", COMMANDS[Path(script).stem], argv)


@pytest.mark.parametrize("name", S1_CONFIGS)
def test_every_config_of_the_paper_is_a_full_record(name):
    text = " ".join(record(name).split())
    assert re.search(r"\(paper,? (section|figure|table) \d", text.partition("Expected")[0]), "what it reproduces"
    expected = re.search(r"Expected( \(the paper's.*?\))?: (.*?)Hardware and hours: (.*)", text)
    assert expected, "Expected: ..., then Hardware and hours: ..."
    number, hardware = expected[2], expected[3]
    assert "no published figure" in number or (re.search(r"\d\d\.\d", number) and "paper" in expected[0])
    assert "not yet run" in hardware or "Run on" in hardware


def test_the_curves_of_the_paper_are_one_axis_each():
    budgets = config.load_config("s1_32b_aime24_budgets", SweepConfig)
    waits = config.load_config("s1_32b_aime24_waits", SweepConfig)
    assert budgets.num_ignore == (0,) and waits.num_ignore == tuple(range(9))
    assert len(waits.max_thinking_tokens) == 1
    assert budgets.decoding == waits.decoding, "one file of rows, from which both curves are drawn"


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
        (["s1_32b_aime24_waits"], "no CONFIG of type TrainConfig; it holds SweepConfig"),
    ],
)
def test_a_mistake_is_one_error_that_lists_what_is_valid(argv, message):
    with pytest.raises(ValueError, match=message):
        config.parse_command("", TrainConfig, argv)


def test_a_positional_argument_is_not_listed_as_a_flag():
    @dataclass(frozen=True)
    class Arguments:
        source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
        rows: tyro.conf.Positional[Path]
        quick: bool = False

    assert config.field_flags(Arguments) == ["--quick", "--no-quick"]
    with pytest.raises(ValueError, match=r"unknown field --source; the fields are: --no-quick --quick$"):
        config.parse_arguments("", Arguments, ["a", "b", "--source", "c"])
    assert config.parse_arguments("", Arguments, ["a", "b", "--quick"]) == Arguments("a", Path("b"), True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.batch-size", "many"], r"^--data\.batch-size: .*'many'$"),
        (["--data.batch-size"], r"^Missing value for argument '--data\.batch-size'"),
        (["--dtype", "float31"], r"^invalid choice 'float31' for argument '--dtype'.*'bfloat16', 'float32'"),
        (["stray"], "stray"),
        (["--optimizer.learning-rate", "1e38"], "learning_rate is 1e[+]38: it must be positive and at most 1"),
        (["--rules.batch", "foo"], '"foo" is no mesh axis; the axes are data, fsdp, sequence, tensor$'),
        (["--rules.batch", "data", "data"], "batch and length and heads: mesh axis data is there twice"),
        (["--rules.embed", "tensor"], "embed and heads: mesh axis tensor is there twice"),
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
        ("CONFIG = (", r"mine\.py, line 1: SyntaxError"),
        (
            "from dataclasses import replace\nfrom configs.s1_7b import CONFIG as BASE\n\nCONFIG = replace(BASE, foo=1)",
            r"mine\.py, line 4: TypeError: TrainConfig has no field foo; its fields are: model, output, data, ",
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


def test_only_the_configs_of_a_command_are_listed():
    assert "quickstart" in config.config_names(TrainConfig) and "s1_32b_gpqa" in config.config_names(EvaluateConfig)
    by_type = [config.config_names(config_type) for config_type in (*COMMANDS.values(), TinyBaseConfig)]
    assert sorted(name for names in by_type for name in names) == config.config_names()


@pytest.mark.parametrize(("number", "text"), [(0, "0 stops"), (1, "1 stop"), (2, "2 stops")])
def test_one_is_no_plural(number, text):
    assert counted(number, "stop") == text


def test_long_lists_of_problems_are_cut():
    assert listed(["a", "b"]) == "\n  a\n  b"
    assert listed([str(i) for i in range(10)]).splitlines()[-2:] == ["  7", "  and 2 more"]


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{sys.executable} {config.ROOT}/launch/convert.py --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("config_type", [TrainConfig, SweepConfig, EvaluateConfig])
def test_help_explains_every_field(config_type, capsys):
    name = {TrainConfig: "s1_32b", SweepConfig: "s1_32b_aime24_waits", EvaluateConfig: "s1_32b_math500"}[config_type]
    with pytest.raises(SystemExit) as exit_info:
        config.parse_command("what it does", config_type, [name, "--help"])
    assert exit_info.value.code == 0
    help_text = capsys.readouterr().out
    for flag in config.field_flags(config_type):
        assert flag in help_text


def test_the_hash_changes_with_a_field_and_not_with_an_excluded_one():
    a = config.load_config("s1_32b", TrainConfig)
    b = config.load_config("s1_14b", TrainConfig)
    assert config.config_hash(a) != config.config_hash(b)
    assert config.config_hash(a, exclude=("model", "output")) == config.config_hash(b, exclude=("model", "output"))


def test_bad_input_is_one_line_and_a_nonzero_exit(capsys):
    def main():
        raise UserError("the shop is closed: come tomorrow")

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == "error: the shop is closed: come tomorrow\n"


def test_an_error_that_is_not_about_input_keeps_its_traceback():
    with pytest.raises(json.JSONDecodeError):
        run_command(lambda: json.loads("{"))


def test_a_device_that_ran_out_of_memory_is_one_line_that_says_what_to_lower(capsys):
    JaxRuntimeError = type("JaxRuntimeError", (RuntimeError,), {})

    def main():
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4198464172336 bytes.\nLargest buffers: ...")

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    error = capsys.readouterr().err
    assert exit_info.value.code == 1 and error.count("\n") == 1
    assert error.startswith(
        "error: out of memory on a device: Out of memory allocating 4198464172336 bytes. In training give"
    )

    def other():
        raise JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(JaxRuntimeError):
        run_command(other)


def test_a_protected_place_is_no_destination_and_a_new_one_is_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("")
    check_writable(tmp_path / "rows.jsonl")
    check_writable(tmp_path / "new" / "deep" / "rows.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    with pytest.raises(ValueError, match=r"rows.jsonl cannot be written: it is no file, or a protected one"):
        check_writable(tmp_path / "rows.jsonl")


def test_what_a_command_compiles_is_kept_for_the_next_one_unless_told_otherwise(tmp_path):
    code = (
        "from s1jax.runtime.command import run_command\n"
        "def main():\n    import jax\n    jax.jit(lambda x: x + 1)(1.0)\n"
        "run_command(main)"
    )
    unset = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    quick = unset | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for extra, kept in (({"JAX_COMPILATION_CACHE_DIR": ""}, False), ({}, True)):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=config.ROOT, env=quick | extra)
        assert any((tmp_path / "s1jax").rglob("*jit*")) == kept
