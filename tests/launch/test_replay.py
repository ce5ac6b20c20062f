"""`replay.py`: the command that replays rules on rows."""

import json
import subprocess
import sys

import pytest

from s1jax.runtime.files import ROOT
from tests.support.samples import study_rows


def run(*arguments):
    command = [sys.executable, "launch/replay.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "HOME": "/"})


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.integration
def test_the_command_prints_tables_and_writes_the_same_figures(tmp_path):
    rows, output = write(tmp_path / "rows.jsonl", study_rows(samples=4)), tmp_path / "replay.json"
    output.write_text('{"replay": [], "left_out": [], "grid": [], "equal_tokens": []}')  # of an earlier run
    done = run(rows, "--output", output, "--rules", "votes", "shortest", "online")
    assert (done.returncode, done.stderr) == (0, "")
    assert "first 3 vote" in done.stdout and "left out: stopped traces (DeepConf online)" in done.stdout
    assert 'extending "Wait"' in done.stdout
    content = json.loads(output.read_text())
    votes = [p for p in content["replay"] if p["rule"] == "votes" and p["num_ignore"] == 0]
    grid = [p for p in content["grid"] if p["max_thinking_tokens"] == 64 and p["num_ignore"] == 0]
    assert [(p["k"], p["accuracy"], p["tokens"]) for p in votes] == [(p["k"], p["accuracy"], p["tokens"]) for p in grid]
    assert {p["why"] for p in content["left_out"]} == {"20 of 20 traces have no per-token figures"}
    assert content["equal_tokens"][0]["levels"][0].keys() == {"share", "tokens", "cutting", "extending Wait", "voting"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/rows.jsonl", "--votes", "64"], "votes is 64; the rows hold at most 4 samples per problem"),
        (["{tmp}/rows.jsonl", "--output", "{tmp}/rows.jsonl"], "{tmp}/rows.jsonl is of another program"),
        (["{tmp}/rows.jsonl", "--output", "{tmp}"], "{tmp} cannot be written: it is a directory"),
        (["{tmp}/rows.jsonl", "--keep", "2"], "keep is 2.0; it must be above 0 and below 1"),
        (["{tmp}/rows.jsonl", "--rules", "nonesuch"], "nonesuch"),
    ],
)
def test_the_command_explains_bad_input_in_one_line(tmp_path, arguments, message):
    rows = write(tmp_path / "rows.jsonl", study_rows(samples=4))
    before = rows.read_bytes()
    done = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (done.returncode, done.stdout) == (1, "")
    assert message.format(tmp=tmp_path) in done.stderr and done.stderr.count("\n") == 1
    assert rows.read_bytes() == before
