"""`regrade.py`: the command that grades rows again."""

import json
import subprocess
import sys

import pytest

from s1jax.evaluate.problems import read_problems
from s1jax.runtime.files import ROOT
from tests.support.samples import sample


@pytest.mark.integration
def test_the_command_prints_the_file_and_says_what_changed(tmp_path):
    problems, rows = tmp_path / "toy.jsonl", tmp_path / "rows.jsonl"
    problems.write_text(json.dumps({"id": "p0", "question": "?", "answer": "(x+1)^2"}))
    (problem,) = read_problems(str(problems))
    wrong = sample(problem=problem.digest, answer_text=r"\boxed{x^2+2x+1}", extracted="x^2+2x+1", correct=False)
    rows.write_text(json.dumps(wrong) + "\n")
    command = [sys.executable, "launch/regrade.py", rows, "--benchmark", problems]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "HOME": "/"})
    assert (done.returncode, done.stdout) == (0, f"{rows}\n"), done.stderr
    assert "1 row: 1 equal\n1 verdict changed:\n  different -> equal: problem 'p0', 'x^2+2x+1'\n" in done.stderr
    assert json.loads(rows.read_text())["correct"] is True
