"""`benchmark.py`: each benchmark runs and prints its figures as JSON."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from s1jax.perf.benchmark_convert import convert_figures
from s1jax.runtime.files import ROOT

SHORT = ["--examples", "20", "--divide", "100", "--attention", "xla"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("what", "arguments", "expected"),
    [
        ("decode", ["--batch", "2", "--tokens", "8"], lambda x: x["batch"] == 2 and x["tokens_per_s"] > 0),
        ("decode", ["--batch", "2", "--tokens", "8", "--record", "2"],
         lambda x: x["identical"] and x["recorded_tokens_per_s"] > 0 and len(x["cost_interval"]) == 2),
        pytest.param("decode", ["--batch", "2", "--tokens", "8", "--limit", "99"], lambda x: x["tokens_per_s"] > 0, marks=pytest.mark.slow),
        ("sweep", ["--problems", "2", "--budgets", "4", "9", "--waits", "1", "--answer", "4"],
         lambda x: x["points"] == 3 and x["identical"]),
        ("train", SHORT, lambda x: x["steps"] == 2 and 0 < x["filling"] <= 1 and x["useful_tokens_per_s"] > 0 and 0 < x["mfu"] < 1),
        pytest.param("train", [*SHORT, "--no-pack", "--slice", "1", "2"],
                     lambda x: x["layers"] == [1, 2] and x["whole_step_s"] == pytest.approx(x["step_s"][1], abs=2e-3),
                     marks=pytest.mark.slow),
        ("convert", [], lambda x: x["identical"] and x["hugging_face_read_s"] > 0 and x["presharded_read_s"] > 0),
    ],
    ids=["decode", "record", "limit", "sweep", "train", "slice", "convert"],
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
