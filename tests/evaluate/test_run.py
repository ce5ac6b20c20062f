"""`run.py`: a run writes each row once, resumes what is missing, and refuses what it cannot write."""

import json
import os
import random
import re
import shutil
import signal
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from s1jax.decode import batch, engine
from s1jax.evaluate.run import evaluate
from s1jax.grading.pool import Grade
from s1jax.results.samples import read_samples, row_key
from s1jax.runtime import jsonl
from s1jax.runtime.sharding import MeshConfig
from tests.support.disk import full_disk
from tests.support.runs import sweep
from tests.support.samples import comparable, study_rows


def with_decoding(config, **changes):
    return replace(config, decoding=replace(config.decoding, **changes))


def test_a_command_prints_the_rows_that_it_was_asked_for_and_counts_the_others(tmp_path, capsys, caplog, monkeypatch):
    caplog.set_level("INFO", "s1jax")
    rows, output = study_rows(), tmp_path / "rows.jsonl"
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {row_key(row) for row in rows if row["max_thinking_tokens"] == 16}
    monkeypatch.setattr("s1jax.evaluate.run.write_samples", lambda *_: (output, asked))
    evaluate(None, [])
    table = capsys.readouterr().out
    assert "budget 16" in table and "budget 32" not in table
    assert f"{output} also holds 25 rows of other runs: plot.py shows all" in caplog.text


