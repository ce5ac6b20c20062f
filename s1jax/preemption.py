"""SIGTERM, as Slurm and TPU preemption send it: the run saves and leaves, or leaves at once where there is nothing to save.

A Python signal handler runs in the main thread only, and not while that one is inside a long C++ call (compiling, waiting for a device).
So the handler here does nothing; the interpreter also writes each signal's number to a pipe, and a thread that reads it acts at once.

Several processes must stop after the same step. JAX's own agreement on it (`reached_preemption_sync_point`) tells all of them of one
process's SIGTERM; its handler, a C function that `jax.distributed.initialize` installed, is called by the thread here.

Invariant: after SIGTERM a process ends with exit code 143 (128 + 15), never 0: the run is not finished, and what restarts failed jobs
should start it again.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

EXIT_CODE = 128 + signal.SIGTERM

# JAX's agreement counts calls, and over the whole life of the process.
_calls = itertools.count(1)


class Preemption:
    """Listens to SIGTERM while it is entered; only the main thread can enter it, after `jax.distributed.initialize` if that is called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = threading.Event()
        self._agreed = False
        self._idle: str | None = None
        self._tell_jax: Callable[[], None] | None = None
        self._restore_jax: Callable[[], None] | None = None

    def __enter__(self) -> Preemption:
        self._pipe, write = os.pipe()
        os.set_blocking(write, False)
        if jax.distributed.is_initialized():
            self._tell_jax, self._restore_jax = _jax_handler()
        self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self._fd, self._old_fd = write, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="sigterm", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_fd)
        signal.signal(signal.SIGTERM, self._handler)
        if self._restore_jax is not None:
            self._restore_jax()
        os.close(self._fd)
        self._thread.join()
        os.close(self._pipe)

    @contextlib.contextmanager
    def nothing_to_save(self, doing: str) -> Iterator[None]:
        """Let SIGTERM end the process at once while the body runs, which is `doing` ("compiling") and has nothing that a save would keep.

        No save may be under way. Exit handlers are not run.
        """
        with self._lock:
            before, self._idle = self._idle, doing
            if self._received.is_set():
                self._end(doing)
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
            return self._received.is_set()
        if not self._agreed:
            from jax.experimental import multihost_utils

            self._agreed = multihost_utils.reached_preemption_sync_point(next(_calls))
        return self._agreed

    def stop(self, step: int) -> NoReturn:
        """End the process, after `step` was saved and is on disk, by SystemExit."""
        if jax.process_index() == 0:
            print(f"terminated: saved step {step}; the same command resumes", file=sys.stderr)
        raise SystemExit(EXIT_CODE)

    def _watch(self) -> None:
        while number := os.read(self._pipe, 1):
            if number[0] != signal.SIGTERM:
                continue
            with self._lock:
                if self._idle is not None:
                    self._end(self._idle)
                if not self._received.is_set():
                    _write("SIGTERM: saving after this step\n")
                self._received.set()
            if self._tell_jax is not None:
                self._tell_jax()

    def _end(self, doing: str) -> NoReturn:
        _write(f"terminated while {doing}: nothing new to save; the same command resumes\n")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # who read it is gone
                stream.flush()
        os._exit(EXIT_CODE)


def _write(message: str) -> None:
    """Write to stderr past Python's buffer, whose lock the main thread may hold."""
    with contextlib.suppress(OSError):  # who read it is gone
        os.write(2, message.encode())


def _jax_handler() -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what calls JAX's handler of SIGTERM, and what installs it again; Python does not know of it.

    Raises ValueError where there is none.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    address = libc.signal(signal.SIGTERM, None)
    if not address:
        raise ValueError(
            "JAX does not listen to SIGTERM, so processes could not agree on a step to stop at: "
            "leave jax_enable_preemption_service on, and the handler that jax.distributed.initialize installs in place"
        )
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
    return lambda: handler(signal.SIGTERM), lambda: libc.signal(signal.SIGTERM, address)
