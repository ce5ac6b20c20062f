"""The commands as they are run: help, and one clear message with a non-zero exit for bad input, leaving nothing half-written."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a launch script in this process; return its exit status and standard error."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "launch" / f"{script}.py"), run_name="__main__")
        except SystemExit as exit_info:
            code = exit_info.code or 0
        captured = capfd.readouterr()
        return code, captured.err, captured.out

    return run


@pytest.fixture
def inputs(tmp_path, tiny_model):
    """Bad inputs by name."""
    good = dict(id="1", question="1 + 1?", thinking="one and one", answer="2", reference="2", source="t", domain="d")
    (tmp_path / "good.jsonl").write_text(json.dumps(good) + "\n")
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
    return tmp_path


GENERATE = ["--prompt", "1 + 1?", "--max-thinking-tokens", "8", "--max-answer-tokens", "4", "--dtype", "float32"]
TRAIN = ["quickstart", "--output", "{tmp}/run", "--model", "{model}", "--data.source", "{tmp}/good.jsonl"]
SWEEP = ["quickstart_budgets", "--decoding.model", "{model}", "--decoding.benchmark", "{tmp}/good.jsonl"]
SWEEP += ["--decoding.output", "{tmp}/run/rows.jsonl"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("generate", ["--model", "{tmp}/nonesuch", *GENERATE], "nonesuch"),
        ("generate", ["--model", "{tmp}/directory", *GENERATE], "is no checkpoint"),
        ("generate", ["--model", "{tmp}/good.jsonl", *GENERATE], "is a file"),
        ("generate", ["--model", "{tmp}/corrupt", *GENERATE], "model.safetensors"),
        ("generate", ["--model", "{tmp}/garbage", *GENERATE], "model.safetensors"),
        ("generate", ["--model", "{tmp}/no_delimiters", *GENERATE], "<|im_start|>"),
        ("generate", ["--model", "{model}", *GENERATE, "--max-thinking-tokens", "-1"], "max_thinking_tokens is -1"),
        ("generate", ["--model", "{model}", *GENERATE, "--prompt", "why? " * 200], "the model has 512"),
        ("generate", ["--model", "{model}", *GENERATE, "--prompt", " "], "is empty"),
        ("generate", ["--model", "{model}", *GENERATE, "--nonesuch", "1"], "unknown field --nonesuch"),
        ("generate", ["--model", "{model}", *GENERATE, "--dtype", "float31"], "float31"),
        ("train", ["nonesuch"], "no config 'nonesuch'"),
        ("train", [*TRAIN, "--nonesuch", "1"], "unknown field --nonesuch"),
        ("train", [*TRAIN, "--data.source", "{tmp}/nonesuch.jsonl"], "nonesuch.jsonl"),
        ("train", [*TRAIN, "--data.source", "{tmp}/empty.jsonl"], "empty.jsonl"),
        ("train", [*TRAIN, "--data.source", "{tmp}/no_trace.jsonl"], "thinking"),
        ("train", [*TRAIN, "--data.source", "{tmp}/no_question.jsonl"], "question"),
        ("train", [*TRAIN, "--data.source", "{tmp}/no_json.jsonl"], "JSON"),
        ("train", [*TRAIN, "--data.max-length", "16"], "max_length"),
        ("train", [*TRAIN, "--data.batch-size", "0"], "batch_size"),
        ("train", [*TRAIN, "--model", "{tmp}/corrupt"], "model.safetensors"),
        ("train", [*TRAIN, "--mesh.tensor", "3"], "mesh"),
        ("sweep", [*SWEEP, "--max-thinking-tokens", "-5"], "none negative"),
        ("sweep", [*SWEEP, "--decoding.benchmark", "{tmp}/no_json.jsonl"], "no_json.jsonl"),
        ("sweep", [*SWEEP, "--decoding.benchmark", "{tmp}/empty.jsonl"], "empty.jsonl"),
        ("sweep", ["s1_32b"], "no CONFIG of type SweepConfig"),
        ("plot", ["{tmp}/nonesuch.jsonl", "--out", "{tmp}/run"], "nonesuch.jsonl"),
        ("plot", ["{tmp}/no_json.jsonl", "--out", "{tmp}/run"], "no_json.jsonl"),
        ("convert", ["{tmp}/corrupt", "{tmp}/run"], "model.safetensors"),
        ("convert", ["{tmp}/directory", "{tmp}/run"], "is no checkpoint"),
    ],
)
def test_bad_input_is_one_message_and_a_nonzero_exit_and_leaves_nothing(
    script, arguments, message, run, inputs, tiny_model
):
    before = sorted(inputs.rglob("*"))
    code, error, _ = run(script, *[argument.format(tmp=inputs, model=tiny_model) for argument in arguments])
    assert code not in (0, None)
    # One message: a line of ours, or the box in which tyro says which value it cannot read.
    (start,) = [line for line in error.splitlines() if line.startswith(("error: ", "\u256d"))]
    assert message in error[error.index(start) :]
    assert "Traceback" not in error
    assert sorted(inputs.rglob("*")) == before


@pytest.mark.parametrize("script", COMMANDS)
def test_help_explains_the_command(script, run):
    code, _, out = run(script, "--help")
    assert code == 0 and len(out) > 200


def test_a_command_runs_as_a_process_of_its_own(tiny_model):
    command = [sys.executable, ROOT / "launch" / "generate.py", "--model", tiny_model, *GENERATE]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "--- thinking ---" in done.stdout and "thinking tokens (budget 8)" in done.stderr
    failed = subprocess.run([*command, "--num-ignore", "-3"], capture_output=True, text=True, cwd="/")
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: num_ignore is -3") and failed.stderr.count("\n") == 1
