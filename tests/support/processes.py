"""Tests that start processes: alone, or two that form one run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from s1jax.runtime.files import ROOT


class Finished(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


class Processes:
    """Starts processes of `python ARGUMENTS` on fake CPU devices, and kills those that are left when the test ends.

    Two processes find each other through the variables that `start_processes` reads: the program must call it, as the commands do.
    """

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: object, devices: int = 8, **env: str) -> subprocess.Popen[str]:
        """Start one process, with pipes for both outputs."""
        env = os.environ | {
            "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        } | env  # fmt: skip
        command = [sys.executable, *map(str, arguments)]
        self.started.append(subprocess.Popen(command, env=env, text=True, stdout=-1, stderr=-1))
        return self.started[-1]

    def start_two(self, *arguments: object, devices: int = 4, **env: str) -> list[subprocess.Popen[str]]:
        """Start two processes of one run, each with `devices` of its devices."""
        with socket.socket() as s:
            s.bind(("localhost", 0))
            address = f"localhost:{s.getsockname()[1]}"
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        return [self.start(*arguments, devices=devices, JAX_PROCESS_ID=str(i), **env) for i in range(2)]

    def finish(self, *processes: subprocess.Popen[str], timeout: float = 300) -> list[Finished]:
        """Wait for the end of all. If one takes longer than `timeout` seconds, kill all and fail with their outputs."""

        def wait(process: subprocess.Popen[str]) -> tuple[str, str, bool]:
            try:
                return *process.communicate(timeout=timeout), False
            except subprocess.TimeoutExpired:
                process.kill()
                return *process.communicate(), True

        with ThreadPoolExecutor(len(processes)) as threads:  # together, because a full pipe would stop the one not read
            ends = list(threads.map(wait, processes))
        finished = [Finished(process.returncode, *end[:2]) for process, end in zip(processes, ends, strict=True)]
        assert not any(end[2] for end in ends), f"not finished after {timeout} s\n{_shown(finished)}"
        return finished

    def kill_after_a_row(self, *arguments: object, output: Path) -> int:
        """Start a process that appends to `output`, kill it once it has appended a line, and return the number of lines."""

        def num_lines() -> int:
            return output.read_bytes().count(b"\n") if output.exists() else 0

        before, process, deadline = num_lines(), self.start(*arguments), time.monotonic() + 240
        while num_lines() <= before:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.communicate()
        return num_lines()

    def run_two(self, *arguments: object, devices: int = 4, timeout: float = 300, **env: str) -> list[str]:
        """Run two processes of one run to their end, and return their standard outputs. If one fails, fail with all outputs."""
        finished = self.finish(*self.start_two(*arguments, devices=devices, **env), timeout=timeout)
        assert [end.code for end in finished] == [0, 0], _shown(finished)
        return [end.out for end in finished]


def _shown(finished: list[Finished]) -> str:
    return "\n".join(
        f"--- process {i}, exit code {end.code}\n{end.out}\n--- its standard error\n{end.err}"
        for i, end in enumerate(finished)
    )


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Processes that end with the test."""
    processes = Processes()
    yield processes
    for process in processes.started:
        process.kill()
        process.communicate()
