"""`--record-tokens`: every row has the records of its tokens, whatever ended the run, and rows without records stay usable."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s1jax.evaluate.regrade import RegradeConfig, regrade
from s1jax.results.samples import read_samples, row_key
from s1jax.results.token_records import RECORD, read_tokens, tokens_path
from s1jax.runtime.errors import UserError
from tests.support.runs import sweep

pytestmark = pytest.mark.integration


def with_decoding(config, **changes):
    return replace(config, decoding=replace(config.decoding, **changes))


@pytest.fixture
def recording(config):
    return with_decoding(config, record_tokens=True)


def records_of(rows_path):
    """The records of each row, by its key."""
    return {row_key(row): read_tokens(rows_path, row) for row in read_samples(rows_path)}


def without_place(rows_path):
    return sorted(json.dumps({**row, "tokens_at": None, "num_tokens": None}) for row in read_samples(rows_path))


def assert_equal_records(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, records in ours.items():
        for name in ("token", "forced"):
            np.testing.assert_array_equal(records[name], theirs[key][name])
        # Programs of other shapes round differently.
        for name in ("logprob", "confidence", "end_logprob"):
            np.testing.assert_allclose(records[name], theirs[key][name], rtol=2e-3, atol=1e-4)


def test_each_row_has_its_records_and_the_answers_are_those_of_a_run_without(config, recording, tmp_path):
    rows_path = sweep(recording)
    plain = sweep(with_decoding(config, output=str(tmp_path / "plain.jsonl")))
    assert without_place(rows_path) == without_place(plain) and not tokens_path(plain).exists()
    rows = read_samples(rows_path)
    assert tokens_path(rows_path).stat().st_size == 11 * sum(row["num_tokens"] for row in rows)
    for row in rows:
        records = read_tokens(rows_path, row)
        assert records["forced"].sum() == row["num_forced_tokens"] and (records["confidence"] < 0).all()
    # A point of the sweep has the records that it has alone.
    for budget in config.max_thinking_tokens:
        alone = sweep(
            replace(with_decoding(recording, output=str(tmp_path / f"{budget}")), max_thinking_tokens=(budget,))
        )
        found = records_of(alone)
        assert_equal_records(found, {key: records for key, records in records_of(rows_path).items() if key in found})


@pytest.mark.slow
def test_a_run_killed_twice_has_the_records_of_an_undisturbed_one(recording, tmp_path, command_of, processes):
    questions = [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(12)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    # One row at a time, so that rows are written from the beginning on.
    recording = with_decoding(recording, num_rows=1)
    output = Path(recording.decoding.output)
    for _ in range(2):
        assert processes.kill_after_a_row(*command_of(recording), output=output) < 72
        with tokens_path(output).open("ab") as file:  # what a kill inside a write leaves
            file.write(b"\1" * (RECORD.itemsize + 4))
    killed = records_of(sweep(recording))
    assert tokens_path(output).stat().st_size % RECORD.itemsize == 0 and len(killed) == 72
    assert_equal_records(killed, records_of(sweep(with_decoding(recording, output=str(tmp_path / "whole.jsonl")))))


def test_rows_with_and_without_records_share_a_file_and_the_log_counts_those_without(config, recording, caplog):
    caplog.set_level("INFO", "s1jax")
    one, all_three = (with_decoding(config, limit=1), recording)
    output = sweep(one)
    sweep(all_three)
    assert f"6 of 6 rows in {output} have no token records" in caplog.text
    rows = read_samples(output)
    assert [row["tokens_at"] is None for row in rows] == [True] * 6 + [False] * 12
    caplog.clear()
    sweep(config)
    assert f"6 of 18 rows in {output} have no token records" in caplog.text and "new rows" in caplog.text
    assert read_samples(output) == rows
    with pytest.raises(UserError, match="no token records"):
        read_tokens(output, rows[0])
    assert sum(len(read_tokens(output, row)) for row in rows[6:]) * 11 == tokens_path(output).stat().st_size


def test_regraded_rows_keep_their_records_and_a_run_on_rows_without_their_file_is_refused(recording, tmp_path, caplog):
    caplog.set_level("INFO", "s1jax")
    output, problems = sweep(recording), recording.decoding.benchmark
    before = records_of(output)
    regrade(RegradeConfig(output, (problems,)))
    assert_equal_records(records_of(output), before)
    other = regrade(RegradeConfig(output, (problems,), output=tmp_path / "other.jsonl"))
    assert f"copy it to {tokens_path(other)}" in caplog.text
    with pytest.raises(UserError, match=r"other.jsonl.tokens is missing"):
        records_of(other)
    with pytest.raises(UserError, match=r"other.jsonl.tokens is missing.*put the file back"):
        sweep(with_decoding(recording, output=str(other)))
    tokens_path(other).write_bytes(tokens_path(output).read_bytes())
    assert_equal_records(records_of(other), before)
