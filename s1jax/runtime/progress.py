"""Progress of long work on standard error, with its rate and the time left: a bar on a terminal, a line every 10 seconds elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10
LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"


class _Lines:
    """Writes each state of a bar as a line of its own. The lines are no log messages, so they show without `run_command` too."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class _Bar(tqdm):
    def __exit__(self, kind: Any, *error: Any) -> None:
        self.leave = kind is None
        super().__exit__(kind, *error)


def progress(total: int, description: str, unit: str, *, initial: int = 0, hidden: bool = False, **options: Any) -> Any:
    """Return a `tqdm` bar, with these further options, over `total` units of work, `initial` of which are done already.

    If an exception ends the work, the bar writes nothing more, so that the error is the last line.
    """
    if sys.stderr.isatty():
        options |= dict(file=sys.stderr, mininterval=0.2)
    else:
        options |= dict(file=_Lines(), mininterval=SECONDS_BETWEEN_LINES, bar_format=LINE)
    return _Bar(total=total, desc=description, unit=unit, initial=initial, disable=hidden, **options)
