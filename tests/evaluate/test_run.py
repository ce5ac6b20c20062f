"""`evaluate.py` and `sweep.py` on a tiny random model: rows, resume, and what is refused."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from s1jax.checkpoint.export import save_hf
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.data.condition import Condition
from s1jax.decode import batch, engine
from s1jax.decode.load import load_engine
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig, Trace
from s1jax.evaluate.run import evaluate
from s1jax.evaluate.sweep import SweepConfig, grid, sweep
from s1jax.results.metrics import thinking_curve
from s1jax.results.samples import COLUMNS, read_samples
from s1jax.runtime.config import parse_command
from s1jax.runtime.progress import _speed, progress
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh
from tests.support.decoding import changed, make_request
from tests.support.models import random_params

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_model, tmp_path):
    questions = [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return SweepConfig(
        decoding=DecodingConfig(
            model=tiny_model, benchmark=str(tmp_path / "sums.jsonl"), output=str(tmp_path / "rows.jsonl"),
            num_rows=8,
        ),
        condition=Condition(0, max_answer_tokens=8, dtype="float32"),
        max_thinking_tokens=(0, 5, 20),
        num_ignore=(0, 2),
    )  # fmt: skip


def drawn(config, **changes):
    """The config with answers drawn at temperature 1, and other changes of its condition."""
    return replace(config, condition=replace(config.condition, temperature=1.0, **changes))


def with_decoding(config, **changes):
    return replace(config, decoding=replace(config.decoding, **changes))


def comparable(path):
    """Rows in one order, without what may differ between equal runs."""
    return sorted(json.dumps(r) for r in read_samples(path))


def test_a_sweep_is_one_row_per_point_problem_and_sample_with_the_contracts_columns(config):
    rows = read_samples(sweep(replace(drawn(config), num_samples=2)))
    keys = {(r["problem_id"], r["max_thinking_tokens"], r["num_ignore"], r["sample_index"]) for r in rows}
    assert len(rows) == len(keys) == 3 * 3 * 2 * 2
    written = json.loads(Path(config.decoding.output).read_text().splitlines()[0])
    assert list(written) == list(COLUMNS)
    for row in rows:
        assert row["num_thinking_tokens"] <= row["max_thinking_tokens"]
        assert row["num_ignored"] <= row["num_ignore"]
    assert all(point["num_over_budget"] == 0 for point in thinking_curve(rows))


def test_points_and_number_of_rows_change_no_row(config, tmp_path):
    apart = []
    for i, condition in enumerate(grid(config).conditions):
        decoding = replace(config.decoding, output=str(tmp_path / f"point{i}.jsonl"), num_rows=2)
        apart += comparable(evaluate(EvaluateConfig(decoding, condition)))
    assert comparable(sweep(config)) == sorted(apart)


CONFIG_FILE = """\"\"\"Made by a test.\"\"\"
from s1jax.data.condition import *
from s1jax.evaluate.conditions import *
from s1jax.runtime.sharding import *
from s1jax.evaluate.sweep import *

