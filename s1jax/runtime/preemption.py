"""Stopping a run by SIGTERM (from Slurm or TPU preemption) or Ctrl-C: it saves, then ends, or ends at once if nothing needs saving.

A Python signal handler runs only in the main thread, and not while that thread is inside a long C++ call (compiling, waiting for a device).
So the handler here does nothing. The interpreter also writes the number of each signal to a pipe; a thread reads the pipe and acts at once.

Several processes must stop after the same step. JAX lets them agree on it (`reached_preemption_sync_point`) once its own SIGTERM handler, a
C function installed by `jax.distributed.initialize`, has run in one of them; the thread here calls that handler.

Invariant: the exit code is 143 (128 + 15) after SIGTERM and 130 after Ctrl-C, so that a job scheduler restarts the unfinished run.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from s1jax.runtime import lock
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import visible

logger = logging.getLogger(__name__)

SIGNALS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}

NOTHING_NEW = "nothing new to save"

# JAX numbers the calls of the agreement over the whole life of a process.
_calls = itertools.count(1)


class Preemption:
    """Context manager that listens to SIGTERM and SIGINT. Enter it in the main thread, and after `jax.distributed.initialize`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._agreed = False
        self._idle: str | None = None
        self.saved = NOTHING_NEW
        """What is on disk, for the message of a signal that ends the process at once. The body of `nothing_to_save` may change it."""
        self._tell_jax: Callable[[], None] | None = None
        self._restore_jax: Callable[[], None] | None = None

    def __enter__(self) -> Preemption:
        self._pipe, write = os.pipe()
        os.set_blocking(write, False)
        if jax.distributed.is_initialized():
            self._tell_jax, self._restore_jax = _jax_handler()
        # A process in the background of a shell ignores Ctrl-C, and must continue to.
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in handled}
        self._fd, self._old_fd = write, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._restore_jax is not None:
            self._restore_jax()
        os.close(self._fd)
        self._thread.join()
        os.close(self._pipe)

    @contextlib.contextmanager
    def nothing_to_save(self, doing: str) -> Iterator[None]:
        """Let a signal end the process at once, without exit handlers, while the body runs.

        `doing` names the work of the body ("compiling") in the message. The body must have nothing to save, and no save may be running.
        """
        with self._lock:
            self._idle = doing
            if self._received is not None:
                self._leave_idle(self._received)
        try:
            yield
        finally:
            with self._lock:
                self._idle = None

    def requested(self) -> bool:
        """Return whether to save and stop now. A call takes microseconds.

        All processes must call it equally often; the n-th call has the same answer in all.
        """
        if self._tell_jax is None:
            return self._received is not None
        if not self._agreed:
            self._agreed = multihost_utils.reached_preemption_sync_point(next(_calls))
        return self._agreed

    def stop(self, step: int) -> NoReturn:
        """Raise SystemExit with the exit code of the signal; call it once `step` is on disk."""
        number = self._received or signal.SIGTERM  # without one, another process received it
        logger.info("%s: saved step %d; the same command resumes", SIGNALS[number], step)
        raise SystemExit(128 + number)

    def _watch(self) -> None:
        while number := os.read(self._pipe, 1):
            if number[0] not in SIGNALS:
                continue
            received = signal.Signals(number[0])
            with self._lock:
                if self._idle is not None:
                    self._leave_idle(received)
                # A launcher may forward the signal that the terminal has sent to this process already.
                again = self._received is not None and time.monotonic() > self._received_at + 0.5
                if received == signal.SIGINT and again:
                    _leave(received, "again: stopped at once; the same command resumes from the last save")
                if self._received is None:
                    hint = "; press Ctrl-C again to stop at once" if received == signal.SIGINT else ""
                    _write(f"{received.name}: saving after this step{hint}\n")
                    self._received, self._received_at = received, time.monotonic()
            if self._tell_jax is not None:
                self._tell_jax()

    def _leave_idle(self, received: signal.Signals) -> NoReturn:
        _leave(received, f"while {self._idle}: {self.saved}; the same command resumes")


def _leave(received: signal.Signals, reason: str) -> NoReturn:
    _write(f"{SIGNALS[received]} {reason}\n")
    lock.release_all()
    os._exit(128 + received)


def _write(message: str) -> None:
    """Write to standard error directly: the main thread may hold the locks of `logging` and of Python's buffer."""
    with contextlib.suppress(OSError):  # the reader is gone
        os.write(2, visible(message).encode())


def _jax_handler() -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a function that calls JAX's handler of SIGTERM, which Python cannot see, and one that installs it again."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    address = libc.signal(signal.SIGTERM, None)
    if not address:
        raise UserError(
            "JAX does not listen to SIGTERM, so the processes cannot agree on a step to stop at: leave jax_enable_preemption_service on, "
            "and do not replace the handler that jax.distributed.initialize installs"
        )
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
    return lambda: handler(signal.SIGTERM), lambda: libc.signal(signal.SIGTERM, address)
