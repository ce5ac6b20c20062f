"""SIGTERM, as Slurm and TPU preemption send it, and Ctrl-C: the run saves and leaves, or leaves at once where there is nothing to save.

A Python signal handler runs in the main thread only, and not while that one is inside a long C++ call (compiling, waiting for a device).
So the handler here does nothing; the interpreter also writes each signal's number to a pipe, and a thread that reads it acts at once.

Several processes must stop after the same step. JAX's own agreement on it (`reached_preemption_sync_point`) tells all of them of one
process's signal; its handler of SIGTERM, a C function that `jax.distributed.initialize` installed, is called by the thread here.

Invariant: after SIGTERM a process ends with exit code 143 (128 + 15), after Ctrl-C with 130, never 0: the run is not finished, and what
restarts failed jobs should start it again.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

from s1jax.runtime.errors import UserError
from s1jax.runtime.processes import is_first_process

SIGNALS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}

# JAX's agreement counts calls, and over the whole life of the process.
_calls = itertools.count(1)


class Preemption:
    """Listens to SIGTERM and SIGINT while it is entered.

    Only the main thread can enter it, after `jax.distributed.initialize` if that is called.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._agreed = False
        self._idle: str | None = None
        self._tell_jax: Callable[[], None] | None = None
        self._restore_jax: Callable[[], None] | None = None

    def __enter__(self) -> Preemption:
        self._pipe, write = os.pipe()
        os.set_blocking(write, False)
        if jax.distributed.is_initialized():
            self._tell_jax, self._restore_jax = _jax_handler()
        # What runs in the background of a shell ignores Ctrl-C, and goes on to.
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in heeded}
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
        """Let a signal end the process at once while the body runs, which is `doing` ("compiling") and has nothing that a save would keep.

        No save may be under way. Exit handlers are not run.
        """
        with self._lock:
            before, self._idle = self._idle, doing
            if self._received is not None:
                self._end(self._received, doing)
        try:
            yield
        finally:
            with self._lock:
                self._idle = before

    def requested(self) -> bool:
        """Return whether to save and stop now; all processes call it equally often, and get the same answer to the same call.

        It costs microseconds: call it after each step, and between the batches of an evaluation.
        """
        if self._tell_jax is None:
            return self._received is not None
        if not self._agreed:
            from jax.experimental import multihost_utils

            self._agreed = multihost_utils.reached_preemption_sync_point(next(_calls))
        return self._agreed

    def stop(self, step: int) -> NoReturn:
        """End the process, after `step` was saved and is on disk, by SystemExit."""
        number = self._received or signal.SIGTERM  # else another process received it
        if is_first_process():
            print(f"{SIGNALS[number]}: saved step {step}; the same command resumes", file=sys.stderr)
        raise SystemExit(128 + number)

    def _watch(self) -> None:
        while number := os.read(self._pipe, 1):
            if number[0] not in SIGNALS:
                continue
            received = signal.Signals(number[0])
            with self._lock:
                if self._idle is not None:
                    self._end(received, self._idle)
                # A launcher may pass on what the terminal has sent already.
                again = self._received is not None and time.monotonic() > self._received_at + 0.5
                if received == signal.SIGINT and again:
                    _leave(received, "interrupted again: left at once; the same command resumes from the last save")
                if self._received is None:
                    how_to_leave = "; again to leave at once" if received == signal.SIGINT else ""
                    _write(f"{received.name}: saving after this step{how_to_leave}\n")
                    self._received, self._received_at = received, time.monotonic()
            if self._tell_jax is not None:
                self._tell_jax()

    def _end(self, received: signal.Signals, doing: str) -> NoReturn:
        _leave(received, f"{SIGNALS[received]} while {doing}: nothing new to save; the same command resumes")


def _leave(received: signal.Signals, message: str) -> NoReturn:
    _write(message + "\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # who read it is gone
            stream.flush()
    os._exit(128 + received)


def _write(message: str) -> None:
    """Write to stderr past Python's buffer, whose lock the main thread may hold."""
    with contextlib.suppress(OSError):  # who read it is gone
        os.write(2, message.encode())


def _jax_handler() -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what calls JAX's handler of SIGTERM, and what installs it again; Python does not know of it.

    Raises UserError where there is none.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    address = libc.signal(signal.SIGTERM, None)
    if not address:
        raise UserError(
            "JAX does not listen to SIGTERM, so processes could not agree on a step to stop at: "
            "leave jax_enable_preemption_service on, and the handler that jax.distributed.initialize installs in place"
        )
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
    return lambda: handler(signal.SIGTERM), lambda: libc.signal(signal.SIGTERM, address)
