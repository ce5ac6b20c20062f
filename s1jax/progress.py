"""Progress of long work on standard error: a bar on a terminal, a line now and then elsewhere; with rate and time left on both."""

from __future__ import annotations

import sys
from typing import Any

SECONDS_BETWEEN_LINES = 10


class _Lines:
    """Turns what a bar writes over itself into lines."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int, description: str, unit: str, *, initial: int = 0, hidden: bool = False, **options: Any) -> Any:
    """Return a `tqdm` bar over `total` units of work, of which `initial` are done; its own `options` are passed on."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        options |= dict(file=sys.stderr, mininterval=0.2)
    else:
        layout = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
        options |= dict(file=_Lines(), mininterval=SECONDS_BETWEEN_LINES, bar_format=layout)
    return tqdm(total=total, desc=description, unit=unit, initial=initial, disable=hidden, **options)
