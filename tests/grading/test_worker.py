"""`worker.py`: what a comparison may do, and that no process is left."""

import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def living_processes(group: int) -> list[str]:
    """The names of the processes of a process group that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition(")")
        except OSError:  # it has just ended
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.parametrize("answer", ["5x", "9^{9^{9^9}}+x", "99999999!+x"])
def test_no_worker_outlives_the_process_that_started_it(processes, answer):
    code = f"""
from s1jax.grading.pool import Grader
grader = Grader(1)
grader.submit(r"\\boxed{{x+1}}", "1+x").result()
print(grader._workers[0]._process.pid, flush=True)
grader.submit(r"\\boxed{{{answer}}}", "5").result()
print("graded", flush=True)
input()
"""
    process = processes.start("-c", code)
    group = int(process.stdout.readline())
    assert living_processes(group)
    time.sleep(0.5)
    process.kill()
    killed = time.monotonic()
    while living_processes(group):
        # The limit of a comparison is longer: the worker itself must see that its reader is gone.
        assert time.monotonic() < killed + 3, living_processes(group)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "statement",
    [
        "os.system('true')",
        "open('{path}', 'w')",
        "os.open('{path}', os.O_CREAT)",
        "subprocess.run(['true'])",
        "os.fork()",
        "os.remove('{path}')",
        "socket.create_connection(('127.0.0.1', 9))",
        "os.kill(os.getppid(), 9)",
    ],
)
def test_a_comparison_may_not_change_anything(processes, statement, tmp_path):
    statement = statement.replace("{path}", str(tmp_path / "trace"))
    code = (
        f"import os, socket, subprocess\nfrom s1jax.grading import worker\nworker._restrict_this_process()\n{statement}"
    )
    (done,) = processes.finish(processes.start("-c", code))
    assert done.code == 1 and "a comparison may not do this" in done.err


def test_a_comparison_ends_at_its_time_limit_even_inside_one_long_call(processes):
    code = "from s1jax.grading import worker\nworker.DEADLINE = 0.2\nworker._restrict_this_process()\n9**9**9"
    (done,) = processes.finish(processes.start("-c", code))
    assert done.code == -signal.SIGALRM


def test_a_comparison_has_a_limit_of_memory(processes):
    code = "from s1jax.grading import worker\nworker._restrict_this_process()\nb'0' * 2**32"
    (done,) = processes.finish(processes.start("-c", code))
    assert done.code == 1 and "MemoryError" in done.err