@pytest.mark.integration
def test_a_run_killed_twice_loses_and_repeats_no_row(config, tmp_path, command_of, processes):
    questions = [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(12)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    # One row at a time, so that rows are written from the beginning on.
    config = replace(config, decoding=replace(config.decoding, num_rows=1))
    whole = replace(config, decoding=replace(config.decoding, output=str(tmp_path / "whole.jsonl")))
    for _ in range(2):
        assert processes.kill_after_a_row(*command_of(config), output=Path(config.decoding.output)) < 72
    assert comparable(sweep(config)) == comparable(sweep(whole))


@pytest.mark.integration
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_says_how_many_rows_are_in_which_file_and_leaves_no_lock(number, word, config, command_of, processes):
    config, output = with_decoding(config, num_rows=1), Path(config.decoding.output)
    questions = [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(100)]
    Path(config.decoding.benchmark).write_text("".join(json.dumps(q) + "\n" for q in questions))
    script, file = command_of(config)
    # A shell ignores Ctrl-C for the processes in its background, where these tests may run.
    code = f"import runpy, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsys.argv = ['sweep', {str(file)!r}]\n"
    process = processes.start("-c", f"{code}runpy.run_path({str(script)!r}, run_name='__main__')")
    deadline = time.monotonic() + 120
    while not output.exists() or output.read_bytes().count(b"\n") < 6:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    (done,) = processes.finish(process)
    num_rows = output.read_bytes().count(b"\n")
    message = f"{word} while decoding: (\\d+) of 600 rows are in {output}; the same command resumes"
    found = re.fullmatch(message, done.err.splitlines()[-1])
    assert found, done
    # Rows may still be written while the message is.
    assert done.code == 128 + number and 0 <= int(found[1]) <= num_rows
    assert not list(output.parent.glob(".*lock"))


@pytest.mark.integration
def test_a_full_disk_names_the_file_and_the_same_command_resumes(config, tmp_path, monkeypatch):
    whole = sweep(with_decoding(config, output=str(tmp_path / "whole.jsonl")))
    append, output = jsonl.Appender.append, Path(config.decoding.output)

    def append_on_full_disk(self, rows):
        with full_disk(whole.stat().st_size // 2):
            append(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(jsonl.Appender, "append", append_on_full_disk)
        with pytest.raises(OSError, match=f"{output} cannot be written: .*run the same command again"):
            sweep(config)
    assert output.stat().st_size < whole.stat().st_size and not list(tmp_path.glob(".*"))
    assert sorted(sweep(config).read_text().splitlines()) == sorted(whole.read_text().splitlines())


@pytest.mark.slow
def test_of_sweeps_that_start_at_once_on_one_output_one_goes_on(config, tmp_path, command_of, processes):
    whole = sweep(with_decoding(config, output=str(tmp_path / "whole.jsonl")))
    for i in range(int(os.environ.get("S1JAX_TEST_STARTS", 3))):
        output = tmp_path / str(i) / "rows.jsonl"
        output.parent.mkdir()
        command = command_of(with_decoding(config, output=str(output)))
        ends = processes.finish(*(processes.start(*command) for _ in range(2)))
        (refused,) = [end for end in ends if end.code]
        assert re.search(rf"^error: {output} is being written by process \d+ on \S+ \(since ", refused.err, re.M), ends
        assert comparable(output) == comparable(whole)
        assert sorted(path.name for path in output.parent.iterdir()) == ["rows.jsonl", "rows.py"]


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_writes_the_rows_of_one_left_alone(config, tmp_path, command_of, processes):
    questions = [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(100)]
    Path(config.decoding.benchmark).write_text("".join(json.dumps(q) + "\n" for q in questions))
    config = with_decoding(replace(config, condition=replace(config.condition, temperature=1.0)), num_rows=4)
    whole = sweep(with_decoding(config, output=str(tmp_path / "whole.jsonl"))).read_bytes()
    output, seed = Path(config.decoding.output), random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for kills in range(10):
        size = output.stat().st_size if output.exists() else 0
        target = size + draw.randint(0, (len(whole) - size) // (11 - kills))
        process = processes.start(*command_of(config))
        deadline = time.monotonic() + 120
        while process.poll() is None and (output.stat().st_size if output.exists() else 0) <= target:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.random() / 100)
        assert process.poll() is None, f"it ended before it was killed, after {kills} kills"
        process.send_signal(signal.SIGKILL)
        processes.finish(process)
    assert output.stat().st_size < len(whole)
    (end,) = processes.finish(processes.start(*command_of(config)))
    assert end.code == 0, end
    assert sorted(output.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert sorted(path.name for path in output.parent.glob("*rows*")) == ["rows.jsonl", "rows.py"]


@pytest.mark.integration
def test_two_processes_write_what_one_does_once(config, tmp_path, command_of, processes):
    # Long enough for the cache to grow.
    config = replace(config, max_thinking_tokens=(0, 5, 150), num_ignore=(0, 20))
    decoding = replace(config.decoding, mesh=MeshConfig(data=4, fsdp=1, tensor=2), output=str(tmp_path / "two.jsonl"))
    two = replace(config, decoding=decoding, report=True)
    # Some rows are there already.
    one = sweep(config)
    Path(decoding.output).write_text("".join(one.read_text().splitlines(keepends=True)[:5]))
    printed = processes.run_two(*command_of(two))
    assert ["ended by budget" in text for text in printed] == [True, False]
    shown = [tmp_path / name for name in ("thinking.png", "tables.md", "report.html")]
    assert printed[0].splitlines()[-3:] == list(map(str, shown)) and all(path.is_file() for path in shown)
    assert comparable(decoding.output) == comparable(one)
    assert max(row["num_thinking_tokens"] for row in read_samples(one)) > 2 * batch.SMALLEST_CAPACITY


@pytest.mark.integration
def test_a_row_whose_comparison_takes_long_is_appended_while_others_decode(config, monkeypatch):
    stream, waiting, output = engine.Engine.stream, [], Path(config.decoding.output)

    def submit(grader, text, gold):
        waiting.append(Future())
        return waiting[-1]

    def stream_slowly(self, requests, show_tokens, **options):
        for index, completions in stream(self, requests, show_tokens=show_tokens, **options):
            before = len(waiting)
            yield index, completions
            num_written = output.read_bytes().count(b"\n") if output.exists() else 0
            for future in waiting[before:]:
                future.set_result(Grade(None, "no_answer"))
            show_tokens(0, 0)
            assert output.read_bytes().count(b"\n") == num_written + len(completions) == len(waiting)

    monkeypatch.setattr("s1jax.grading.pool.Grader.submit", submit)
    monkeypatch.setattr(engine.Engine, "stream", stream_slowly)
    sweep(config)
    assert len(read_samples(output)) == len(waiting) == 18


@pytest.mark.integration
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


@pytest.mark.integration
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


@pytest.mark.integration
def test_a_file_that_is_not_one_of_whole_sample_rows_is_left_as_it_is(config):
    output = sweep(config)
    old = "".join(in_first_format(line) + "\n" for line in output.read_text().splitlines())
    for text, message in (
        (old, "holds rows of an earlier format, .*: give another --output"),
        (old[:-1], "holds rows of an earlier format"),
        ('{"precious": "only copy"}', "no sample row"),
        ('{"precious": "only co', "holds no sample rows"),
        ("notes", "line 1 is not JSON"),
        ("notes\nand more", "line 1 is not JSON"),
        ("\x89PNG\r\n\x1a\n\0\0\0", "line 1 is not UTF-8"),
        ('{"problem_id": \0\1\2', "line 1 is not JSON"),
    ):
        content = text.encode("latin-1" if "PNG" in text else "utf-8")
        output.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            sweep(config)
        assert output.read_bytes() == content


@pytest.mark.integration
def test_an_edited_benchmark_is_noticed_and_an_edited_tokenizer_makes_rows_of_its_own(config, tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    config = with_decoding(config, model=str(copy), limit=2)
    sweep(config)
    sweep(with_decoding(config, limit=3))
    problems, output = Path(config.decoding.benchmark), Path(config.decoding.output)
    before, rows = problems.read_text(), output.read_text()
    problems.write_text(before.replace("2 + 1?", "1 + 2?"))
    with pytest.raises(ValueError, match="problem 'sums/3' of benchmark sums has another question or answer"):
        sweep(config)
    problems.write_text(
        "".join(json.dumps({"id": f"b{i}", "question": f"{i}?", "answer": "1"}) + "\n" for i in range(3))
    )
    with pytest.raises(ValueError, match=r"problem 'sums/1' of benchmark sums .* is none of its problems"):
        sweep(config)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    with pytest.raises(ValueError, match="rename one of two benchmarks of that name"):
        sweep(with_decoding(config, model=str(other)))
    assert output.read_text() == rows
    problems.write_text(before.splitlines(keepends=True)[0])  # a benchmark may become shorter
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


@pytest.mark.integration
def test_more_rows_than_requests_are_not_allocated(config):
    whole = sweep(config).read_text().splitlines()
    output = Path(config.decoding.output)
    output.unlink()
    many = sweep(replace(config, decoding=replace(config.decoding, num_rows=100_000_000_000)))
    assert sorted(many.read_text().splitlines()) == sorted(whole)


@pytest.mark.parametrize("output", ["sums.jsonl/rows.jsonl", "directory", "/proc/rows.jsonl", "/dev/null", "x" * 250])
def test_an_impossible_output_is_refused_before_the_model_is_loaded(config, output, tmp_path, monkeypatch):
    (tmp_path / "directory").mkdir()
    monkeypatch.setattr("s1jax.evaluate.run.load_engine", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{output} cannot be written"):
        sweep(replace(config, decoding=replace(config.decoding, output=str(tmp_path / output))))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.integration
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
