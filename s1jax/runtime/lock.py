"""One writer at a time: the lock of an output that is written over time. Readers take none.

The lock is a small hidden file that names its holder: `.NAME.lock` beside an output, or `.lock` in a run directory. What counts is not the
file but the kernel's lock on it (`flock`), which ends with the process that took it, however that ends. So a lock file that nobody has
locked was left by a process that was killed.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from s1jax.runtime.errors import UserError
from s1jax.runtime.processes import from_first_process

logger = logging.getLogger(__name__)

_held: set[Lock] = set()


class Lock:
    """Context manager that holds the lock of an output, until the process ends at the latest.

    Enter it before the output is first read. In a run of several processes the first takes the lock, and all enter together.
    """

    def __init__(self, output: Path, inside: bool = False):
        """With `inside` the lock file lies in the output, a directory: hosts may share that directory and not its parent."""
        self.output = output
        output = output.resolve()
        self._file = output / ".lock" if inside else output.with_name(f".{output.name}.lock")
        self._made = [directory for directory in self._file.parents if not directory.exists()]

    def __enter__(self) -> Lock:
        """Raise UserError if another process holds the lock, or if the lock file cannot be written."""
        from_first_process(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Remove the lock file, and directories that were made for it and are empty. Without the lock, do nothing."""
        if self in _held:
            _held.discard(self)
            with contextlib.suppress(OSError):
                self._file.unlink()
            os.close(self.descriptor)
            with contextlib.suppress(OSError):
                for directory in self._made:
                    directory.rmdir()

    def _take(self) -> None:
        try:
            while True:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # the last holder has just removed the directory
                    self.descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                    is_locked = self._lock_descriptor()
                    if _is_at(self._file, self.descriptor):
                        break
                    os.close(self.descriptor)  # the last holder has just removed the file
            _held.add(self)
            if is_locked and (left := os.pread(self.descriptor, 4096, 0)):
                logger.info("%s: took over the lock of %s, which was killed", self.output, _describe(left))
            now = datetime.datetime.now().isoformat(" ", "seconds")
            os.ftruncate(self.descriptor, 0)
            os.pwrite(
                self.descriptor, json.dumps(dict(host=socket.gethostname(), pid=os.getpid(), since=now)).encode(), 0
            )
        except OSError as error:
            self.release()
            raise UserError(f"{self.output} cannot be written: {error.strerror} ({self._file})") from error

    def _lock_descriptor(self) -> bool:
        """Lock the open lock file, or close it and raise. Return False if its file system has no locks."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                logger.warning("%s lies on a file system without locks: let no second process write it", self.output)
                return False
            holder = _holder(self.descriptor) if isinstance(error, BlockingIOError) else None
            os.close(self.descriptor)
            if holder is None:
                raise
            raise UserError(
                f"{self.output} is being written by {holder}: wait for its end, or give another output"
            ) from None
        return True


def release_all() -> None:
    """Release every lock of this process, which is about to end without leaving its contexts."""
    for lock in list(_held):
        lock.release()


def _forget() -> None:
    """Close the locks in a process that was forked off: otherwise it would hold them when its parent is gone."""
    for lock in _held:
        os.close(lock.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file still has this path."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path))


def _holder(descriptor: int) -> str:
    """Return who wrote a lock file. It is empty for the moment between its lock and its content."""
    for _ in range(20):
        if text := os.pread(descriptor, 4096, 0):
            return _describe(text)
        time.sleep(0.05)
    return "another process"


def _describe(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"
