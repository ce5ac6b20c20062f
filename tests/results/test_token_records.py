"""`token_records.py`: records are read as they were written, 11 bytes per token, and no damage passes unseen."""

import numpy as np
import pytest

from s1jax.results.token_records import (
    LOWEST,
    RECORD,
    TokenAppender,
    check_records,
    read_tokens,
    to_records,
    tokens_path,
)
from s1jax.runtime.errors import UserError
from tests.support.disk import full_disk
from tests.support.samples import sample


def answer(rng, thinking=6, forced=3, answered=4, stops=True):
    """What a completion records, and the columns of its row."""
    n = thinking + forced + answered + stops
    is_forced = np.zeros(n, bool)
    is_forced[thinking : thinking + forced] = True
    logprobs = np.where(is_forced, 0, -rng.exponential(size=n))
    values = rng.integers(0, 2**31, n), is_forced, logprobs, -rng.exponential(9, n), -rng.exponential(9, n)
    counts = dict(num_thinking_tokens=thinking, num_forced_tokens=forced, num_answer_tokens=answered, num_tokens=n)
    return values, counts | dict(finish_reason="stop" if stops else "length")


@pytest.fixture
def rows(tmp_path):
    return tmp_path / "rows.jsonl"


def write(rows, *answers):
    """Append the answers as one run does; return their rows."""
    with TokenAppender(rows) as file:
        places = file.append([to_records(*values) for values, _ in answers])
    return [sample(tokens_at=place, **columns) for place, (_, columns) in zip(places, answers, strict=True)]


def test_records_are_read_as_they_were_written_and_take_11_bytes(rows, rng):
    answers = [answer(rng, thinking=n, stops=n % 2 == 0) for n in (6, 0, 900)]
    written = write(rows, *answers[:2]) + write(rows, answers[2])
    assert tokens_path(rows).stat().st_size == 11 * sum(row["num_tokens"] for row in written)
    for row, (values, _) in reversed(list(zip(written, answers, strict=True))):
        records = read_tokens(rows, row)
        assert isinstance(records, np.memmap) and not records.flags.writeable
        for name, held in zip(("token", "forced", "logprob", "confidence", "end_logprob"), values, strict=True):
            if name in ("token", "forced"):
                np.testing.assert_array_equal(records[name], held)
            else:
                np.testing.assert_allclose(records[name], held, rtol=2**-11, atol=2**-24)


def test_what_float16_cannot_hold_becomes_the_nearest_log_probability():
    records = to_records([1, 2, 3], [False] * 3, [-1e30, 1e-7, -3.0], [-1e5, -0.0, -9.0], [-np.inf, -70000.0, -65504.0])
    assert records["logprob"].tolist() == [LOWEST, 0, -3]
    assert records["confidence"].tolist() == [LOWEST, 0, -9] and (records["end_logprob"] == LOWEST).all()


def test_a_torn_record_is_cut_off_and_records_that_no_row_has_stay(rows, rng):
    first, orphan, last = answer(rng), answer(rng), answer(rng)
    (row,), _ = write(rows, first), write(rows, orphan)
    for size in range(1, RECORD.itemsize):
        with tokens_path(rows).open("ab") as file:
            file.write(b"\1" * size)
        (later,) = write(rows, last)
        assert tokens_path(rows).stat().st_size % RECORD.itemsize == 0
        assert (read_tokens(rows, later)["token"] == last[0][0]).all(), size
    assert (read_tokens(rows, row)["token"] == first[0][0]).all()


def test_a_missing_or_short_file_is_named(rows, rng, tmp_path):
    first, second = write(rows, answer(rng), answer(rng))
    path = tokens_path(rows)
    check_records(rows, [first, second, sample()])
    copy = tmp_path / "copy.jsonl"
    with pytest.raises(UserError, match=r"copy.jsonl.tokens is missing.*together"):
        read_tokens(copy, first)
    with pytest.raises(UserError, match=r"copy.jsonl.tokens is missing, and the rows need 28"):
        check_records(copy, [first, second])
    path.write_bytes(path.read_bytes()[:-1])
    assert len(read_tokens(rows, first)) == 14
    with pytest.raises(UserError, match=r"too short.* 14 to 27"):
        read_tokens(rows, second)
    with pytest.raises(UserError, match="has 27 records, and the rows need 28"):
        check_records(rows, [first, second])
    path.write_bytes(b"")
    for row in (first, second, {**first, "tokens_at": 2**62}):
        with pytest.raises(UserError, match="too short"):
            read_tokens(rows, row)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_tokens(rows, first)
    with pytest.raises(UserError, match="has no token records"):
        read_tokens(rows, sample(problem_id="p\x1b[31m"))


def test_records_of_other_rows_and_impossible_values_are_refused(rows, rng):
    write(rows, answer(rng))
    (row,), path = write(rows, answer(rng, thinking=5)), tokens_path(rows)
    whole = path.read_bytes()
    for changes in (
        dict(tokens_at=0), dict(tokens_at=13), dict(num_tokens=row["num_tokens"] - 1), dict(num_thinking_tokens=4),
        dict(num_answer_tokens=5), dict(num_answer_tokens=99), dict(finish_reason="length"), dict(num_forced_tokens=2),
    ):  # fmt: skip
        with pytest.raises(UserError, match="damaged or belongs to other rows"):
            read_tokens(rows, {**row, **changes})
    for field, value in (
        ("token", -1), ("logprob", np.nan), ("logprob", 0.5), ("confidence", -np.inf), ("end_logprob", np.inf), ("forced", 2),
        ("forced", 1),
    ):  # fmt: skip
        records = np.frombuffer(whole, RECORD).copy()
        records[field][row["tokens_at"] + 1] = value
        path.write_bytes(records.tobytes())
        with pytest.raises(UserError, match="damaged or belongs to other rows"):
            read_tokens(rows, row)
    path.write_bytes(whole[: 14 * RECORD.itemsize] + bytes(len(whole) - 14 * RECORD.itemsize))
    with pytest.raises(UserError, match="damaged"):
        read_tokens(rows, row)


def test_a_symbolic_link_leads_to_the_records_of_its_target(rows, rng, tmp_path):
    rows.touch()
    (tmp_path / "link").symlink_to(rows)
    (row,) = write(tmp_path / "link", answer(rng))
    assert len(read_tokens(rows, row)) == len(read_tokens(tmp_path / "link", row)) == 14


def test_a_full_disk_and_a_moved_file_are_named_and_lose_nothing(rows, rng):
    (row,) = write(rows, answer(rng))
    path = tokens_path(rows)
    with full_disk(path.stat().st_size + 20), pytest.raises(OSError, match=f"{path} cannot be written"):
        write(rows, answer(rng))
    (later,) = write(rows, answer(rng))
    assert len(read_tokens(rows, row)) == len(read_tokens(rows, later)) == 14
    with TokenAppender(rows) as file, pytest.raises(UserError, match="was moved"):
        file.append([to_records(*answer(rng)[0])])
        path.rename(path.with_name("elsewhere"))
        file.append([to_records(*answer(rng)[0])])
