"""Files: where this checkout lies, writing a text file whole or not at all, and checking that a file can be written."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from s1jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def write_file(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all, over the one that may be there; its directory is made where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def check_writable(path: Path) -> None:
    """Raise UserError unless a file can be written at `path`, in directories that may be yet to make; nothing is left behind."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode) or not os.access(path, os.W_OK):
                raise UserError(f"{path} cannot be written: it is no file, or a protected one")
        tempfile.TemporaryFile(dir=next(parent for parent in path.parents if parent.exists())).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
