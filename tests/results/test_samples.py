"""`samples.py`: files of sample rows."""

import json

import pytest

from s1jax.results.metrics import (
    thinking_curve,
)
from s1jax.results.samples import CONDITION, is_whole, read_samples, row_key
from tests.support.samples import sample


def write(path, rows, end="\n"):
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows) + end
    )
    return path


def test_sample_rows_read_back_as_written_without_unknown_columns(tmp_path):
    rows = [sample(), sample(problem_id="p1", extracted=None, correct=False, temperature=1)]
    assert read_samples(write(tmp_path / "rows.jsonl", [rows[0], rows[1] | {"later": 1}])) == rows


def test_rows_of_the_first_format_are_read_with_what_it_lacks_unknown(tmp_path):
    later = {
        "weights",
        "tokenizer",
        "problem",
        "verdict",
        "max_answer_tokens",
        "top_k",
        "top_p",
        "min_p",
        "dtype",
        "int8",
    }
    first = {name: value for name, value in sample().items() if name not in later} | {"config_hash": "c"}
    old, new = read_samples(write(tmp_path / "rows.jsonl", [first, sample()]))
    assert old == sample() | dict.fromkeys(later) and new == sample()
    assert not is_whole(old) and is_whole(new)
    assert [point["top_p"] for point in thinking_curve([old, new])] == [None, 1.0]
    assert read_samples(write(tmp_path / "again.jsonl", [old])) == [old]


def test_rows_from_before_verdicts_are_whole_and_can_be_added_to(tmp_path):
    before = {name: value for name, value in sample().items() if name != "verdict"}
    (old,) = read_samples(write(tmp_path / "rows.jsonl", [before]))
    assert old == sample() | {"verdict": None} and is_whole(old)


def test_rows_from_before_the_formats_of_thinking_are_whole_and_those_of_s1(tmp_path):
    later = dict(thinking_format="s1", wrap_up="Final Answer:", prompt_suffix="", system_prompt="")
    before = {name: value for name, value in sample().items() if name not in later}
    (row,) = read_samples(write(tmp_path / "rows.jsonl", [before]))
    assert row == before | later and is_whole(row)


def test_each_setting_is_part_of_the_key_of_a_row():
    changes = dict(benchmark="b", model="n", weights="w", tokenizer="t", problem_id="p1", seed=1, sample_index=1)
    changes |= {name: "other" for name in CONDITION}
    assert all(row_key(sample(**{name: value})) != row_key(sample()) for name, value in changes.items())
    others = dict(num_thinking_tokens=1, correct=False, extracted=None, commit="e", thinking="", answer_text="")
    assert row_key(sample(**others)) == row_key(sample())


def test_a_torn_last_line_is_reported_and_left_out(tmp_path, caplog):
    whole = json.dumps(sample(problem_id="p1", thinking="日本"), ensure_ascii=False)
    path = write(tmp_path / "rows.jsonl", [sample()])
    data = path.read_bytes()
    for cut in (1, len(whole.encode()) // 2, whole.encode().index("日".encode()) + 1):
        path.write_bytes(data + whole.encode()[:cut])
        assert read_samples(path) == [sample()]
        assert "line 2 was cut off" in caplog.text
        caplog.clear()
    path.write_bytes(data + whole.encode())  # whole, only its line break is missing
    assert len(read_samples(path)) == 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{torn", "line 2 is not JSON"),
        ("[]", "line 2: expected a JSON object"),
        ({"a": 1}, "line 2: no sample row: it lacks problem_id, benchmark, model and 18 more columns; give a file"),
        (sample(int8="cache"), "column int8 holds 'cache'"),
        (sample(int8=["cache", "all"]), "column int8 holds .'cache', 'all'"),
        (sample(dtype="float16"), "column dtype holds 'float16'"),
        (sample(top_p=float("nan")), "column top_p holds nan"),
        (sample(seed="0"), "line 2: column seed holds '0', expected int"),
        (sample(num_ignore=True), "column num_ignore holds True"),
        (sample(correct=1), "column correct holds 1"),
        (sample(verdict="right"), "column verdict holds 'right'"),
        (sample(verdict="timed_out"), "verdict timed_out contradicts correct True"),
        (sample(extracted=1), "column extracted holds 1"),
        (sample(finish_reason="eos"), "column finish_reason holds 'eos'"),
        (sample(num_thinking_tokens=-8), "line 2: column num_thinking_tokens holds -8, expected a number from 0 to"),
        (sample(num_answer_tokens=10**400), "column num_answer_tokens holds 1000"),
        (sample(temperature=float("nan")), "line 2: column temperature holds nan"),
        (sample(temperature=float("inf")), "line 2: column temperature holds inf"),
        (sample(), "lines 1 and 2 hold the same sample .problem p0, sample 0"),
    ],
)
def test_a_bad_line_is_named_with_its_fault(tmp_path, row, words):
    with pytest.raises(ValueError, match=words):
        read_samples(write(tmp_path / "rows.jsonl", [sample(), row, sample(problem_id="p1")]))


def test_a_file_without_rows_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no sample rows"):
        read_samples(write(tmp_path / "rows.jsonl", []))
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl cannot be read: No such file"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(IsADirectoryError, match="cannot be read: Is a directory"):
        read_samples(tmp_path)
