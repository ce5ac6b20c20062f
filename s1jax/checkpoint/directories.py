"""New directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from s1jax.checkpoint.source import CONFIG_NAME
from s1jax.runtime.errors import UserError
from s1jax.runtime.processes import barrier, from_first_process, is_first_process


def check_destination(directory: str | Path, overwrite: bool = False) -> Path:
    """Return an absolute path that a new directory may be put at.

    Raises UserError for an empty name, a file, a place where nothing can be made, or a directory with content (with `overwrite`: that
    is no checkpoint).
    """
    if not str(directory).strip():
        raise UserError("the name of the directory to write is empty")
    path = Path(os.path.abspath(Path(directory).expanduser()))
    if path.is_symlink():
        raise UserError(f"{directory} is a symbolic link; give the directory itself")
    if path.exists() and not path.is_dir():
        raise UserError(f"{directory} exists and is no directory")
    if path.exists() and any(path.iterdir()):
        if not overwrite:
            raise UserError(f"{directory} exists and is not empty; remove it or give another name")
        if not (path / CONFIG_NAME).is_file():
            raise UserError(f"{directory} is no checkpoint, so it is not overwritten; remove it or give another name")
    if os.path.ismount(path):
        raise UserError(f"{directory} is where a file system is mounted; give a directory below it")
    try:
        beside = next(parent for parent in path.parents if parent.exists())
        _beside(path, "replaced").exists()  # raises for too long a name
        tempfile.TemporaryFile(dir=beside).close()
    except OSError as error:
        raise UserError(f"{directory} cannot be made in {beside}: {error.strerror}") from error
    return path


@contextlib.contextmanager
def new_directory(directory: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `directory` that takes its name at the end; after an error nothing is left of it.

    After a crash the directory is the old one, or the new one, or is put back by the next call.
    """
    destination = Path(os.path.abspath(Path(directory).expanduser()))
    partial, replaced = (_beside(destination, state) for state in ("partial", "replaced"))

    def settle() -> None:
        """End a replacement that was broken off: the new directory stays if it is there, else the old one comes back."""
        if destination.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        elif replaced.exists():
            replaced.rename(destination)

    def begin() -> None:
        settle()
        check_destination(directory, overwrite)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)

    from_first_process(begin)
    try:
        yield partial
        barrier(f"written {destination}")
        if is_first_process():
            if destination.exists():
                destination.rename(replaced)
            partial.rename(destination)
    except BaseException:
        if is_first_process():
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        if is_first_process():
            settle()
    barrier(f"renamed {destination}")


def _beside(destination: Path, state: str) -> Path:
    """Return the path of a directory that is on its way to or from `destination`."""
    return destination.with_name(f".{destination.name}.{state}")