CONFIG = {config!r}
"""


@contextlib.contextmanager
def started(config, **env):
    """`launch/sweep.py` with this config as a process of its own, killed at the end."""
    file = Path(config.decoding.output).with_suffix(".py")
    file.write_text(CONFIG_FILE.format(config=config))
    if "JAX_NUM_CPU_DEVICES" in env:
        env["XLA_FLAGS"] = ""
    command = [sys.executable, str(ROOT / "launch" / "sweep.py"), str(file)]
    process = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_killed_twice_loses_and_repeats_no_row(config, tmp_path):
    questions = [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(12)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    # One row at a time, so that rows are written from the beginning on.
    config = replace(config, decoding=replace(config.decoding, num_rows=1))
    whole = replace(config, decoding=replace(config.decoding, output=str(tmp_path / "whole.jsonl")))
    output, num_rows = Path(config.decoding.output), 0
    for _ in range(2):
        with started(config) as process:
            deadline = time.monotonic() + 120
            while not output.exists() or output.read_text().count("\n") <= num_rows:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
        num_rows = output.read_text().count("\n")
        assert 0 < num_rows < 72
    assert comparable(sweep(config)) == comparable(sweep(whole))


def test_two_processes_write_what_one_does_once(config, tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    # Long enough for the cache to grow.
    config = replace(config, max_thinking_tokens=(0, 5, 150), num_ignore=(0, 20))
    decoding = replace(config.decoding, mesh=MeshConfig(data=4, fsdp=1, tensor=2), output=str(tmp_path / "two.jsonl"))
    two = replace(config, decoding=decoding)
    # Some rows are there already.
    one = sweep(config)
    Path(decoding.output).write_text("".join(one.read_text().splitlines(keepends=True)[:5]))
    env = dict(
        JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="4", JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_NUM_PROCESSES="2"
    )
    with started(two, **env, JAX_PROCESS_ID="0") as first, started(two, **env, JAX_PROCESS_ID="1") as second:
        printed = []
        for process in (first, second):
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            printed.append(output)
    assert ["ended by budget" in text for text in printed] == [True, False]
    assert comparable(decoding.output) == comparable(one)
    assert max(row["num_thinking_tokens"] for row in read_samples(one)) > 2 * batch.SMALLEST_CAPACITY


def test_a_killed_run_goes_on_where_it_stopped(config, monkeypatch):
    whole = sweep(config).read_text().splitlines(keepends=True)
    torn = "".join(whole[:8]) + whole[8][:40]
    Path(config.decoding.output).write_text(torn)
    decoded = []
    check = engine.Engine.check
    monkeypatch.setattr(engine.Engine, "check", lambda self, request: decoded.append(request) or check(self, request))
    sweep(config)
    assert sorted(Path(config.decoding.output).read_text().splitlines(keepends=True)) == sorted(whole)
    assert sum(len(request.points) for request in set(decoded)) == len(whole) - 8


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_last_row_that_lacks_its_line_break_or_more_is_mended(config, whole):
    rows = sweep(config).read_text().splitlines(keepends=True)
    for torn in (rows[whole][:-1], rows[whole][:40], rows[whole][:5]):
        Path(config.decoding.output).write_text("".join(rows[:whole]) + torn)
        assert sorted(sweep(config).read_text().splitlines(keepends=True)) == sorted(rows)


def in_first_format(line):
    """A row as it was written before every setting was a column."""
    later = ("weights", "tokenizer", "problem", "max_answer_tokens", "top_k", "top_p", "min_p", "dtype", "int8")
    row = {name: value for name, value in json.loads(line).items() if name not in later}
    return json.dumps(row | {"config_hash": "0123456789ab"})


def test_a_file_that_is_not_one_of_whole_sample_rows_is_left_as_it_is(config):
    output = sweep(config)
    old = "".join(in_first_format(line) + "\n" for line in output.read_text().splitlines())
    for text, message in (
        (old, "holds rows of an earlier format, .*: give another --decoding.output"),
        (old[:-1], "holds rows of an earlier format"),
        ('{"precious": "only copy"}', "no column"),
        ('{"precious": ', "holds no sample rows"),
        ("notes\nand more", "line 1 is not JSON"),
    ):
        output.write_text(text)
        with pytest.raises(ValueError, match=message):
            sweep(config)
        assert output.read_text() == text


def test_an_edited_benchmark_is_noticed_and_an_edited_tokenizer_makes_rows_of_its_own(config, tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    config = with_decoding(config, model=str(copy), limit=2)
    sweep(config)
    sweep(with_decoding(config, limit=3))
    problems, output = Path(config.decoding.benchmark), Path(config.decoding.output)
    before, rows = problems.read_text(), output.read_text()
    problems.write_text(before.replace("2 + 1?", "1 + 2?"))
    with pytest.raises(ValueError, match="problem sums/3 of benchmark sums has another question or answer"):
        sweep(config)
    assert output.read_text() == rows
    problems.write_text(before + json.dumps(dict(question="1 + 1?", answer="2")) + "\n")
    sweep(config)
    assert output.read_text() == rows
    (copy / "generation_config.json").write_text("{}\n\n")
    sweep(config)
    assert output.read_text().startswith(rows)
    assert len({row["tokenizer"] for row in read_samples(output)}) == 2
    assert len({row["weights"] for row in read_samples(output)}) == 1


def test_a_backend_that_serves_no_caches_is_refused_before_the_model_is_read():
    with pytest.raises(ValueError, match="attention is 'splash': over caches, choose xla or pallas"):
        DecodingConfig("nonesuch", "sums.jsonl", "rows.jsonl", attention="splash")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_thinking_tokens=(-1,)), "none negative"),
        (dict(num_ignore=()), "at least one value"),
        (dict(num_samples=0), "num_samples is 0"),
        (dict(min_thinking_tokens=(50,)), "above every budget"),
        (dict(max_thinking_tokens=(600,)), "the model has 512"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_is_written(config, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sweep(replace(config, **changes))
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_point_whose_minimum_is_above_its_budget_is_left_out():
    config = SweepConfig(decoding=None, max_thinking_tokens=(5, 20), min_thinking_tokens=(0, 10))
    assert [tuple(c.limits) for c in grid(config).conditions] == [(5, 0, 0), (20, 0, 0), (20, 10, 0)]
    assert tuple(grid(config).condition.limits) == (20, 10, 0)


def test_a_limit_outside_a_sweeps_axes_is_refused(config):
    with pytest.raises(ValueError, match=r"condition.num_ignore is 2, but a sweep takes its limits from num_ignore"):
        replace(config, condition=Condition(0, num_ignore=2))


def test_the_condition_and_the_axes_of_a_sweep_can_be_given_on_the_command_line():
    argv = [
        "quickstart_votes",
        "--condition.top-p",
        "0.9",
        "--condition.int8",
        "weights",
        "--max-thinking-tokens",
        "8",
        "16",
    ]
    config = parse_command("", SweepConfig, argv)
    condition = Condition(16, max_answer_tokens=8, temperature=1.0, top_p=0.9, dtype="float32", int8=("weights",))
    assert grid(config).condition == condition and len(grid(config).conditions) == 2
    with pytest.raises(ValueError, match=r"condition.max_thinking_tokens is 8, but a sweep takes its limits from"):
        parse_command("", SweepConfig, ["quickstart_votes", "--condition.max-thinking-tokens", "8"])


def test_the_conditions_of_a_trace_differ_only_in_their_limits():
    with pytest.raises(ValueError, match="differ only in their limits"):
        Trace((Condition(5), Condition(5, top_p=0.9, temperature=1.0)))


def test_conditions_are_equal_however_their_int8_is_written():
    assert Condition(5, int8=("weights", "cache", "weights")) == Condition(5, int8=("cache", "weights"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_ignore=3_000_000_000), "num_ignore is 3000000000; it must be from 0 to 2147483647"),
        (dict(temperature=float("nan")), "temperature is nan; it must be finite and not negative"),
        (dict(temperature=float("inf")), "temperature is inf; it must be finite"),
        (dict(max_answer_tokens=0), "max_answer_tokens is 0"),
        (dict(top_k=100_000_000_000), "top_k is 100000000000; it must be from 0 to 2147483647"),
        (dict(top_p=float("nan")), "top_p is nan"),
        (dict(min_p=float("inf")), "min_p is inf"),
    ],
)
def test_a_bad_condition_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        Condition(**{"max_thinking_tokens": 8, **changes})


@pytest.mark.parametrize(
    ("num_samples", "temperature", "message"),
    [
        (0, 1.0, "num_samples is 0; it must be from 1"),
        (3, 0.0, "num_samples 3 at temperature 0 would be copies of one answer"),
    ],
)
def test_a_bad_number_of_samples_is_refused(config, num_samples, temperature, message):
    condition = Condition(0, temperature=temperature)
    for make in (
        lambda: EvaluateConfig(config.decoding, condition, num_samples),
        lambda: replace(config, condition=condition, num_samples=num_samples),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_rows=0), "num_rows is 0; it must be at least 1"),
        (dict(num_rows=-4), "num_rows is -4"),
        (dict(limit=0), "limit is 0"),
        (dict(seed=-1), "seed is -1; it must be from 0 to 2147483647"),
        (dict(output=""), "output is empty"),
    ],
)
def test_a_bad_decoding_config_is_refused_by_name(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config.decoding, **changes)


@pytest.mark.parametrize("name", ["max_thinking_tokens", "num_ignore", "max_answer_tokens", "top_k", "seed", "sample"])
def test_no_integer_of_a_request_is_larger_than_the_devices(name):
    with pytest.raises(ValueError, match=f"{name} is 2147483648; it must be from . to 2147483647"):
        make_request(**{"prompt": (1,), name: 2**31})


def test_more_rows_than_requests_are_not_allocated(config):
    whole = sweep(config).read_text().splitlines()
    output = Path(config.decoding.output)
    output.unlink()
    many = sweep(replace(config, decoding=replace(config.decoding, num_rows=100_000_000_000)))
    assert sorted(many.read_text().splitlines()) == sorted(whole)


@pytest.mark.parametrize("num_rows", [0, -1])
def test_an_engine_without_rows_is_refused(tiny_model, num_rows):
    loaded, _ = load_engine(resolve_source(tiny_model), "float32")
    with pytest.raises(ValueError, match=f"num_rows is {num_rows}"):
        loaded.decode([make_request(prompt=(1,))], num_rows=num_rows)


def test_a_request_past_the_context_names_what_to_lower(tiny_model):
    loaded, _ = load_engine(resolve_source(tiny_model), "float32")
    fitting = make_request(prompt=(1,), max_thinking_tokens=400, max_answer_tokens=8)
    spare = 512 - 1 - loaded.model.num_new_tokens(fitting)
    loaded.check(changed(fitting, max_thinking_tokens=400 + spare))
    message = "has 512, its context length: lower max_thinking_tokens or max_answer_tokens, by 1 together"
    with pytest.raises(ValueError, match=message):
        loaded.check(changed(fitting, max_thinking_tokens=401 + spare))


@pytest.mark.parametrize("output", ["sums.jsonl/rows.jsonl", "directory", "/proc/rows.jsonl", "/dev/null", "x" * 300])
def test_an_impossible_output_is_refused_before_the_model_is_loaded(config, output, tmp_path, monkeypatch):
    (tmp_path / "directory").mkdir()
    monkeypatch.setattr("s1jax.evaluate.run.load_engine", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{output} cannot be written"):
        sweep(replace(config, decoding=replace(config.decoding, output=str(tmp_path / output))))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_error_before_the_first_row_leaves_no_file_and_is_not_followed_by_progress(
    config, tmp_path, monkeypatch, capsys
):
    def stream(self, requests, **options):
        raise OSError("no rows")
        yield

    monkeypatch.setattr(engine.Engine, "stream", stream)
    decoding = replace(config.decoding, output=str(tmp_path / "new" / "rows.jsonl"))
    with pytest.raises(OSError, match="no rows"):
        sweep(replace(config, decoding=decoding))
    assert not (tmp_path / "new").exists()
    assert capsys.readouterr().err.count("decode: 0 of 18") == 1


def test_progress_says_nothing_of_a_speed_before_anything_is_done(capsys):
    with progress(840, "decode", "row", initial=4) as bar:
        assert capsys.readouterr().err == "decode: 4 of 840\n"
        bar.update(836)
    assert re.fullmatch(r"decode: 840 of 840, [\d,.e+]+ row/s, 00:00 left\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("rate", "unit", "scaled", "text"),
    [
        (1.859, "row", False, "1.86 row/s"),
        (0.05, "row", False, "20 s/row"),
        (0.0, "row", False, "0 row/s"),
        (12345.6, "row", False, "12,346 row/s"),
        (2.5e9, "B", True, "2.5 GB/s"),
    ],
)
def test_a_speed_has_a_space_before_its_unit(rate, unit, scaled, text):
    assert _speed(dict(rate=rate, unit=unit, unit_scale=scaled)) == text


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_model, tmp_path):
    mesh = make_mesh(MeshConfig())
    config, _ = load_model(resolve_source(tiny_model), mesh, ShardingRules(), "stacked")
    config = replace(config, vocab_size=200)
    params = random_params(config, "stacked", mesh)
    save_hf(tmp_path / "hf", config, params, "float32", Path(tiny_model))
    with pytest.raises(ValueError, match="the tokenizer has 259 ids, the model only 200"):
        load_engine(resolve_source(tmp_path / "hf"), "float32")
