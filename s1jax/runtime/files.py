"""Files: the root folder of the project, atomic writes of text files, and a check that a file can be written."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from s1jax.runtime.errors import UserError

# The folder that holds `s1jax`, `configs` and `data_tools`: the checkout, or `site-packages` for an installed wheel.
ROOT = Path(__file__).resolve().parents[2]


def write_file(path: str | Path, text: str) -> None:
    """Write a text file atomically, replacing an existing one; a missing directory is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def check_writable(path: Path) -> None:
    """Raise UserError unless a file can be written at `path`. Its directories need not exist, and none are made."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode) or not os.access(path, os.W_OK):
                raise UserError(f"{path} cannot be written: it is not a file, or it is protected")
        tempfile.TemporaryFile(dir=next(parent for parent in path.parents if parent.exists())).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
