"""`generate.py`: the command as a process of its own."""

import subprocess
import sys

import pytest

from s1jax.runtime.files import ROOT

pytestmark = pytest.mark.integration

GENERATE = ["--prompt", "1 + 1?", "--max-thinking-tokens", "8", "--max-answer-tokens", "4", "--dtype", "float32"]


def test_a_command_runs_as_a_process_of_its_own(tiny_model):
    command = [sys.executable, ROOT / "launch" / "generate.py", "--model", tiny_model, *GENERATE]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "--- thinking ---" in done.stdout and "thinking tokens (budget 8)" in done.stderr
    failed = subprocess.run([*command, "--num-ignore", "-3"], capture_output=True, text=True, cwd="/")
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: num_ignore is -3") and failed.stderr.count("\n") == 1
