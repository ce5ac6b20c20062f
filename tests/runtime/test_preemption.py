"""Real processes and real signals: a loop as the training loop uses `Preemption` and `StateStore`, with long calls into C in it."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint.train_state import StateStore
from s1jax.runtime.preemption import Preemption

LOOP = """
import ctypes, signal, sys, time
import jax
import numpy as np
from s1jax.checkpoint import orbax
from s1jax.runtime.command import run_command
from s1jax.runtime.preemption import Preemption
from s1jax.runtime.processes import start_processes
from s1jax.checkpoint.train_state import StateStore

start_processes()
# A shell ignores Ctrl-C for the processes in its background, where these tests may run.
signal.signal(signal.SIGINT, signal.default_int_handler)
directory, slow = sys.argv[1], sys.argv[2]
# The main thread stays inside C, where no Python handler can run.
sleep = lambda seconds: ctypes.CDLL(None).usleep(int(seconds * 1e6))
record_files = orbax.record_files


def record_slowly(*args, **kwargs):
    print("writing", flush=True)
    time.sleep(2)
    record_files(*args, **kwargs)


def add(x):
    if slow == "compile":
        print("compiling", flush=True)
        sleep(1800)
    return x + 1


def main():
    with Preemption() as preemption:
        with preemption.nothing_to_save("compiling"):
            store = StateStore(directory, keep=1)
            mesh = jax.make_mesh((jax.device_count(),), ("x",))
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
            x = jax.make_array_from_callback((8,), sharding, lambda _: np.zeros(8 // jax.device_count(), np.float32))
            step_fn = jax.jit(add).lower(x).compile()
        for step in range(1, 10_000):
            x = step_fn(x)
            print("step", step, flush=True)
            sleep(0.1 if slow != "saving" else 0.01)
            if slow == "evaluation":
                for batch in range(10_000):
                    if preemption.requested():
                        break
                    print("evaluating", flush=True)
                    sleep(0.1)
            stop = preemption.requested()
            if stop or step % 5 == 0:
                if slow == "saving":
                    orbax.record_files = record_slowly
                store.save(step, {"x": x}, {"step": step})
            if stop:
                store.close()
                preemption.stop(step)


run_command(main)
"""


@pytest.fixture
def start(processes):
    """Start the loop as a process of its own."""
    return lambda *arguments: processes.start("-c", LOOP, *arguments, devices=1)


def wait_for(process, line):
    for found in process.stdout:
        if found.strip() == line:
            return
    raise AssertionError(process.communicate()[1])


def check_saved(directory, step):
    store = StateStore(directory, keep=2)
    assert store.latest_step() == step
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored = store.restore(step, {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)})
    store.close()
    np.testing.assert_array_equal(restored["x"], np.full(8, step, np.float32))


def saved_step(messages):
    return int(messages.split("saved step ")[1].split(";")[0])


def end_of(process):
    """The exit code and the standard error of a process, which must end long before the loop would have compiled."""
    _, messages = process.communicate(timeout=180)
    assert "Traceback" not in messages, messages
    return process.returncode, messages


@pytest.mark.integration
def test_sigterm_while_compiling_ends_the_process_at_once(tmp_path, start):
    process = start(tmp_path, "compile")
    wait_for(process, "compiling")
    process.terminate()
    code, messages = end_of(process)
    assert (code, messages) == (143, "terminated while compiling: nothing new to save; the same command resumes\n")


@pytest.mark.integration
@pytest.mark.parametrize(("slow", "line"), [("nothing", "step 7"), ("evaluation", "evaluating")])
def test_sigterm_in_a_step_or_an_evaluation_saves_that_step(tmp_path, slow, line, start):
    process = start(tmp_path, slow)
    wait_for(process, line)
    process.terminate()
    code, messages = end_of(process)
    step = saved_step(messages)
    assert step in ((7, 8, 9) if slow == "nothing" else (1,))
    saving = "SIGTERM: saving after this step\n"
    assert (code, messages) == (143, f"{saving}terminated: saved step {step}; the same command resumes\n")
    check_saved(tmp_path, step)


@pytest.mark.integration
def test_sigterm_again_and_again_while_a_checkpoint_is_written_breaks_nothing(tmp_path, start):
    process = start(tmp_path, "saving")
    wait_for(process, "writing")
    for _ in range(10):
        process.terminate()
        time.sleep(0.2)
    code, messages = end_of(process)
    assert code == 143 and messages.count("SIGTERM") == 1
    step = saved_step(messages)
    assert step >= 5
    check_saved(tmp_path, step)


@pytest.mark.integration
def test_an_interrupt_saves_too_and_a_second_one_leaves_at_once(tmp_path, start):
    process = start(tmp_path, "nothing")
    wait_for(process, "step 3")
    process.send_signal(signal.SIGINT)
    code, messages = end_of(process)
    first = "SIGINT: saving after this step; press Ctrl-C again to stop at once\n"
    step = saved_step(messages)
    assert step in (3, 4, 5)
    assert (code, messages) == (130, f"{first}interrupted: saved step {step}; the same command resumes\n")
    check_saved(tmp_path, step)
    process = start(tmp_path / "2", "saving")
    wait_for(process, "writing")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # passed on by a launcher, say
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, messages = end_of(process)
    assert code == 130 and first in messages and "interrupted again: stopped at once" in messages


@pytest.mark.integration
@pytest.mark.parametrize("slow", ["nothing", "evaluation"])
def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path, slow, processes):
    first, second = processes.start_two("-c", LOOP, tmp_path, slow)
    wait_for(second, "step 13" if slow == "nothing" else "evaluating")
    second.terminate()
    time.sleep(0.3)
    second.terminate()
    (code0, _, messages0), (code1, _, messages1) = processes.finish(first, second)
    assert (code0, code1) == (143, 143)
    step = saved_step(messages0)
    assert step >= 13 if slow == "nothing" else step == 1
    assert "Traceback" not in messages0 + messages1
    assert (
        messages0.startswith("[process 0] ")
        and "SIGTERM: saving" in messages1
        and "SIGTERM: saving" not in messages0
        and "saved step" not in messages1
    )
    check_saved(tmp_path, step)


@pytest.mark.integration
def test_both_of_two_processes_leave_at_once_while_compiling(tmp_path, processes):
    both = processes.start_two("-c", LOOP, tmp_path, "compile")
    for process in both:
        wait_for(process, "compiling")
    for process in both:
        process.terminate()
    for process in both:
        code, messages = end_of(process)
        assert code == 143 and "terminated while compiling" in messages


@pytest.mark.integration
def test_a_signal_that_came_before_a_phase_with_nothing_to_save_ends_it(processes):
    code = "import os, signal, time\nfrom s1jax.runtime.preemption import Preemption\n"
    code += "with Preemption() as p:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.5)\n"
    code += "    p.saved = 'rows in \\x1b[2J'\n"
    code += "    with p.nothing_to_save('exporting'):\n        print('exported')\n"
    (done,) = processes.finish(processes.start("-c", code))
    assert done.code == 143 and done.out == "" and "terminated while exporting: rows in \\x1b[2J;" in done.err


def test_an_interrupt_that_was_ignored_stays_ignored():
    """As in the background of a shell without job control, where Ctrl-C is meant for another program."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            assert not preemption.requested()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_listened_before_listens_again_afterwards():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with Preemption() as preemption:
            assert not preemption.requested()
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 10
            while not preemption.requested():
                assert time.monotonic() < deadline
        assert not received
        os.kill(os.getpid(), signal.SIGTERM)
        assert received and signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)
