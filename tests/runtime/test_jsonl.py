"""`jsonl.py`: files of one JSON object a line, of which the last may be torn."""

import gzip
import json
import math
from decimal import Decimal

import pytest

from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError
from tests.support.disk import full_disk

ROWS = [{"a": 1}, {"a": "日本\u2028"}, {"a": [0.5, None]}]


def append(path, rows):
    with jsonl.Appender(path) as file:
        file.append(rows)


def test_rows_read_back_as_written_and_appended(tmp_path):
    jsonl.write(tmp_path / "new" / "rows.jsonl", ROWS)
    append(tmp_path / "new" / "rows.jsonl", ROWS[:1])
    assert jsonl.read(tmp_path / "new" / "rows.jsonl") == list(enumerate([*ROWS, ROWS[0]], start=1))


def test_a_row_cut_off_anywhere_is_left_out_and_then_mended(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    jsonl.write(path, ROWS)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    end = whole.index(b"\n", start)
    for cut in range(start, end + 1):
        path.write_bytes(whole[:cut])
        kept = ROWS[: 1 + (cut == end)]
        assert [row for _, row in jsonl.read(path)] == kept
        assert ("line 2 was cut off" in caplog.text) == (start < cut < end)
        caplog.clear()
        append(path, ROWS[2:])
        assert [row for _, row in jsonl.read(path)] == [*kept, ROWS[2]]


def test_an_appender_without_rows_touches_nothing(tmp_path):
    with jsonl.Appender(tmp_path / "new" / "rows.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    append(path, [])
    assert path.read_text() == '{"a": 1}\n'


def test_a_bad_line_before_the_last_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a"\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 3 is not JSON"):
        jsonl.read(path)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl cannot be read: No such file"):
        jsonl.read(tmp_path / "none.jsonl")


ROW = '{"id": "ä'.encode()


@pytest.mark.parametrize(
    ("line", "torn"),
    [
        *((ROW[:length], True) for length in range(len(ROW) + 1)),
        (ROW + b"\0\0", True),  # as a power cut may leave it
        (b'{"id": "a"}', False),  # whole, without its line break
        (b"notes", False),
        (b"{id: 1", False),
        (b'{"id": "\x00\x01', False),
        (b'{"id": "\xff\xd8\xff', False),
        (b"\x89PNG", False),
    ],
)
def test_a_torn_row_is_distinguished_from_other_text_and_only_it_is_mended(tmp_path, line, torn):
    assert jsonl.is_torn(line) == torn
    assert not jsonl.is_torn(line, start=b'{"name": ') or line in b'{"'
    assert not jsonl.is_torn(b"{}\n" + line), "these are two lines"
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n" + line)
    if torn:
        append(path, ROWS)
        assert [row for _, row in jsonl.read(path)] == [{}, *ROWS]
    elif not line.endswith(b"}"):
        with pytest.raises(ValueError, match=r"line 2 is not (JSON|UTF-8)"):
            jsonl.read(path)
        with pytest.raises(ValueError, match="last line is not a row"):
            append(path, ROWS)
        assert path.read_bytes() == b"{}\n" + line


def test_a_full_disk_is_named_with_the_file_and_loses_no_earlier_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    append(path, ROWS)
    rows = [{"a": "b" * 300}] * 5
    with full_disk(), pytest.raises(OSError, match=r"^\S*rows.jsonl cannot be written: .*run the same command again$"):
        append(path, rows)
    kept = [row for _, row in jsonl.read(path)]
    assert kept == [*ROWS, *rows[: len(kept) - 3]] and 3 < len(kept) < 8
    append(path, rows[len(kept) - 3 :])
    assert [row for _, row in jsonl.read(path)] == [*ROWS, *rows]


def test_text_that_is_not_unicode_is_escaped(tmp_path):
    jsonl.write(tmp_path / "rows.jsonl", [{"a": "\udce9é"}])
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"a": "\udce9é"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"a": 1}'.encode("utf-16"), "UTF-16, not UTF-8: convert it"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16-LE, not UTF-8"),
        ('{"a": 1}'.encode("utf-32-be"), "UTF-32-BE, not UTF-8"),
        (gzip.compress(b"{}", mtime=0), "gzip, not text"),
        (b"PK\x03\x04", "zip, not text"),
        (b"PAR1", "Parquet, not text"),
        (b'\n [\n{"a": 1}\n]', "a JSON array, not JSON lines"),
        ('\ufeff[{"a": 1}]'.encode(), "a JSON array, not JSON lines"),
        (b"<!DOCTYPE html>", "HTML or XML, not JSON lines"),
    ],
)
def test_a_file_of_another_format_or_encoding_is_one_error_that_names_it(tmp_path, content, fault):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"rows\.jsonl is {fault}"):
        list(jsonl.parse(tmp_path / "rows.jsonl"))


def test_a_bad_line_says_where_it_is_bad(tmp_path):
    lines = {
        '\ufeff{"a": 1}'.encode(): {"a": 1},
        b'{"a": %b}' % (b"7" * 5000): {"a": Decimal("7" * 5000)},
        b'{"a": "caf\xe9"}': "not UTF-8: byte 11 of the line is 0xe9 (save the file as UTF-8)",
        b'{"a": 1,}': "not JSON: Expecting property name enclosed in double quotes at character 9",
        b'{"a": 1, "b": 2, "b": 3}': "not usable: the key 'b' is there twice",
        b'{"a": "b': "not JSON: Unterminated string starting at character 7",
    }
    (tmp_path / "rows.jsonl").write_bytes(b"\n\n".join(lines))
    values = [value for _, _, value in jsonl.parse(tmp_path / "rows.jsonl")]
    assert [str(value) if isinstance(value, Exception) else value for value in values] == list(lines.values())


@pytest.mark.parametrize("change", ["moved", "replaced"])
def test_rows_are_not_appended_to_a_file_that_is_no_longer_there(tmp_path, change):
    path = tmp_path / "rows.jsonl"
    with jsonl.Appender(path) as file:
        file.append([{"a": 1}])
        path.rename(tmp_path / "moved.jsonl")
        if change == "replaced":
            path.write_text('{"mine": 1}\n')
        with pytest.raises(UserError, match="was moved, replaced or deleted while rows were written"):
            file.append([{"a": 2}])
    assert jsonl.read(tmp_path / "moved.jsonl") == [(1, {"a": 1})]


@pytest.mark.parametrize(
    "digits", ["12345678901234567890.5", "0.1", "1e22", "0.5000", "1e400", "3.0000000000000000001"]
)
def test_a_number_keeps_its_value(digits):
    number = jsonl.value_of(digits.encode())
    assert number == math.inf if digits == "1e400" else Decimal(str(number)) == Decimal(digits)
