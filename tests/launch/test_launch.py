"""The commands: help, and for bad input one clear message, a non-zero exit code and no half-written files."""

import ast
import dataclasses
import inspect
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import typing
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from s1jax.perf.benchmark_convert import convert_figures
from s1jax.runtime.config import config_names
from tests.support.flags import field_flags

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
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
SWEEP = ["quickstart_budgets", "--decoding.model", "{model}", "--decoding.benchmark", "{tmp}/good.jsonl"]
SWEEP += ["--decoding.output", "{tmp}/run/rows.jsonl"]
CURATE = ["--pool", "{tmp}/fine.jsonl", "--heldout", "{tmp}/good.jsonl", "--model", "{model}"]
CURATE += ["--output", "{tmp}/run/train.jsonl"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("generate", ["--model", "{tmp}/nonesuch", *GENERATE], "nonesuch"),
        ("generate", ["--model", "{tmp}/directory", *GENERATE], "is not a checkpoint"),
        ("generate", ["--model", "{tmp}/good.jsonl", *GENERATE], "is a file"),
        ("generate", ["--model", "{tmp}/corrupt", *GENERATE], "model.safetensors"),
        ("generate", ["--model", "{tmp}/garbage", *GENERATE], "model.safetensors"),
        ("generate", ["--model", "{tmp}/no_delimiters", *GENERATE], "<|im_start|>"),
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
        ("train", [*TRAIN, "--model", "{tmp}/bad_number"], "rope_theta is 'x': it must be a number"),
        ("train", [*TRAIN, "--model", "{tmp}/no_tokens"], "its files are damaged"),
        ("sweep", [*SWEEP, "--max-thinking-tokens", "-5"], "none negative"),
        ("sweep", [*SWEEP, "--decoding.benchmark", "{tmp}/no_json.jsonl"], "no_json.jsonl"),
        ("sweep", [*SWEEP, "--decoding.benchmark", "{tmp}/empty.jsonl"], "empty.jsonl"),
        ("sweep", ["s1_32b"], "no CONFIG of type SweepConfig"),
        ("plot", ["{tmp}/nonesuch.jsonl", "--out", "{tmp}/run"], "nonesuch.jsonl"),
        ("plot", ["{tmp}/no_json.jsonl", "--out", "{tmp}/run"], "no_json.jsonl"),
        ("convert", ["{tmp}/corrupt", "{tmp}/run"], "model.safetensors"),
        ("convert", ["{tmp}/directory", "{tmp}/run"], "is not a checkpoint"),
        ("convert", ["{tmp}/directory", "{tmp}/run", "--nonesuch", "1"], "Unrecognized options: --nonesuch"),
        ("convert", ["{model}", ""], "the directory to write is empty"),
        ("convert", ["{model}"], "Missing from python"),
        ("benchmark", ["decode", "--batch", "0"], "batch is [0]"),
        ("benchmark", ["decode", "--limit", "9"], "limit is 9: it must be at least 112, the number of tokens"),
        ("benchmark", ["convert", "--tensor", "3"], "tensor 3 does not fit 8 devices"),
        ("benchmark", ["decode", "--size", "1B"], "no Qwen2.5 of size '1B'"),
        ("benchmark", ["decode", "--model", "{model}", "--attention", "splash"], "choose xla or pallas"),
        ("benchmark", ["train", "--model", "{model}", "--remat", "some"], "remat"),
        ("benchmark", ["decode", "--model", "{tmp}/nonesuch"], "nonesuch"),
        ("data_tools/quickstart/arithmetic", [], "OUT"),
        ("data_tools/quickstart/arithmetic", ["{tmp}/run", "--num", "0"], "--num 0"),
        ("data_tools/quickstart/arithmetic", ["{tmp}/run", "--num-heldout", "-1"], "--num-heldout -1"),
        ("data_tools/quickstart/arithmetic", ["{tmp}/run", "--num", "many"], "many"),
        ("data_tools/quickstart/arithmetic", ["{tmp}/good.jsonl"], "good.jsonl"),
        ("data_tools/curation/curate", CURATE[:-2], "--output"),
        ("data_tools/curation/curate", [*CURATE, "--pool", "{tmp}/nonesuch.jsonl"], "nonesuch.jsonl"),
        ("data_tools/curation/curate", [*CURATE, "--pool", "{tmp}/no_json.jsonl"], "no_json.jsonl"),
        ("data_tools/curation/curate", [*CURATE, "--heldout", "{tmp}/nonesuch.jsonl"], "nonesuch.jsonl"),
        ("data_tools/curation/curate", [*CURATE, "--model", "{tmp}/nonesuch"], "nonesuch"),
        ("data_tools/curation/curate", [*CURATE, "--num", "2"], "only 1 rows are left to draw 2 from"),
        ("data_tools/curation/curate", [*CURATE, "--num", "0"], "--num 0"),
        ("data_tools/curation/curate", [*CURATE, "--output", ""], "is a directory"),
        ("data_tools/curation/curate", [*CURATE, "--output", "{tmp}/fine.jsonl"], "would change --pool"),
        (
            "data_tools/curation/curate",
            [*CURATE, "--output", "{tmp}/directory/../good.jsonl"],
            "would change --heldout",
        ),
        ("data_tools/curation/curate", [*CURATE, "--rejects", "{tmp}/run/train.jsonl"], "are the same file"),
        (
            "data_tools/curation/curate",
            [*CURATE, "--pool", "{tmp}", "--output", "{tmp}/new.jsonl"],
            "would change --pool",
        ),
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
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config_type))).body
    hints = typing.get_type_hints(config_type)
    for field, text in itertools.pairwise(definition.body):
        is_documented = isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
        if is_documented and not dataclasses.is_dataclass(hints[field.target.id]):
            yield inspect.cleandoc(text.value.value)
    for hint in hints.values():
        if dataclasses.is_dataclass(hint):
            yield from field_texts(hint)


