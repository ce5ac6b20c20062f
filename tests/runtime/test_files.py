"""`files.py`: where a command may write."""

import os

import pytest

from s1jax.runtime.files import check_writable


def test_a_protected_place_is_no_destination_and_a_new_one_is_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("")
    check_writable(tmp_path / "rows.jsonl")
    check_writable(tmp_path / "new" / "deep" / "rows.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    with pytest.raises(ValueError, match=r"rows.jsonl cannot be written: it is not a file, or it is protected"):
        check_writable(tmp_path / "rows.jsonl")
