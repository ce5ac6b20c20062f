"""`quickstart.sh`: from generated problems to the figures."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from s1jax.runtime.files import ROOT


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
    "-m data_tools.curation quickstart_data": "--selection.num 16 --difficulty.num-rows 64",
    "launch/train.py quickstart": "--data.num-epochs 1",
    "launch/sweep.py quickstart_budgets": "--max-thinking-tokens 8 16 --num-rows 16",
    "launch/sweep.py quickstart_waits": "--max-thinking-tokens 16 --num-ignore 1 --num-rows 16",
    "launch/sweep.py quickstart_votes": "--max-thinking-tokens 16 --num-samples 2 --limit 4 --num-rows 16",
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


@pytest.mark.integration
def test_the_quickstart_runs_from_the_pool_to_the_figures(quickstart, tmp_path):
    out = tmp_path / "out"
    done = quickstart()
    assert done.returncode == 0, done.stderr
    ran = [line.removeprefix("ran: ") + " " for line in done.stdout.splitlines() if line.startswith("ran: ")]
    assert all(any(command.startswith(f"{start} ") for command in ran) for start in SMALLER), "SMALLER names every step"
    for name in re.findall(r"^  (\S+?),? (?:(\S+) )? {2,}", done.stderr, re.MULTILINE):
        assert all((out / part).exists() for part in name if part), name
    rejects = (out / "curated" / "rejects.jsonl").read_text().splitlines()
    chosen = (out / "curated" / "train.jsonl").read_text().splitlines()
    assert len(chosen) == 16 and len(chosen) + len(rejects) == 120
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * 2 + 8 + 4 * 2
    assert {row["num_ignore"] for row in rows} == {0, 1}
    assert "maj@k" in done.stderr and "Done in" in done.stderr


@pytest.mark.integration
def test_the_quickstart_refuses_what_is_no_folder_and_explains_itself(quickstart, tmp_path):
    for arguments in ([""], ["--nonesuch"], ["out", "more"]):
        refused = quickstart(*arguments)
        assert refused.returncode == 1 and f"'{arguments[-1]}'" in refused.stderr and refused.stderr.count("\n") == 1
    explained = quickstart("--help")
    assert explained.returncode == 0 and "OUT: folder" in explained.stdout
    assert not (tmp_path / "out").exists()