def only_words(text):
    """The text without spaces, line breaks and the frame that tyro draws around it."""
    return re.sub(r"[\W_]+", "", text)


SHORT = ["--examples", "20", "--divide", "100", "--attention", "xla"]


@pytest.mark.parametrize(
    ("what", "arguments", "expected"),
    [
        ("decode", ["--batch", "2", "--tokens", "8"], lambda x: x["batch"] == 2 and x["tokens_per_s"] > 0),
        pytest.param("decode", ["--batch", "2", "--tokens", "8", "--limit", "99"], lambda x: x["tokens_per_s"] > 0, marks=pytest.mark.slow),
        ("sweep", ["--problems", "2", "--budgets", "4", "9", "--waits", "1", "--answer", "4"],
         lambda x: x["points"] == 3 and x["identical"]),
        ("train", SHORT, lambda x: x["steps"] == 2 and 0 < x["filling"] <= 1 and x["useful_tokens_per_s"] > 0 and 0 < x["mfu"] < 1),
        pytest.param("train", [*SHORT, "--no-pack", "--slice", "1", "2"],
                     lambda x: x["layers"] == [1, 2] and x["whole_step_s"] == pytest.approx(x["step_s"][1], abs=2e-3),
                     marks=pytest.mark.slow),
        ("convert", [], lambda x: x["identical"] and x["hugging_face_read_s"] > 0 and x["presharded_read_s"] > 0),
    ],
    ids=["decode", "limit", "sweep", "train", "slice", "convert"],
)  # fmt: skip
def test_a_benchmark_runs_from_a_command_line_and_prints_json(what, arguments, expected, tiny_model):
    command = [sys.executable, ROOT / "launch" / "benchmark.py", what, "--model", tiny_model, "--dtype", "float32"]
    # One device, and what is not about tokens compiled quickly.
    env = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(what != "sweep"))}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd="/", env=env)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["benchmark"] == what and expected(figures), figures


def test_a_disk_without_room_for_a_conversion_is_named(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda directory: SimpleNamespace(free=7_000_000))
    params = {"weight": np.zeros(1_000_000, np.float32)}
    with pytest.raises(ValueError, match=r"need 0.008 GB, but .* has 0.007 left: set TMPDIR"):
        convert_figures(None, params, None)


