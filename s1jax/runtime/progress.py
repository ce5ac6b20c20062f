"""Progress of long work on standard error: a bar on a terminal, a line every 10 seconds elsewhere.

It says when a program is being compiled. The time of compiling counts neither in the rate nor in the time left.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10
SECONDS_TO_TRACE = 0.1
"""A program that took longer to trace takes long to compile, too, so that it is announced."""


class _Lines:
    """Writes each state of a bar as a line of its own. The lines are no log messages, so they show without `run_command` too."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class _Bar(tqdm):
    num_tokens = 0
    """Tokens decoded so far, if the work counts them."""
    longest = 0
    """Tokens so far of the longest sequence that still runs."""
    estimate_after = 1
    """Units of work before whose end there is no estimate of the time left."""
    _is_compiling = False
    _compiling_seconds = 0.0

    def __enter__(self) -> Any:
        if not self.disable:
            jax.monitoring.register_event_duration_secs_listener(self._hear)
        return super().__enter__()

    def __exit__(self, kind: Any, *error: Any) -> None:
        if not self.disable:
            jax.monitoring.unregister_event_duration_listener(self._hear)
        self.leave = kind is None
        super().__exit__(kind, *error)

    def show_tokens(self, num_tokens: int, longest: int) -> None:
        """Show how many tokens have been decoded so far, and how many the longest sequence has that still runs."""
        self.num_tokens, self.longest = num_tokens, longest
        self.update(0)

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        """Listen to JAX, which first traces a program and then compiles it."""
        if (
            event == "/jax/core/compile/jaxpr_trace_duration"
            and duration_secs > SECONDS_TO_TRACE
            and not self._is_compiling
        ):
            self._is_compiling = True
            self.refresh()
        elif event == "/jax/core/compile/backend_compile_duration":
            self._is_compiling = False
            self._compiling_seconds += duration_secs

    @property
    def format_dict(self) -> Any:
        state = super().format_dict
        state["elapsed"] = seconds = max(state["elapsed"] - self._compiling_seconds, 0)
        parts = ["{n_fmt} of {total_fmt}"]
        if self._is_compiling:
            parts.append("compiling")
        elif self.num_tokens and seconds:
            parts.append(f"{self.num_tokens / seconds:,.0f} tokens/s")
        elif self.n > self.initial:
            parts.append("{rate_fmt}")
        if self.longest and not self._is_compiling:
            parts.append(f"longest {self.longest:,} tokens")
        if not self._is_compiling and self.n - self.initial >= self.estimate_after:
            parts.append("{remaining} left")
        bar = "{percentage:3.0f}%|{bar}| " if sys.stderr.isatty() else ""
        state["bar_format"] = "{desc}: " + bar + ", ".join(parts) + "{postfix}"
        return state


def progress(
    total: int,
    description: str,
    unit: str,
    *,
    initial: int = 0,
    hidden: bool = False,
    estimate_after: int = 1,
    **options: Any,
) -> Any:
    """Return a `tqdm` bar, with these further options, over `total` units of work, `initial` of which are done already.

    The time left is shown once `estimate_after` units are done. If an exception ends the work, the bar writes nothing more, so that the
    error is the last line.
    """
    if sys.stderr.isatty():
        options |= dict(file=sys.stderr, mininterval=0.2)
    else:
        options |= dict(file=_Lines(), mininterval=SECONDS_BETWEEN_LINES)
    options |= dict(miniters=0, smoothing=0)  # a time since the last line, and an average over all of the work
    bar = _Bar(total=total, desc=description, unit=unit, initial=initial, disable=hidden, **options)
    bar.estimate_after = max(estimate_after, 1)
    return bar
