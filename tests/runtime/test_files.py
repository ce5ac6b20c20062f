"""`files.py`: where a command may write, and what is left when it cannot."""

import os
import socket

import pytest

from s1jax.runtime.files import ROOT, check_writable, short_path, write_file
from tests.support.disk import full_disk


@pytest.fixture
def places(tmp_path):
    """A directory with things in it that are no files to write."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        (".", "it is a directory"),
        ("directory", "it is a directory"),
        ("fifo", "it is a device, a pipe or a socket"),
        ("socket", "it is a device, a pipe or a socket"),
        ("/dev/null", "it is a device, a pipe or a socket"),
        ("/dev/stdout", "standard output or standard error goes there"),
        ("dangling", "it is a symbolic link to nothing"),
        ("loop", "Too many levels of symbolic links"),
        ("file/rows", r"\S+/file is not a directory"),
        ("absent/../rows", r"\S+/absent/\.\. does not exist"),
        ("/proc/rows", "no file can be made in /proc"),
        ("x" * 250, "File name too long"),
        ("new/" + "x" * 300, "File name too long"),
    ],
)
def test_each_reason_why_a_file_cannot_be_written_has_its_own_words(places, path, cause):
    before = sorted(places.rglob("*"))
    with pytest.raises(ValueError, match=rf"{path} cannot be written: {cause}".replace("...", ".")):
        check_writable(places / path)
    assert sorted(places.rglob("*")) == before


def test_a_protected_file_is_no_destination_and_a_new_one_is_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("")
    check_writable(tmp_path / "rows.jsonl")
    check_writable(tmp_path / "new" / "deep" / "rows.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    with pytest.raises(ValueError, match=r"rows.jsonl cannot be written: it is protected"):
        check_writable(tmp_path / "rows.jsonl")


def test_a_full_disk_is_named_with_the_file_and_leaves_what_was_there(tmp_path):
    (tmp_path / "old").write_text("old")
    for path in (tmp_path / "old", tmp_path / "new"):
        message = f"^{path} cannot be written: .*. Nothing that was finished is lost: .*run the same command again$"
        with full_disk(), pytest.raises(OSError, match=message):
            write_file(path, "x" * 5000)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "old"}


def test_the_target_of_a_symbolic_link_is_written(tmp_path):
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").write_text("old")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"


def test_nothing_is_written_through_a_leftover_that_is_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".new.partial").symlink_to("precious")
    write_file(tmp_path / "new", "text")
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "new").is_symlink()


def test_a_path_below_the_project_has_one_name_in_every_directory(tmp_path, monkeypatch):
    inside, names = str(ROOT / "configs"), set()
    for directory in (ROOT, tmp_path, ROOT / "tests"):
        monkeypatch.chdir(directory)
        names |= {short_path(inside), short_path(os.path.relpath(inside))}
    assert names == {"configs"}
    assert short_path("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
    assert {short_path(f"{name}/") for name in (str(tmp_path), os.path.relpath(tmp_path))} == {str(tmp_path)}
