"""JSON lines (UTF-8): reading them, writing a whole file, and appending rows that survive a crash.

A process that is killed while it appends leaves a last line without its line break. If that line is the beginning of a row, it is torn:
`read` leaves it out, and `Appender` cuts it off. If the line is a whole row, `Appender` adds the line break. Any other line is an error, so
that no file of another kind is ever mended. `parse` serves files that a user made, where each bad line needs a reason of its own.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from s1jax.runtime.errors import UserError
from s1jax.runtime.files import is_in_place, write_file, writing
from s1jax.runtime.terminal import shortened

logger = logging.getLogger(__name__)


def read(path: str | Path) -> list[tuple[int, Any]]:
    """Return the number (from 1) and the value of every line that is not blank.

    A torn line is left out, with a warning. Raises OSError if the file cannot be read, and UserError for any other line that is not JSON.
    """
    rows: list[tuple[int, Any]] = []
    for number, line, value in parse(path):
        if not isinstance(value, Exception):
            rows.append((number, value))
        elif is_torn(line):
            logger.warning("%s: line %d was cut off while it was written; it is left out", path, number)
        else:
            raise UserError(f"{path}: line {number} is {value}")
    return rows


def parse(path: str | Path) -> Iterator[tuple[int, bytes, Any]]:
    """Yield the number (from 1), the bytes and the value of every line that is not blank. The value of a bad line is a UserError.

    Raises OSError if the file cannot be read, and UserError if it is of another format or encoding.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(512)
            check_text_file(path, start)
            if found := _format_of(start, _NO_JSON_LINES):
                raise UserError(f"{path} is {found}, not JSON lines (one JSON object per line)")
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line, value_of(line)
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror}") from None


def places(path: str | Path, begin: int = 0) -> Iterator[tuple[int, int, Any]]:
    """Yield where each row from byte `begin` on begins and ends, and its value: an index of a file that does not fit into memory.

    A torn line is left out. Raises UserError for any other line that is not JSON.
    """
    with Path(path).open("rb") as file:
        file.seek(begin)
        for line in file:
            end = begin + len(line)
            if line.strip():
                value = value_of(line)
                if not isinstance(value, UserError):
                    yield begin, end, value
                elif not is_torn(line):
                    raise UserError(f"{path}: the line at byte {begin} is {value}")
            begin = end


def row_at(path: str | Path, begin: int) -> Any:
    """Return the value of the row that begins at a byte, as `places` says."""
    with Path(path).open("rb") as file:
        file.seek(begin)
        return value_of(file.readline())


# How files begin that are often given in the place of text, and texts that are often given in the place of JSON lines.
_NO_TEXT = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"version https://git-lfs": "a Git LFS pointer",
}  # fmt: skip
_NO_JSON_LINES = {b"<": "HTML or XML", b"[": "a JSON array", b"\xef\xbb\xbf[": "a JSON array"}


def check_text_file(path: str | Path, start: bytes) -> None:
    """Raise UserError if a file that begins with these bytes is of a format that is no text, or is not UTF-8."""
    if (encoding := json.detect_encoding(start)) not in ("utf-8", "utf-8-sig"):
        raise UserError(
            f"{path} is {encoding.upper()}, not UTF-8: convert it, for example with iconv -f {encoding.upper()} -t UTF-8"
        )
    if found := _format_of(start, _NO_TEXT):
        raise UserError(f"{path} is {found}, not text")


def _format_of(start: bytes, formats: dict[bytes, str]) -> str | None:
    return next((name for first, name in formats.items() if start.lstrip().startswith(first)), None)


def value_of(line: bytes) -> Any:
    """Return the value of a line, or a UserError that says why it has none."""
    try:
        return json.loads(
            line.decode("utf-8-sig").rstrip("\r\n"),
            parse_int=_integer,
            parse_float=_fraction,
            object_pairs_hook=_object,
        )
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
    longest = sys.get_int_max_str_digits() or sys.int_info.default_max_str_digits
    return int(digits) if len(digits) <= longest else Decimal(digits)


def _fraction(digits: str) -> float | Decimal:
    """Return a number with a point or an exponent. One that Python's `float` would change becomes a Decimal, which keeps its digits."""
    number = float(digits)
    return number if math.isinf(number) or Decimal(repr(number)) == Decimal(digits) else Decimal(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    columns = dict(pairs)
    if len(columns) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise UserError(f"not usable: the key {shortened(twice)} is there twice")
    return columns


def is_torn(line: bytes, start: bytes = b'{"') -> bool:
    """Return whether a line is what a kill leaves of a row that `Appender` writes: text without line break, which is not whole JSON.

    `start` is what the row begins with. A power cut may leave zero bytes behind the text.
    """
    line = line.rstrip(b"\0")
    # Control characters are escaped in a row. The last character may be torn too.
    if _parses(line) or re.search(rb"[\x00-\x1f]", line) or not start.startswith(line[: len(start)]):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    return True


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

    def __exit__(self, kind: type[BaseException] | None = None, *_: Any) -> None:
        if self._file is None:
            return
        # After an error the rest of a row may still wait to be written. It fails again, but the first error already says why.
        with contextlib.suppress(*([OSError] if kind else [])), writing(self.path), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def append(self, rows: Iterable[Any]) -> None:
        """Write rows behind those that are there. Raises OSError that names the file, and UserError if its last line is no row."""
        text = "".join(_to_line(row) for row in rows).encode()
        with writing(self.path):
            if self._file is not None and not is_in_place(self.path, self._file):
                raise UserError(
                    f"{self.path} was moved, replaced or deleted while rows were written to it. The rows so far are in the moved file"
                )
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                last = _last_line(self.path) if self.path.exists() else b""
                if last.strip() and not (_parses(last) or is_torn(last)):
                    raise UserError(f"{self.path}: its last line is not a row; remove that line, or give another file")
                self._file = self.path.open("ab")
                if _parses(last):
                    self._file.write(b"\n")
                else:
                    self._file.truncate(self._file.tell() - len(last))
            self._file.write(text)
            self._file.flush()


def _to_line(row: Any) -> str:
    """Return a row as one line. Values that JSON does not know, such as dates, become text."""
    line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
    # A lone surrogate, from bytes that are not UTF-8, can only be written as an escape.
    return line.encode(errors="backslashreplace").decode()


def _last_line(path: Path) -> bytes:
    """Return what follows the last line break of a file."""
    return path.read_bytes().rpartition(b"\n")[2]


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
