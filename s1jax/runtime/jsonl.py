"""JSON lines (UTF-8): reading them, writing a whole file, and appending rows that survive a crash.

A process that is killed while it appends leaves a last line without its line break: a torn line. `read` leaves a torn line out unless it
is whole JSON. `Appender` mends the file: it adds the missing line break to a line that is whole, and cuts off any other. `parse` serves
files that a user made, where each bad line needs a reason of its own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from s1jax.runtime.errors import UserError
from s1jax.runtime.files import write_file

logger = logging.getLogger(__name__)


def read(path: str | Path) -> list[tuple[int, Any]]:
    """Return the number (from 1) and the value of every line that is not blank.

    A torn line is left out, with a warning. Raises OSError if the file cannot be read, and UserError for any other line that is not JSON.
    """
    rows: list[tuple[int, Any]] = []
    for number, line, value in parse(path):
        if not isinstance(value, Exception):
            rows.append((number, value))
        elif line.endswith(b"\n"):
            raise UserError(f"{path}: line {number} is {value}")
        else:
            logger.warning("%s: line %d was cut off while it was written; it is left out", path, number)
    return rows


def parse(path: str | Path) -> Iterator[tuple[int, bytes, Any]]:
    """Yield the number (from 1), the bytes and the value of every line that is not blank. The value of a bad line is a UserError.

    Raises OSError if the file cannot be read, and UserError if it is of another format or encoding.
    """
    try:
        with Path(path).open("rb") as file:
            _check_format(path, file.read(512))
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line, _value_of(line)
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror}") from None


# How files begin that are often given in the place of JSON lines.
_FORMATS = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"version https://git-lfs": "a Git LFS pointer", b"<": "HTML or XML",
    b"[": "a JSON array", b"\xef\xbb\xbf[": "a JSON array",
}  # fmt: skip


def _check_format(path: str | Path, start: bytes) -> None:
    """Raise UserError if a file that begins with these bytes does not hold JSON lines in UTF-8."""
    if (encoding := json.detect_encoding(start)) not in ("utf-8", "utf-8-sig"):
        raise UserError(
            f"{path} is {encoding.upper()}, not UTF-8: convert it, for example with iconv -f {encoding.upper()} -t UTF-8"
        )
    found = next((name for first, name in _FORMATS.items() if start.lstrip().startswith(first)), None)
    if found is not None:
        raise UserError(f"{path} is {found}, not JSON lines (one JSON object per line)")


def _value_of(line: bytes) -> Any:
    """Return the value of a line, or a UserError that says why it has none."""
    try:
        return json.loads(line.decode("utf-8-sig").rstrip("\r\n"), parse_int=_integer, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return UserError(
            f"not UTF-8: byte {error.start + 1} of the line is {error.object[error.start]:#04x} (save the file as UTF-8)"
        )
    except json.JSONDecodeError as error:
        return UserError(f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}")
    except RecursionError:
        return UserError("not JSON: brackets are nested too deeply")
    except UserError as error:
        return error


def _integer(digits: str) -> int | Decimal:
    """Return an integer. One that is too long for Python's `int` becomes a Decimal, which keeps its digits too."""
    return int(digits) if len(digits) <= sys.int_info.default_max_str_digits else Decimal(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    columns = dict(pairs)
    if len(columns) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise UserError(f"not usable: the key {twice[:80]!r} is there twice")
    return columns


def is_first_row_torn(path: str | Path) -> bool:
    """Return whether a file is empty or holds nothing but the beginning of a JSON object."""
    first, *others = _lines(path)
    return first[:1] in (b"", b"{") and not _parses(first) and not others


def write(path: str | Path, rows: Iterable[Any]) -> None:
    """Write a file of rows atomically, replacing an existing one; a missing directory is made."""
    write_file(path, "".join(_to_line(row) for row in rows))


class Appender:
    """Context manager that appends rows to a file, which is made or mended when the first row arrives.

    Rows survive a crash of this process once `append` returns, and a crash of the machine once the context has ended.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: BinaryIO | None = None

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def append(self, rows: Iterable[Any]) -> None:
        """Write rows behind those that are there."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = _lines(self.path)[-1] if self.path.exists() else b""
            self._file = self.path.open("ab")
            if _parses(torn):
                self._file.write(b"\n")
            else:
                self._file.truncate(self._file.tell() - len(torn))
        self._file.write("".join(_to_line(row) for row in rows).encode())
        self._file.flush()


def _to_line(row: Any) -> str:
    """Return a row as one line. Values that JSON does not know, such as dates, become text."""
    line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
    # A lone surrogate, from bytes that are not UTF-8, can only be written as an escape.
    return line.encode(errors="backslashreplace").decode()


def _lines(path: str | Path) -> list[bytes]:
    """Return the lines of a file as bytes: one may be torn inside a character. The last one is empty unless it is torn."""
    return Path(path).read_bytes().split(b"\n")


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
