"""`plot.py`: the command that writes figures and prints tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s1jax.runtime.files import ROOT
from tests.support.samples import study_rows


def run(*arguments):
    command = [sys.executable, "launch/plot.py", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "HOME": "/", "MPLBACKEND": "module://absent"},
    )


@pytest.mark.integration
def test_the_command_writes_figures_beside_the_rows_and_names_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in study_rows(samples=2)))
    result = run(path)
    assert result.returncode == 0, result.stderr
    figures = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(next(iter(f.values()))).name for f in figures] == [
        "thinking.png",
        "voting.png",
        "tokens.png",
        "tables.md",
    ]
    assert all(Path(f[key]).is_file() and Path(f[key]).parent == tmp_path for f in figures for key in f)
    assert "Performance" in result.stderr and "maj@k" in result.stderr


@pytest.mark.integration
def test_no_figure_is_written_if_one_of_them_cannot_be(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in study_rows(samples=2)))
    (tmp_path / "voting.json").mkdir()
    result = run(path)
    assert (result.returncode, result.stdout) == (1, "")
    assert (
        result.stderr.startswith(f"error: {tmp_path}/voting.json cannot be written: ")
        and result.stderr.count("\n") == 1
    )
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.integration
def test_figures_replace_figures_and_no_file_of_another_program(tmp_path):
    path, old = tmp_path / "rows.jsonl", {"thinking.png": "a picture", "thinking.json": '{"my": "data"}'}
    old |= {"tables.md": "my tables", "tables.json": '{"curves": []}'}
    path.write_text("".join(json.dumps(row) + "\n" for row in study_rows()))
    for name, content in old.items():
        (tmp_path / name).write_text(content)
        result = run(path)
        assert result.returncode == 1 and "is of another program: give another --out" in result.stderr
        assert (tmp_path / name).read_text() == content
        (tmp_path / name).unlink()
    assert [run(path).returncode for _ in range(2)] == [0, 0]


@pytest.mark.integration
def test_the_papers_points_are_drawn_on_request_and_are_an_error_without_their_benchmark(tmp_path):
    for name in ("aime24", "toy"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in study_rows(benchmarks=(name,))))
    result = run(tmp_path / "aime24.jsonl", "--paper")
    assert result.returncode == 0, result.stderr
    points = json.loads((tmp_path / "thinking.json").read_text())
    assert sum(point["model"] == "s1-32B (paper)" for point in points) == 7 + 9
    assert run(tmp_path / "aime24.jsonl").returncode == 0, "figures with the paper's points are replaced"
    result = run(tmp_path / "toy.jsonl", "--paper", "--out", tmp_path / "out")
    assert result.returncode == 1 and result.stderr.startswith("error: the paper has points of aime24, ")
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_the_command_explains_bad_rows_in_one_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    result = run(path, "--out", tmp_path / "out")
    assert (result.returncode, result.stdout) == (1, "")
    assert (
        result.stderr.startswith("error: ")
        and "line 1: no sample row: it lacks problem_id" in result.stderr
        and result.stderr.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}"], "{tmp} cannot be read: Is a directory"),
        (
            ["{tmp}/rows.jsonl", "--out", "{tmp}/rows.jsonl"],
            "{tmp}/rows.jsonl/thinking.png cannot be written: {tmp}/rows.jsonl is not a dir",
        ),
        (["{tmp}/rows.jsonl", "--out", "/proc/figures"], "/proc/figures/thinking.png cannot be written: "),
        (["{tmp}/rows.jsonl", "--out", "{tmp}/taken"], "{tmp}/taken/voting.json cannot be written: it is a directory"),
        (["{tmp}/voting.json"], "{tmp}/voting.json holds the rows, which would be replaced"),
    ],
)
def test_the_command_explains_a_bad_path_in_one_line(tmp_path, arguments, message):
    for name in ("rows.jsonl", "voting.json"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in study_rows(samples=2)))
    (tmp_path / "taken" / "voting.json").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: " + message.format(tmp=tmp_path)) and result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
