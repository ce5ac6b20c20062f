"""New directories appear whole or not at all."""

import shutil
from pathlib import Path

import pytest

from s1jax.checkpoint.directories import new_directory


def write_new(path, text, overwrite=True):
    with new_directory(path, overwrite) as partial:
        (partial / "config.json").write_text(text)


@pytest.mark.parametrize("crashed_after_renames", [1, 2])
def test_a_replacement_that_crashed_is_settled_by_the_next_one(tmp_path, crashed_after_renames):
    out, partial, replaced = (tmp_path / name for name in ("out", ".out.partial", ".out.replaced"))

    def crash():
        for path, text in ((replaced, "old"), (partial if crashed_after_renames == 1 else out, "new")):
            path.mkdir()
            (path / "config.json").write_text(text)

    crash()
    with pytest.raises(ValueError, match="not empty"):
        write_new(out, "newer", overwrite=False)
    assert (out / "config.json").read_text() == ("old" if crashed_after_renames == 1 else "new")
    shutil.rmtree(out)
    shutil.rmtree(partial, ignore_errors=True)
    crash()
    write_new(out, "newer")
    assert (out / "config.json").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_replacement_that_fails_leaves_the_old_directory(tmp_path, monkeypatch, failing_rename):
    write_new(tmp_path / "out", "old")
    rename, calls = Path.rename, []

    def fail_once(path, target):
        calls.append(path)
        if len(calls) == failing_rename:
            raise OSError("stale file handle")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="stale file handle"):
        write_new(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
