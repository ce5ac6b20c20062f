"""New directories that appear whole or not at all."""

import contextlib
import fnmatch
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from s1jax.checkpoint.source import CONFIG_NAME, TOKENIZER_FILES, WEIGHT_FILES
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import writing
from s1jax.runtime.processes import barrier, from_first_process, is_first_process
from s1jax.runtime.terminal import shortened


def check_destination(directory: str | Path, overwrite: bool = False) -> Path:
    """Return the absolute path of a directory that may be written: it is absent or empty and can be made.

    With `overwrite`, it may also hold a checkpoint. Otherwise this raises UserError.
    """
    if not str(directory).strip():
        raise UserError("the name of the directory to write is empty")
    path = Path(os.path.abspath(Path(directory).expanduser()))
    if path.is_symlink():
        raise UserError(f"{directory} is a symbolic link; give the directory itself")
    if path.exists() and not path.is_dir():
        raise UserError(f"{directory} exists and is not a directory")
    if path.exists() and any(path.iterdir()):
        if not overwrite:
            raise UserError(f"{directory} exists and is not empty; remove it or give another name")
        if not (path / CONFIG_NAME).is_file():
            raise UserError(
                f"{directory} is not a checkpoint, so it is not overwritten; remove it or give another name"
            )
        if foreign := sorted(found.name for found in path.iterdir() if not _is_of_checkpoint(found.name)):
            raise UserError(
                f"{directory} also holds {shortened(', '.join(foreign), quotes=False)}, which would be lost: move that elsewhere"
            )
    if os.path.ismount(path):
        raise UserError(f"{directory} is the mount point of a file system; give a directory below it")
    try:
        parent = next(parent for parent in path.parents if parent.exists())
        _beside(path, "replaced").exists()  # raises if the name is too long
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise UserError(f"{directory} cannot be made in {parent}: {error.strerror}") from error
    return path


@contextlib.contextmanager
def new_directory(directory: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory, and rename it to `directory` at the end. After an error the temporary directory is removed.

    If the process is killed, `directory` is the old one or the new one, or absent; if absent, the next call restores the old one. All
    processes call this together. Raises UserError as `check_destination` does, and OSError that names `directory` if the disk is full.
    """
    destination = Path(os.path.abspath(Path(directory).expanduser()))
    partial, replaced = (_beside(destination, state) for state in ("partial", "replaced"))

    def settle() -> None:
        """End an interrupted replacement: keep the new directory if it is there, otherwise restore the old one."""
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
        with writing(directory):
            yield partial
        barrier(f"written {destination}")
        if is_first_process():
            if destination.exists():
                destination.rename(replaced)
            partial.rename(destination)
    except BaseException:
        if is_first_process():
            _remove(partial)
        raise
    finally:
        if is_first_process():
            settle()
    barrier(f"renamed {destination}")


def _remove(partial: Path) -> None:
    """Remove a directory whose writers failed. Some may still run in the background and make files for two seconds."""
    for _ in range(20):
        shutil.rmtree(partial, ignore_errors=True)
        time.sleep(0.1)


def _is_of_checkpoint(name: str) -> bool:
    """Return whether a file or folder of this name may stand in a checkpoint that this project wrote."""
    return name in (CONFIG_NAME, *TOKENIZER_FILES, "params", "adapter") or any(
        fnmatch.fnmatch(name, pattern) for pattern in WEIGHT_FILES
    )


def _beside(destination: Path, state: str) -> Path:
    """Return the path of the hidden directory beside `destination` that is about to replace it, or that it replaced."""
    return destination.with_name(f".{destination.name}.{state}")
