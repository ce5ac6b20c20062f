"""The processes of a run wait for each other before JAX joins them.

JAX is silent while it waits, and ends a process with a C++ stack if another one does not come or if its port is in use. Here the first
process listens at the address of the run, and the others report there. Messages say whom they wait for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable

from s1jax.runtime.errors import UserError
from s1jax.runtime.launchers import Launch

logger = logging.getLogger(__name__)

GO, STOP = "s1jax: go", "s1jax: stop: "
SECONDS_TO_WAIT = 300
SECONDS_FOR_A_REPORT = 2
SECONDS_BEFORE_A_MESSAGE, SECONDS_BETWEEN_MESSAGES = 5, 30


def wait_for_processes(launch: Launch, seconds: float = SECONDS_TO_WAIT) -> None:
    """Return once all processes of the run are there. All must call this.

    Raises UserError if one does not come within `seconds`, if the port is in use, if two have the same index, or if they disagree about
    their number.
    """
    wait = _receive if launch.process_id == 0 else _report
    wait(launch, _waiter(seconds))


def _waiter(seconds: float) -> Callable[[str], float]:
    """Return a function that says now and then what is waited for, and returns the seconds left. It raises UserError once none are."""
    end, next_message = time.monotonic() + seconds, time.monotonic() + SECONDS_BEFORE_A_MESSAGE

    def waiting_for(what: str) -> float:
        nonlocal next_message
        now = time.monotonic()
        if now >= end:
            raise UserError(
                f"waited {seconds:.0f} s for {what}: not all processes were started, or their variables differ"
            )
        if now >= next_message:
            logger.info("waiting for %s, for at most %.0f s", what, seconds)
            next_message = now + SECONDS_BETWEEN_MESSAGES
        return end - now

    return waiting_for


def _receive(launch: Launch, waiting_for: Callable[[str], float]) -> None:
    """In the first process: wait for the report of each other one, then tell all to go on."""
    address, number = launch.address, launch.num_processes
    reports: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as connections:
        server = connections.enter_context(_listen(address))
        server.settimeout(0.5)
        try:
            while missing := sorted({*range(1, number)} - {*reports}):
                shown = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
                waiting_for(f"{len(missing)} of {number} processes at {address} (index {shown})")
                with contextlib.suppress(OSError):
                    report = connections.enter_context(server.accept()[0])
                    _add_report(reports, report, number)
                # A process that has ended is missed again.
                reports = {index: report for index, report in reports.items() if not _has_ended(report)}
        except UserError as error:
            _answer(reports.values(), f"{STOP}{error}")
            raise
        server.close()  # JAX listens at this port from now on
        _answer(reports.values(), GO)


def _listen(address: str) -> socket.socket:
    port, both = int(address.rpartition(":")[2]), socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"process 0 cannot listen at port {port} of {address}: {reason}. Choose another port, or end the program that uses it"
        ) from None


def _add_report(reports: dict[int, socket.socket], report: socket.socket, number: int) -> None:
    """Read who has connected. A connection that is not added is closed: a process whose report came too late reports again."""
    report.settimeout(SECONDS_FOR_A_REPORT)
    try:
        if found := re.fullmatch(rb"process (\d+) of (\d+)\n", report.recv(100)):
            report.setblocking(False)
            index, of = map(int, found.groups())
            fault = ""
            if of != number:
                fault = f"process {index} is one of {of}, process 0 one of {number}: give all the same number"
            elif index in reports and not _has_ended(reports[index]):
                fault = f"two processes have the index {index}: give each its own"
            if fault:
                _answer([report], f"{STOP}{fault}")
                raise UserError(fault)
            reports[index] = report
    finally:
        if report not in reports.values():
            report.close()


def _answer(reports: Iterable[socket.socket], text: str) -> None:
    for report in reports:
        with contextlib.suppress(OSError):
            report.sendall(text.encode())


def _has_ended(report: socket.socket) -> bool:
    """Return whether the process at the other end is gone. One that waits sends nothing."""
    try:
        return report.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _report(launch: Launch, waiting_for: Callable[[str], float]) -> None:
    """In another process: report to the first one until it answers."""
    address, number, index, _ = launch
    host, _, port = address.rpartition(":")
    reason = ""
    while True:
        left = waiting_for(f"process 0 at {address}{reason}")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(5, left)) as connection:
                connection.sendall(f"process {index} of {number}\n".encode())
                connection.settimeout(left)
                answer = connection.recv(1000).decode(errors="replace")
            if answer == GO:
                return
            if answer.startswith(STOP):
                raise UserError(f"process 0 stopped: {answer.removeprefix(STOP)}")
            reason = " (another program answers there)" if answer else ""
        except OSError as error:
            reason = f" ({error.strerror or error})"
        time.sleep(0.1)
