"""Files: the root folder of the project, atomic writes, the errors of writing, and a check that a file can be written."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from s1jax.runtime.errors import UserError

# The folder that holds `s1jax`, `configs` and `data_tools`: the checkout, or `site-packages` for an installed wheel.
ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Name `path`, and what to do, in an OSError of the body, which writes it: a full disk, a quota, a disk that fails."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # its message is whole already
            raise
        raise OSError(
            f"{path} cannot be written: {error.strerror}. Nothing that was finished is lost: mend this, and run the same command again"
        ) from error


def short_path(path: str) -> str:
    """Return an existing path relative to the project's folder if it is below that, otherwise whole; any other name as it is.

    So a model has one name in rows, from whichever directory the command was started.
    """
    full = Path(os.path.abspath(os.path.expanduser(path)))
    if not full.exists():
        return path
    return str(full.relative_to(ROOT) if full.is_relative_to(ROOT) else full)


def is_in_place(path: Path, file: BinaryIO) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file atomically (text as UTF-8), replacing an existing one; a missing directory is made.

    A symbolic link stays one: its target is written. Raises OSError that names `path`, and leaves what was there.
    """
    target = Path(path).resolve()
    partial = _partial(target)
    with writing(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            with partial.open("xb") as file:  # a new file: nothing is written through a link of that name
                file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def check_writable(path: Path) -> None:
    """Raise UserError unless a file can be written at `path`. Its directories need not exist, and none are made."""
    try:
        if fault := _find_fault(path):
            raise UserError(f"{path} cannot be written: {fault}")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _find_fault(path: Path) -> str | None:
    """Return why no file can be written at `path`, or None. Raises OSError for a name that is too long, or a loop of links."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            return "it is a directory; name a file"
        if any(os.path.samestat(found, stream) for stream in _standard_streams()):
            return "standard output or standard error goes there; name another file"
        if not stat.S_ISREG(found.st_mode):
            return "it is a device, a pipe or a socket; name a file"
        if not os.access(path, os.W_OK):
            return "it is protected; give write permission, or name another file"
    if path.is_symlink() and not path.exists():
        return "it is a symbolic link to nothing; remove it, or name another file"
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        return f"{parent} is not a directory"
    if ".." in path.parts and not path.parent.exists():
        return f"{path.parent} does not exist"
    with contextlib.suppress(FileNotFoundError):
        (parent / _partial(path).name).lstat()  # the longest name of a file beside this one
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        return f"no file can be made in {parent} ({error.strerror})"
    return None


def _standard_streams() -> Iterator[os.stat_result]:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            yield os.fstat(descriptor)


def _partial(path: Path) -> Path:
    """Return the path of a file that is being written and will replace `path`."""
    return path.with_name(f".{path.name}.partial")