@pytest.mark.parametrize("script", [script for script in COMMANDS if script != "benchmark"])
def test_help_explains_the_command_and_every_field(script, run, monkeypatch):
    from launch import convert, plot
    from s1jax.decode.generate import GenerateConfig
    from s1jax.evaluate.conditions import EvaluateConfig
    from s1jax.evaluate.sweep import SweepConfig
    from s1jax.train.config import TrainConfig

    monkeypatch.setenv("COLUMNS", "100")
    types = dict(
        convert=(convert.ConvertConfig, None),
        evaluate=(EvaluateConfig, "s1_32b_math500"),
        generate=(GenerateConfig, None),
        plot=(plot.PlotConfig, None),
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
        assert f"usage: python launch/{script}.py CONFIG [--field value ...]" in out.replace(
            f"python {script}.py", f"python launch/{script}.py"
        )
        code, _, out = run(script, name, "--help")
        assert code == 0
    assert set(field_flags(config_type)) <= set(re.findall(r"--[a-z][a-z0-9.-]*", out))
    texts = list(field_texts(config_type))
    assert len(texts) > (1 if script == "plot" else 2)
    for text in texts:
        assert only_words(text) in only_words(out), text


def test_a_command_runs_as_a_process_of_its_own(tiny_model):
    command = [sys.executable, ROOT / "launch" / "generate.py", "--model", tiny_model, *GENERATE]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "--- thinking ---" in done.stdout and "thinking tokens (budget 8)" in done.stderr
    failed = subprocess.run([*command, "--num-ignore", "-3"], capture_output=True, text=True, cwd="/")
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: num_ignore is -3") and failed.stderr.count("\n") == 1


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


def test_the_quickstart_ends_with_a_command_that_fits_its_model():
    (command,) = re.findall(r"launch/generate\.py (.*)", (ROOT / "launch" / "quickstart.sh").read_text())
    limits = [int(limit) for limit in re.findall(r"--max-(?:thinking|answer)-tokens (\d+)", command)]
    context = json.loads((ROOT / "data_tools" / "quickstart" / "tiny_base" / "config.json").read_text())[
        "max_position_embeddings"
    ]
    assert len(limits) == 2 and sum(limits) < context / 2


# What makes each step of the quickstart small; a step that is not here runs as it stands.
SMALLER = {
    "-m data_tools.quickstart.arithmetic": "--num 120 --num-heldout 8",
    "-m data_tools.curation.curate": "--num 16 --num-rows 64",
    "launch/train.py quickstart": "--data.num-epochs 1",
    "launch/sweep.py quickstart_budgets": "--max-thinking-tokens 8 16 --decoding.num-rows 16",
    "launch/sweep.py quickstart_waits": "--max-thinking-tokens 16 --num-ignore 1 --decoding.num-rows 16",
    "launch/sweep.py quickstart_votes": "--max-thinking-tokens 16 --num-samples 2 --decoding.limit 4 --decoding.num-rows 16",
}


@pytest.fixture
def quickstart(tmp_path):
    """The project with quickstart.sh as it stands, but a python that adds SMALLER's arguments; returns a function that runs it."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "launch").mkdir()
    for path in [ROOT / "s1jax", ROOT / "data_tools", ROOT / "configs", *(ROOT / "launch").glob("*.py")]:
        (tmp_path / path.relative_to(ROOT)).symlink_to(path)
    shutil.copy(ROOT / "launch" / "quickstart.sh", tmp_path / "launch")
    (tmp_path / "launch" / "install.sh").write_text("install() { :; }\n")
    cases = "".join(f'"{start} "*) set -- "$@" {more} ;;\n' for start, more in SMALLER.items())
    one_device = 'export XLA_FLAGS="$XLA_FLAGS --xla_force_host_platform_device_count=1"'
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(
        f'#!/usr/bin/env bash\necho "ran: $*"\ncase "$* " in\n{cases}esac\n{one_device}\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)

    # Most of the time goes into compiling what then runs for a moment: keep it for the next test run.
    env = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "compiled"),
    }

    def run(*arguments):
        command = ["bash", tmp_path / "launch" / "quickstart.sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)

    return run


def test_the_quickstart_runs_from_the_pool_to_the_figures(quickstart, tmp_path):
    out = tmp_path / "out"
    done = quickstart()
    assert done.returncode == 0, done.stderr
    ran = [line.removeprefix("ran: ") + " " for line in done.stdout.splitlines() if line.startswith("ran: ")]
    assert all(any(command.startswith(f"{start} ") for command in ran) for start in SMALLER), "SMALLER names every step"
    for name in re.findall(r"^  (\S+?),? (?:(\S+) )? {2,}", done.stderr, re.MULTILINE):
        assert all((out / part).exists() for part in name if part), name
    rejects = (out / "data" / "train.rejects.jsonl").read_text().splitlines()
    chosen = (out / "data" / "train.jsonl").read_text().splitlines()
    assert len(chosen) == 16 and len(chosen) + len(rejects) == 120
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * 2 + 8 + 4 * 2
    assert {row["num_ignore"] for row in rows} == {0, 1}
    assert "maj@k" in done.stderr and "Done in" in done.stderr


def test_the_quickstart_refuses_what_is_no_folder_and_explains_itself(quickstart, tmp_path):
    for argument in ("", "--nonesuch"):
        refused = quickstart(argument)
        assert refused.returncode == 2 and f"not '{argument}'" in refused.stderr
    explained = quickstart("--help")
    assert explained.returncode == 0 and "OUT: folder" in explained.stdout
    assert not (tmp_path / "out").exists()
