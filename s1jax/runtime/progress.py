"""Progress of long work on standard error, with its rate and the time left: a bar on a terminal, a line every 10 seconds elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {speed}{postfix}]"
FIRST_LINE = "{desc}: {n_fmt} of {total_fmt}"
LINE = FIRST_LINE + ", {speed}, {remaining} left{postfix}"


class _Lines:
    """Writes each state of a bar as a line of its own. The lines are no log messages, so they show without `run_command` too."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int, description: str, unit: str, *, initial: int = 0, hidden: bool = False, **options: Any) -> Any:
    """Return a `tqdm` bar, with these further options, over `total` units of work, `initial` of which are done already.

    If an exception ends the work, the bar writes nothing more, so that the error is the last line.
    """
    on_terminal = sys.stderr.isatty()

    class Bar(tqdm):
        @property
        def format_dict(self) -> Any:
            values = super().format_dict
            begun = values["n"] != values["initial"]
            layout = BAR if on_terminal else LINE if begun else FIRST_LINE
            return values | {"bar_format": layout, "speed": _speed(values) if begun else f"? {unit}/s"}

        def __exit__(self, kind: Any, *error: Any) -> None:
            self.leave = kind is None
            super().__exit__(kind, *error)

        def __del__(self) -> None:
            self.leave = False
            super().__del__()

    if on_terminal:
        options |= dict(file=sys.stderr, mininterval=0.2)
    else:
        options |= dict(file=_Lines(), mininterval=SECONDS_BETWEEN_LINES)
    return Bar(total=total, desc=description, unit=unit, initial=initial, disable=hidden, **options)


def _speed(values: dict[str, Any]) -> str:
    """Return the rate as text: "1.86 row/s", "12.3 s/row" or "1.2 GB/s"."""
    rate, unit = values["rate"], values["unit"]
    if rate is None:
        rate = (values["n"] - values["initial"]) / max(values["elapsed"], 1e-9)
    if 0 < rate < 1:
        return f"{1 / rate:.3g} s/{unit}"
    prefix = ""
    if values["unit_scale"]:
        for prefix in ("", "k", "M", "G", "T"):  # noqa: B007
            if rate < 1000:
                break
            rate /= 1000
    return f"{rate:.3g} {prefix}{unit}/s" if rate < 1000 else f"{rate:,.0f} {prefix}{unit}/s"
