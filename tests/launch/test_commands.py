"""The commands: help, and for bad input one clear message, a non-zero exit code and no half-written files."""

import ast
import dataclasses
import inspect
import itertools
import json
import re
import runpy
import shutil
import sys
import textwrap
import typing
from pathlib import Path

import jax
import pytest

from s1jax.runtime.config import config_names
from s1jax.runtime.files import ROOT
from tests.support.flags import field_flags

pytestmark = pytest.mark.integration

COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command of `launch` (or of another folder) in this process; return its exit status, standard error and output."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # `benchmark` then measures in its own process

    def run(script, *arguments, folder="launch"):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / folder / f"{script}.py"), run_name="__main__")
        except SystemExit as exit_info:
            code = exit_info.code or 0
        finally:
            jax.config.update("jax_enable_compilation_cache", True)  # `benchmark` turns it off
        captured = capfd.readouterr()
        return code, captured.err, captured.out

    return run


@pytest.fixture
def inputs(tmp_path, tiny_model):
    """Bad inputs by name."""
    good = dict(id="1", question="1 + 1?", thinking="one and one", answer="2", reference="2", source="t", domain="d")
    (tmp_path / "good.jsonl").write_text(json.dumps(good) + "\n")
    fine = good | {"question": "3 + 4?", "thinking": "3 + 4 = 7", "answer": "7", "reference": "7"}
    (tmp_path / "fine.jsonl").write_text(json.dumps(fine) + "\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "no_trace.jsonl").write_text(json.dumps(good | {"thinking": " "}) + "\n")
    (tmp_path / "no_question.jsonl").write_text(json.dumps({k: v for k, v in good.items() if k != "question"}) + "\n")
    (tmp_path / "no_json.jsonl").write_text("not json\n")
    (tmp_path / "directory").mkdir()
    corrupt = tmp_path / "corrupt"
    shutil.copytree(tiny_model, corrupt)
    weights = (corrupt / "model.safetensors").read_bytes()
    (corrupt / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    garbage = tmp_path / "garbage"
    shutil.copytree(tiny_model, garbage)
    (garbage / "model.safetensors").write_bytes(b"\xff" * 1000)
    no_delimiters = tmp_path / "no_delimiters"
    shutil.copytree(tiny_model, no_delimiters)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (no_delimiters / name).read_text()
        (no_delimiters / name).write_text(text.replace("<|im_start|>", "<|begin|>"))
    bad_number, no_tokens = tmp_path / "bad_number", tmp_path / "no_tokens"
    shutil.copytree(tiny_model, bad_number)
    shutil.copytree(tiny_model, no_tokens)
    config = json.loads((bad_number / "config.json").read_text())
    (bad_number / "config.json").write_text(json.dumps(config | {"rope_theta": "x"}))
    (no_tokens / "tokenizer.json").write_text("{}")
    return tmp_path


GENERATE = ["--prompt", "1 + 1?", "--max-thinking-tokens", "8", "--max-answer-tokens", "4", "--dtype", "float32"]
TRAIN = ["quickstart", "--output", "{tmp}/run", "--model", "{model}", "--data.source", "{tmp}/good.jsonl"]
SWEEP = ["quickstart_budgets", "--model", "{model}", "--benchmark", "{tmp}/good.jsonl"]
SWEEP += ["--output", "{tmp}/run/rows.jsonl"]
CURATE = ["quickstart_data", "--output", "{tmp}/run", "--collect.pool", "{tmp}/fine.jsonl"]
CURATE += ["--decontamination.heldout", "{tmp}/good.jsonl"]
CONTROL = ["{tmp}/fine.jsonl", "--output", "{tmp}/run/mixture.jsonl", "--tokenizer", "{model}"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("generate", ["--model", "{tmp}/nonesuch", *GENERATE], "nonesuch"),
        ("generate", ["--model", "{tmp}/directory", *GENERATE], "is not a checkpoint"),
        ("generate", ["--model", "{tmp}/good.jsonl", *GENERATE], "is a file"),
        ("generate", ["--model", "{tmp}/corrupt", *GENERATE], "model.safetensors"),
        ("generate", ["--model", "{tmp}/garbage", *GENERATE], "model.safetensors"),
        ("generate", ["--model", "{tmp}/no_delimiters", *GENERATE], "give --thinking-format"),
        (
            "generate",
            ["--model", "{tmp}/no_delimiters", *GENERATE, "--thinking-format", "s1"],
            "lacks the token <|im_start|>",
        ),
        ("generate", ["--model", "{model}", *GENERATE, "--max-thinking-tokens", "-1"], "max_thinking_tokens is -1"),
        ("generate", ["--model", "{model}", *GENERATE, "--prompt", "why? " * 200], "the model has 512"),
        ("generate", ["--model", "{model}", *GENERATE, "--prompt", " "], "is empty"),
        ("generate", ["--model", "{model}", *GENERATE, "--nonesuch", "1"], "Unrecognized options: --nonesuch"),
        ("generate", ["--model", "{model}", *GENERATE, "--dtype", "float31"], "float31"),
        ("train", ["nonesuch"], "no config 'nonesuch'"),
        ("train", [*TRAIN, "--nonesuch", "1"], "Unrecognized options: --nonesuch"),
        ("train", [*TRAIN, "--data.source", "{tmp}/nonesuch.jsonl"], "nonesuch.jsonl"),
        ("train", [*TRAIN, "--data.source", "{tmp}/empty.jsonl"], "empty.jsonl"),
        ("train", [*TRAIN, "--data.source", "{tmp}/no_trace.jsonl"], "thinking"),
        ("train", [*TRAIN, "--data.source", "{tmp}/no_question.jsonl"], "question"),
        ("train", [*TRAIN, "--data.source", "{tmp}/no_json.jsonl"], "JSON"),
        ("train", [*TRAIN, "--data.max-length", "16"], "max_length"),
        ("train", [*TRAIN, "--data.batch-size", "0"], "batch_size"),
        ("train", [*TRAIN, "--model", "{tmp}/corrupt"], "model.safetensors"),
        ("train", [*TRAIN, "--mesh.tensor", "3"], "mesh"),
        ("train", [*TRAIN, "--output", ""], "output is empty"),
        ("train", [*TRAIN, "--rules.batch", "foo"], '"foo" is not a mesh axis'),
        ("train", [*TRAIN, "--model", "{tmp}/bad_number"], 'rope_theta is "x": it must be a positive finite number'),
        ("train", [*TRAIN, "--model", "{tmp}/no_tokens"], "its files or its config.json are damaged"),
        ("sweep", [*SWEEP, "--max-thinking-tokens", "-5"], "none negative"),
        ("sweep", [*SWEEP, "--benchmark", "{tmp}/no_json.jsonl"], "no_json.jsonl"),
        ("sweep", [*SWEEP, "--benchmark", "{tmp}/empty.jsonl"], "empty.jsonl"),
        ("sweep", ["s1_32b"], "no CONFIG of type SweepConfig"),
        ("plot", ["{tmp}/nonesuch.jsonl", "--out", "{tmp}/run"], "nonesuch.jsonl"),
        ("plot", ["{tmp}/no_json.jsonl", "--out", "{tmp}/run"], "no_json.jsonl"),
        ("replay", ["{tmp}/nonesuch.jsonl"], "nonesuch.jsonl"),
        ("replay", ["{tmp}/no_json.jsonl"], "no_json.jsonl"),
        ("report", ["{tmp}/nonesuch.jsonl", "--out", "{tmp}/new.html"], "nonesuch.jsonl"),
        ("report", ["{tmp}/no_json.jsonl", "--out", "{tmp}/new.html"], "no_json.jsonl"),
        ("regrade", ["{tmp}/nonesuch.jsonl"], "nonesuch.jsonl"),
        ("regrade", ["{tmp}/no_json.jsonl"], "no_json.jsonl"),
        ("regrade", ["{tmp}/good.jsonl"], "no sample row"),
        ("convert", ["{tmp}/corrupt", "{tmp}/run"], "model.safetensors"),
        ("convert", ["{tmp}/directory", "{tmp}/run"], "is not a checkpoint"),
        ("convert", ["{tmp}/directory", "{tmp}/run", "--nonesuch", "1"], "Unrecognized options: --nonesuch"),
        ("convert", ["{model}", ""], "the directory to write is empty"),
        ("convert", ["{model}"], "Missing from python"),
        ("benchmark", ["decode", "--batch", "0"], "batch is [0]"),
        ("benchmark", ["decode", "--limit", "9"], "limit is 9: it must be at least 112, the number of tokens"),
        ("benchmark", ["convert", "--tensor", "3"], "tensor 3 does not fit 8 devices"),
        ("benchmark", ["decode", "--size", "1B"], "no model of size '1B'; the sizes are Qwen2.5-0.5B,"),
        ("benchmark", ["decode", "--model", "{model}", "--attention", "splash"], "choose xla or pallas"),
        ("benchmark", ["train", "--model", "{model}", "--remat", "some"], "remat"),
        ("benchmark", ["decode", "--model", "{tmp}/nonesuch"], "nonesuch"),
        ("data_tools/quickstart/arithmetic", [], "OUT"),
        ("data_tools/quickstart/arithmetic", ["{tmp}/run", "--num", "0"], "--num 0"),
        ("data_tools/quickstart/arithmetic", ["{tmp}/run", "--num-heldout", "-1"], "--num-heldout -1"),
        ("data_tools/quickstart/arithmetic", ["{tmp}/run", "--num", "many"], "many"),
        ("data_tools/quickstart/arithmetic", ["{tmp}/good.jsonl"], "good.jsonl"),
        ("data_tools/curation/__main__", [], "which config?"),
        ("data_tools/curation/__main__", ["nonesuch"], "no config 'nonesuch'"),
        ("data_tools/curation/__main__", ["quickstart"], "no CONFIG of type CurationConfig; it holds TrainConfig"),
        ("data_tools/curation/__main__", [*CURATE, "--collect.pool", "{tmp}/nonesuch.jsonl"], "nonesuch.jsonl"),
        ("data_tools/curation/__main__", [*CURATE, "--collect.pool", "{tmp}/no_json.jsonl"], "no_json.jsonl"),
        ("data_tools/curation/__main__", [*CURATE, "--stages", "quality"], "stages must begin with collect"),
        ("data_tools/curation/__main__", [*CURATE, "--stages", "collect", "luck"], "--stages is 'collect luck'"),
        ("data_tools/curation/__main__", [*CURATE, "--num-processes", "0"], "num_processes is 0"),
        ("data_tools/curation/__main__", [*CURATE, "--selection.num", "0"], "num is 0"),
        ("data_tools/curation/__main__", [*CURATE, "--output", "{tmp}/directory/.."], "which no curation wrote"),
        ("data_tools/curation/__main__", [*CURATE, "--output", "{tmp}/good.jsonl"], "good.jsonl"),
        (
            "data_tools/curation/__main__",
            [*CURATE, "--explain", "0123456789abcdef"],
            "no stage has been run with these settings",
        ),
        ("data_tools/curation/control_data", CONTROL[1:], "TRAIN"),
        ("data_tools/curation/control_data", [*CONTROL, "--methods", "class_conditional"], "class_conditional"),
        ("data_tools/curation/control_data", [*CONTROL, "--tokenizer", "{tmp}/no_tokens"], "damaged"),
        ("data_tools/curation/control_data", [*CONTROL, "--output", "{tmp}/fine.jsonl"], "would change"),
        ("data_tools/curation/control_data", ["{tmp}/no_trace.jsonl", *CONTROL[1:]], "thinking"),
    ],
)
def test_bad_input_is_one_message_and_a_nonzero_exit_and_leaves_nothing(
    script, arguments, message, run, inputs, tiny_model
):
    before = sorted(inputs.rglob("*"))
    folder, _, script = script.rpartition("/")
    arguments = [argument.format(tmp=inputs, model=tiny_model) for argument in arguments]
    code, error, _ = run(script, *arguments, folder=folder or "launch")
    assert code not in (0, None)
    (start,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert message in error[error.index(start) :]
    assert "Traceback" not in error
    assert sorted(inputs.rglob("*")) == before


def field_texts(config_type):
    """Docstrings of the fields of a config class, those of nested ones included."""
    hints = typing.get_type_hints(config_type)
    sources = [inspect.getsource(cls) for cls in config_type.__mro__ if dataclasses.is_dataclass(cls)]
    lines = [line for source in sources for line in ast.parse(textwrap.dedent(source)).body[0].body]
    for field, text in itertools.pairwise(lines):
        is_documented = isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
        if is_documented and not dataclasses.is_dataclass(hints[field.target.id]):
            yield inspect.cleandoc(text.value.value)
    for hint in hints.values():
        if dataclasses.is_dataclass(hint):
            yield from field_texts(hint)


def only_words(text):
    """The text without spaces, line breaks and the frame that tyro draws around it."""
    return re.sub(r"[\W_]+", "", text)


@pytest.mark.parametrize("script", [script for script in COMMANDS if script != "benchmark"])
def test_help_explains_the_command_and_every_field(script, run, monkeypatch):
    from launch import plot, report
    from s1jax.checkpoint.convert import ConvertConfig
    from s1jax.decode.generate import GenerateConfig
    from s1jax.evaluate.conditions import EvaluateConfig
    from s1jax.evaluate.regrade import RegradeConfig
    from s1jax.evaluate.sweep import SweepConfig
    from s1jax.results.compare import CompareConfig
    from s1jax.results.replay_rows import ReplayConfig
    from s1jax.train.config import TrainConfig

    monkeypatch.setenv("COLUMNS", "100")
    types = dict(
        convert=(ConvertConfig, None),
        evaluate=(EvaluateConfig, "s1_32b_math500"),
        generate=(GenerateConfig, None),
        plot=(plot.PlotConfig, None),
        regrade=(RegradeConfig, None),
        replay=(ReplayConfig, None),
        compare=(CompareConfig, None),
        report=(report.ReportConfig, None),
        sweep=(SweepConfig, "quickstart_budgets"),
        preflight=(TrainConfig, "s1_0_5b"),
        train=(TrainConfig, "quickstart"),
    )
    config_type, name = types[script]
    description = ast.get_docstring(ast.parse((ROOT / "launch" / f"{script}.py").read_text()))
    code, _, out = run(script, "--help")
    assert code == 0 and only_words(description) in only_words(out)
    if name:
        listed = re.findall(r"^configs: (.*)", out, re.MULTILINE)[0].split(", ")
        of_command = (TrainConfig, EvaluateConfig, SweepConfig) if script == "preflight" else config_type
        assert listed == config_names(of_command), "help without a config lists those of the command"
        assert f"usage: python launch/{script}.py CONFIG [--field value ...]" in out.replace(f"{ROOT}/", "")
        code, _, out = run(script, name, "--help")
        assert code == 0
    assert set(field_flags(config_type)) <= set(re.findall(r"--[a-z][a-z0-9.-]*", out))
    texts = list(field_texts(config_type))
    assert len(texts) > (1 if script == "plot" else 2)
    for text in texts:
        assert only_words(text) in only_words(out), text


def test_checkpoints_of_ours_may_be_named_relative_to_where_one_is(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("model", name).unlink()
    code, error, _ = run("convert", "model", "params")
    assert code == 0 and "warning: model has no tokenizer" in error
    code, error, _ = run("convert", "params", "back")
    assert code == 0, error
    assert Path("back/model.safetensors").read_bytes() == Path("model/model.safetensors").read_bytes()
