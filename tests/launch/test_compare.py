"""`compare.py`: the command that compares two files of rows."""

import json
import subprocess
import sys

import pytest

from s1jax.runtime.files import ROOT
from tests.support.samples import study_rows


def run(*arguments):
    command = [sys.executable, "launch/compare.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "HOME": "/"})


@pytest.mark.integration
def test_the_command_prints_the_comparison_and_explains_bad_input_in_one_line(tmp_path):
    for name, dtype in (("a", "bfloat16"), ("b", "float32")):
        rows = [row | {"dtype": dtype} for row in study_rows()]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    result = run(*files, "--output", tmp_path / "out.json")
    assert result.returncode == 0 and "B - A" in result.stdout and "McNemar" in result.stdout, result.stderr
    assert len(json.loads((tmp_path / "out.json").read_text())) == 6
    result = run(files[0], "--a", "num_ignore=0", "max_thinking_tokens=64", "--b", "num_ignore=1", "2")
    assert result.returncode == 1 and result.stderr.startswith("error: --b '2': give column=value")
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert run().stderr.startswith("error: give one file of sample rows or two, not 0")
