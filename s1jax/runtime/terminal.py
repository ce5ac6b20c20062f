"""Text on its way to a terminal: control characters become visible, and long values short."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TextIO

# Controls except newline and tab, the marks that reorder text, and halves of a character (surrogates).
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return a text whose control characters are escaped, such as `\\x1b`: a terminal would obey them. Newline and tab stay."""
    return _CONTROLS.sub(lambda control: control[0].encode("unicode_escape").decode(), text)


def for_stream(stream: TextIO, text: str) -> str:
    """Return what to write of a text that others wrote: its visible form to a terminal, the text itself to a file or a pipe."""
    return visible(text) if stream.isatty() else text


def shortened(value: Any, length: int = 80, quotes: bool = True) -> str:
    """Return a value as Python writes it, or as it is without `quotes`. If it is longer than `length`, its middle is cut out."""
    try:
        text = repr(value) if quotes else str(value)
    except ValueError:  # an integer of more than 4,300 digits
        text = f"{type(value).__name__} with too many digits"
    return text if len(text) <= length else f"{text[: length - 20]}...{text[-17:]}"


def open_standard_streams() -> list[str]:
    """Open standard streams that the caller closed, return their names, and let no character stop the output.

    A file opened later would otherwise take the place of a closed stream and receive its messages.
    """
    closed = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            closed.append(name)
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        if name != "stdin" and hasattr(stream := getattr(sys, name), "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")
    return closed
