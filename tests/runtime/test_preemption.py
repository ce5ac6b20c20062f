"""Real processes and real signals: a loop as the training loop uses `Preemption` and `StateStore`, with long calls into C in it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint.train_state import StateStore
from s1jax.runtime.preemption import Preemption

ROOT = Path(__file__).resolve().parents[2]

LOOP = """
import ctypes, signal, sys, time
import jax
if len(sys.argv) > 3:
    jax.distributed.initialize(f"localhost:{sys.argv[3]}", 2, int(sys.argv[4]))
import jax.numpy as jnp
import numpy as np
from s1jax.checkpoint import orbax
from s1jax.runtime.command import run_command
from s1jax.runtime.preemption import Preemption
from s1jax.checkpoint.train_state import StateStore

# It is ignored in what a shell starts in the background, as these tests may be.
signal.signal(signal.SIGINT, signal.default_int_handler)
directory, slow = sys.argv[1], sys.argv[2]
# Holds the main thread inside C, where no Python handler can run.
sleep = lambda seconds: ctypes.CDLL(None).usleep(int(seconds * 1e6))
record_files = orbax.record_files


def record_slowly(*args, **kwargs):
    print("writing", flush=True)
    time.sleep(2)
    record_files(*args, **kwargs)


def add(x):
    if slow == "compile":
        print("compiling", flush=True)
        sleep(60)
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


STARTED = []


@pytest.fixture(autouse=True)
def kill_what_is_left():
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def start(*arguments, devices=1):
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    command = [sys.executable, "-c", LOOP, *map(str, arguments)]
    STARTED.append(subprocess.Popen(command, env=env, text=True, stdout=-1, stderr=-1))
    return STARTED[-1]


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


def saved_step(told):
    return int(told.split("saved step ")[1].split(";")[0])


def end_of(process):
    """The exit code, what is on stderr, and the seconds it took."""
    started = time.monotonic()
    _, told = process.communicate(timeout=180)
    assert "Traceback" not in told, told
    return process.returncode, told, time.monotonic() - started


def test_sigterm_while_compiling_ends_the_process_at_once(tmp_path):
    process = start(tmp_path, "compile")
    wait_for(process, "compiling")
    process.terminate()
    code, told, seconds = end_of(process)
    assert (code, told) == (143, "terminated while compiling: nothing new to save; the same command resumes\n")
    assert seconds < 5


@pytest.mark.parametrize(("slow", "line"), [("nothing", "step 7"), ("evaluation", "evaluating")])
def test_sigterm_in_a_step_or_an_evaluation_saves_that_step(tmp_path, slow, line):
    process = start(tmp_path, slow)
    wait_for(process, line)
    process.terminate()
    code, told, seconds = end_of(process)
    step = saved_step(told)
    assert step in ((7, 8, 9) if slow == "nothing" else (1,))
    saving = "SIGTERM: saving after this step\n"
    assert (code, told) == (143, f"{saving}terminated: saved step {step}; the same command resumes\n")
    assert seconds < 10
    check_saved(tmp_path, step)


def test_sigterm_again_and_again_while_a_checkpoint_is_written_breaks_nothing(tmp_path):
    process = start(tmp_path, "saving")
    wait_for(process, "writing")
    for _ in range(10):
        process.terminate()
        time.sleep(0.2)
    code, told, _ = end_of(process)
    assert code == 143 and told.count("SIGTERM") == 1
    step = saved_step(told)
    assert step >= 5
    check_saved(tmp_path, step)


def test_an_interrupt_saves_too_and_a_second_one_leaves_at_once(tmp_path):
    process = start(tmp_path, "nothing")
    wait_for(process, "step 3")
    process.send_signal(signal.SIGINT)
    code, told, _ = end_of(process)
    first = "SIGINT: saving after this step; again to leave at once\n"
    step = saved_step(told)
    assert step in (3, 4, 5)
    assert (code, told) == (130, f"{first}interrupted: saved step {step}; the same command resumes\n")
    check_saved(tmp_path, step)
    process = start(tmp_path / "2", "saving")
    wait_for(process, "writing")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # passed on by a launcher, say
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, told, _ = end_of(process)
    assert code == 130 and told.startswith(first + "interrupted again: left at once")


@pytest.mark.parametrize("slow", ["nothing", "evaluation"])
def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path, slow):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    processes = [start(tmp_path, slow, port, i, devices=4) for i in range(2)]
    wait_for(processes[1], "step 13" if slow == "nothing" else "evaluating")
    processes[1].terminate()
    time.sleep(0.3)
    processes[1].terminate()
    (code0, told0, _), (code1, told1, _) = map(end_of, processes)
    assert (code0, code1) == (143, 143)
    step = saved_step(told0)
    assert step >= 13 if slow == "nothing" else step == 1
    assert "SIGTERM: saving" in told1 and "SIGTERM: saving" not in told0 and "saved step" not in told1
    check_saved(tmp_path, step)


def test_both_of_two_processes_leave_at_once_while_compiling(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    processes = [start(tmp_path, "compile", port, i, devices=4) for i in range(2)]
    for process in processes:
        wait_for(process, "compiling")
    for process in processes:
        process.terminate()
    for process in processes:
        code, told, seconds = end_of(process)
        assert code == 143 and "terminated while compiling" in told and seconds < 5


def test_a_signal_that_came_before_a_phase_with_nothing_to_save_ends_it():
    code = "import os, signal, time\nfrom s1jax.runtime.preemption import Preemption\n"
    code += "with Preemption() as p:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.5)\n"
    code += "    with p.nothing_to_save('exporting'):\n        print('exported')\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 143 and done.stdout == "" and "terminated while exporting" in done.stderr


def test_an_interrupt_that_was_ignored_stays_ignored():
    """As of a run in the background of a shell without job control, where Ctrl-C is meant for another program."""
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
