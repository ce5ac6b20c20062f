"""The program of a grading process: lines of two answers on standard input -> a verdict per line on standard output.

A line in is a JSON list `[answer, gold]`. A line out is `equal`, `different` or `timed_out`. The program imports Math-Verify once and then
forks a process for each comparison. So a comparison starts in milliseconds, leaves nothing behind, and can be killed.

- The kernel kills a comparison at `DEADLINE` (SIGALRM), even inside a long C call. It may use `_MAX_MEMORY` and open no file for writing,
  no connection and no process.
- The program ends, and kills a comparison that is running, when its standard input ends: that is, when the process that started it is gone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import resource
import select
import signal
import sys
from typing import Any

DEADLINE = 5.0
"""Seconds that one comparison may take."""
_MAX_MEMORY = 2 * 2**30
_EXIT_CODES = {0: "equal", 1: "different"}


def main() -> None:
    """Answer the lines of standard input until it ends."""
    from s1jax.grading.equivalence import compare
    from s1jax.grading.math_verify import equal_expressions, warm_up

    logging.disable(logging.CRITICAL)  # Math-Verify warns that its own time limits are off
    warm_up()
    gc.freeze()  # a comparison would otherwise copy the memory that it shares with this program
    for line in sys.stdin.buffer:
        answer, gold = json.loads(line)
        ended, held = os.pipe()  # the first hangs up when nobody holds the second: when the comparison has ended
        comparison = os.fork()
        if not comparison:
            _restrict_this_process()
            os._exit(not compare(answer, gold, equal_expressions))  # no exit handlers: they belong to the program
        os.close(held)
        _wait_for_hangup(ended, comparison)
        os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(comparison, 0)[1])
        print(_EXIT_CODES.get(code, "timed_out"), flush=True)


def _restrict_this_process() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True  # sympy imports some of its modules late
    sys.addaudithook(_refuse_side_effects)


def _refuse_side_effects(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise an error for what no comparison needs. Python calls this before each such operation (PEP 578)."""
    is_write = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    is_other = event.startswith(("os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir"))
    if is_write or is_other or event in ("os.system", "subprocess.Popen", "socket.connect", "os.kill"):
        raise PermissionError(f"a comparison may not do this: {event}")


def _wait_for_hangup(pipe: int, comparison: int) -> None:
    """Wait until a pipe hangs up. If standard input does so first, kill the comparison and end this program."""
    poll = select.poll()
    for file in (pipe, sys.stdin.fileno()):
        poll.register(file, 0)  # hanging up is always reported
    while pipe not in (files := dict(poll.poll())):
        if files:
            os.kill(comparison, signal.SIGKILL)
            sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
