"""`report.py`: the command that writes the report."""

import json
import subprocess
import sys

import pytest

from s1jax.evaluate.problems import read_problems
from s1jax.runtime.files import ROOT
from tests.support.samples import sample

pytestmark = pytest.mark.integration


def run(*arguments):
    command = [sys.executable, "launch/report.py", *map(str, arguments)]
    env = {"PYTHONPATH": str(ROOT), "HOME": "/", "MPLBACKEND": "module://absent"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


@pytest.fixture
def rows(tmp_path):
    """Rows of one problem, beside the problem's file, toy.jsonl."""
    (tmp_path / "toy.jsonl").write_text(json.dumps({"id": "p0", "question": "How many?", "answer": "1"}))
    (problem,) = read_problems(str(tmp_path / "toy.jsonl"))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(sample(problem=problem.digest)) + "\n")
    return path


def test_the_command_writes_the_report_beside_the_rows_replaces_it_and_names_it(rows):
    for _ in range(2):
        done = run(rows, "--benchmark", rows.with_name("toy.jsonl"))
        assert (done.returncode, done.stdout) == (0, f"{rows.with_name('report.html')}\n"), done.stderr
    assert rows.with_name("report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("report.html", "<title>mine</title>", [], "report.html is no report: give another --out"),
        ("toy.jsonl", '{"id": "p0", "question": "How few?", "answer": "1"}', ["--benchmark", "{}/toy.jsonl"], "had another question"),
        ("other.jsonl", '{"question": "How many?", "answer": "1"}', ["--benchmark", "{}/other.jsonl"], "holds no problem of the rows"),
        ("other", "", ["--out", "{}/rows.jsonl"], "rows.jsonl is no report"),
        ("other", "", ["--out", "{}/other/r.html"], "cannot be written: "),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_lost(rows, name, content, arguments, message):
    rows.with_name(name).write_text(content)
    before = {path: path.read_text() for path in rows.parent.iterdir()}
    done = run(rows, *(argument.format(rows.parent) for argument in arguments))
    assert (done.returncode, done.stdout) == (1, "") and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert {path: path.read_text() for path in rows.parent.iterdir()} == before
