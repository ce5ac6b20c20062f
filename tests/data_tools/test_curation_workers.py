"""`workers.py`: results in order, and no process that outlives the run."""

import os
import time

import pytest

from data_tools.curation.workers import Workers


def square(number):
    return number * number


@pytest.mark.integration
def test_results_come_in_the_order_of_the_items():
    for num_processes in (1, 2):
        with Workers(num_processes=num_processes) as workers:
            assert list(workers.map(square, range(20))) == [number * number for number in range(20)]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A dead process that nobody has waited for is still listed.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


PROGRAM = """
import os, time
from data_tools.curation.workers import Workers

def pid(_):
    time.sleep(0.2)
    return os.getpid()

if __name__ == "__main__":
    with Workers(num_processes=2) as workers:
        print(*set(workers.map(pid, range(4))), flush=True)
        time.sleep(600)
"""


@pytest.mark.integration
def test_workers_end_when_their_run_is_killed(processes, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = processes.start(tmp_path / "program.py")
    workers = [int(text) for text in process.stdout.readline().split()]
    assert workers and all(map(is_running, workers))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
