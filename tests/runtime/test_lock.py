"""`lock.py`: one writer at a time, and a lock that ends with its process."""

import errno
import fcntl
import logging
import os
import signal
import socket

import pytest

from s1jax.runtime.lock import Lock

HOLDER = """
import os, sys, time
from pathlib import Path
from s1jax.runtime.lock import Lock

with Lock(Path(sys.argv[1])):
    if os.fork() == 0:  # as a worker that outlives the process
        os.close(1), os.close(2)
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def names_in(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_an_output_has_one_writer_however_its_path_is_spelled(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with Lock(tmp_path / "new" / "rows.jsonl"), Lock(tmp_path / "new" / "others.jsonl"):
        (tmp_path / "new" / "alias.jsonl").symlink_to("rows.jsonl")
        for path in ("new/rows.jsonl", "new/../new/rows.jsonl", "link/rows.jsonl", "new/alias.jsonl"):
            holder = f"{path} is being written by process {os.getpid()} on {socket.gethostname()}"
            descriptors = os.listdir("/proc/self/fd")
            with pytest.raises(ValueError, match=holder), Lock(tmp_path / path):
                pass
            assert os.listdir("/proc/self/fd") == descriptors, "a refused lock leaves no open file"
        (tmp_path / "new" / "alias.jsonl").unlink()
    assert names_in(tmp_path) == ["link"], "the directories that were made for a lock go with it"
    with Lock(tmp_path / "run", inside=True):
        assert names_in(tmp_path / "run") == [".lock"]
        assert not (tmp_path / "run" / ".lock").stat().st_mode & 0o111, "no program"
        (tmp_path / "run" / "rows").touch()
    assert names_in(tmp_path / "run") == ["rows"]


@pytest.mark.parametrize(
    ("left", "holder"),
    [
        ('{"host": "elsewhere", "pid": 42, "since": "2026-01-01"}', "process 42 on elsewhere (since 2026-01-01)"),
        ("\0\0\0", "an unknown process"),
        ('{"pid": 42}', "an unknown process"),
    ],
)
def test_a_lock_file_that_was_left_behind_is_taken_over_with_a_message(tmp_path, left, holder, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / ".rows.lock").write_text(left)
    with Lock(tmp_path / "rows"):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".rows.lock").read_text()
    assert caplog.messages == [f"{tmp_path / 'rows'}: took over the lock of {holder}, which was killed"]
    assert names_in(tmp_path) == []


@pytest.mark.integration
def test_the_lock_of_a_killed_process_is_free_even_if_a_child_of_it_lives_on(tmp_path, processes, caplog):
    caplog.set_level(logging.INFO)
    holder = processes.start("-W", "ignore", "-c", HOLDER, tmp_path / "rows")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"is being written by process {holder.pid} on "), Lock(tmp_path / "rows"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Lock(tmp_path / "rows"):
        pass
    assert f"took over the lock of process {holder.pid} on " in caplog.text


def test_a_lock_file_that_its_last_holder_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def remove_then_lock(descriptor, operation):
        if not calls:
            (tmp_path / "new" / ".rows.lock").unlink()
            (tmp_path / "new").rmdir()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_then_lock)
    with Lock(tmp_path / "new" / "rows"):
        assert names_in(tmp_path) == ["new", "new/.rows.lock"] and len(calls) == 2


def test_a_file_system_without_locks_costs_a_warning_and_any_other_error_names_the_output(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)

    def fail(number):
        def flock(descriptor, operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        caplog.clear()
        fail(number)
        with Lock(tmp_path / "rows"), Lock(tmp_path / "rows"):
            pass
        assert len(caplog.messages) == 2 and "without locks" in caplog.text
    fail(errno.EIO)
    with pytest.raises(ValueError, match="rows cannot be written: Input/output error"), Lock(tmp_path / "rows"):
        pass
