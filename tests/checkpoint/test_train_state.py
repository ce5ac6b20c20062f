"""`train_state.py`: saving and restoring states, damage, full disks, kills and several processes."""

import os
import re
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint import orbax
from s1jax.checkpoint.export import write_model_files
from s1jax.checkpoint.orbax import finished_steps
from s1jax.checkpoint.train_state import StateStore
from tests.support.checkpoints import State, abstract_of, assert_same, load, make_state, mesh_of, noise

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_state_is_restored_bit_for_bit_on_another_mesh(tmp_path):
    _, state = make_state(mesh_of())
    store = StateStore(tmp_path / "checkpoints", keep=2)
    assert store.latest_step() is None
    store.save(3, state, {"config": {"seed": 1}})
    store.close()
    _, elsewhere = make_state(mesh_of(2, 1, 2), seed=1)
    store = StateStore(tmp_path / "checkpoints", keep=2)
    restored = store.restore(store.latest_step(), abstract_of(elsewhere))
    store.close()
    assert orbax.read_metadata(tmp_path / "checkpoints" / "3") == {"config": {"seed": 1}}
    assert_same(restored, state)
    assert isinstance(restored, State)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(elsewhere), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_only_the_last_states_are_kept_and_a_saved_step_is_not_saved_again(tmp_path):
    _, state = make_state(mesh_of())
    store = StateStore(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        store.save(step, state, {"step": step})
    store.wait()
    assert finished_steps(tmp_path) == [3, 10] and store.latest_step() == 10
    with pytest.raises(OSError, match=r"cannot save step 10 .*already exists"):
        store.save(10, state, {})
    with pytest.raises(ValueError, match=r"cannot read checkpoint .*/2 .*; its other steps: \[3, 10\]"):
        store.restore(2, abstract_of(state))
    store.close()


def test_a_state_that_is_donated_while_it_is_saved_is_saved_as_it_was(tmp_path):
    mesh = mesh_of()
    x = jax.device_put(jnp.arange(1 << 20, dtype=jnp.float32).reshape(1024, 1024), mesh_sharding(mesh))
    expected = np.array(x)
    store = StateStore(tmp_path, keep=2)
    increment = jax.jit(lambda x: x + 1, donate_argnums=0)
    store.save(1, {"x": x}, {})
    for _ in range(20):
        x = increment(x)
    jax.block_until_ready(x)
    store.wait()
    restored = store.restore(1, abstract_of({"x": x}))
    store.close()
    np.testing.assert_array_equal(np.asarray(restored["x"]), expected)


def mesh_sharding(mesh):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor"))


def test_half_written_and_damaged_steps_are_not_taken_for_checkpoints(tmp_path, caplog):
    config, state = make_state(mesh_of())
    run = tmp_path / "run"
    write_model_files(run, config, None)
    store = StateStore(run / "checkpoints", keep=5)
    for step in (1, 2, 3, 4):
        store.save(step, state._replace(step=state.step + step), {})
    store.close()
    steps = run / "checkpoints"
    (steps / "4" / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(steps / "3" / "state")
    (steps / "9").mkdir()
    (steps / "11.orbax-checkpoint-tmp").mkdir()
    (steps / "notes.txt").write_text("")
    assert finished_steps(steps) == [1, 2]
    assert_same(load(run)[1], state.params)
    store = StateStore(steps, keep=5)
    assert store.latest_step() == 2
    assert re.search("/4 is not a finished checkpoint .*_CHECKPOINT_METADATA'.*: renamed to 4.damaged", caplog.text)
    assert re.search("/3 is not a finished checkpoint .*state/_METADATA'.*: renamed to 3.damaged", caplog.text)
    assert "11.orbax-checkpoint-tmp is a half-written checkpoint: removed" in caplog.text
    store.save(3, state, {})
    store.save(4, state, {})
    store.close()
    assert finished_steps(steps) == [1, 2, 3, 4]
    largest = max((steps / "4" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1)
    next((steps / "3" / "state").rglob("d/*")).unlink()
    assert finished_steps(steps) == [1, 2]
    caplog.clear()
    assert_same(load(run)[1], state.params)
    assert re.search(r"/4 is not .* is skipped: state/.*/d/\w+ has \d+ bytes, not \d+\n", caplog.text)
    assert re.search(r"/3 is not .* is skipped: state/.* is absent\n", caplog.text)


def test_a_state_that_cannot_be_read_is_named_with_the_others(tmp_path):
    store = StateStore(tmp_path, keep=5)
    state = {"x": jnp.arange(100_000.0)}
    for step in (1, 2):
        store.save(step, state, {})
    store.wait()
    (tmp_path / "2" / "s1jax_files.json").unlink()
    for path in (tmp_path / "2" / "state").rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"cannot read checkpoint .*/2 .*; its other steps: \[1\]"):
        store.restore(2, abstract_of(state))
    with pytest.raises(ValueError, match=r"cannot read checkpoint .*/1 "):
        store.restore(1, {"x": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=state["x"].sharding)})
    store.close()


def flip_a_bit(step_directory):
    path = max((step_directory / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def save_all(store, states):
    for step, state in states.items():
        store.save(step, state, {"step": step})
    store.close()


def test_the_checkpoint_before_one_of_changed_content_is_used(tmp_path, caplog):
    states = {step: noise(step) for step in (1, 2, 3)}
    save_all(StateStore(tmp_path, keep=3), states)
    flip_a_bit(tmp_path / "3")
    flip_a_bit(tmp_path / "2")
    store = StateStore(tmp_path, keep=3)
    assert store.latest_step() == 1 and store.read_metadata(1) == {"step": 1}
    assert_same(store.restore(1, abstract_of(states[1])), states[1])
    store.close()
    for step in (2, 3):
        pattern = rf"/{step} is not .*the content of state/.* is not what was written.*{step}.damaged"
        assert re.search(pattern, caplog.text)


def test_a_damaged_checkpoint_does_not_count_among_those_kept(tmp_path, caplog):
    store = StateStore(tmp_path, keep=2)
    for step in (1, 2):
        store.save(step, noise(step), {})
    store.wait()
    next((tmp_path / "2" / "state").rglob("d/*")).unlink()
    store.save(3, noise(3), {})
    store.close()
    assert finished_steps(tmp_path) == [1, 3] and (tmp_path / "2.damaged").is_dir()
    assert "2 is not a finished checkpoint" in caplog.text


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_is_kept_beside_the_last_and_a_step_without_a_finite_loss_is_never_it(tmp_path, keep_best):
    state, nan, inf = noise(0, 10), float("nan"), float("inf")
    store = StateStore(tmp_path, keep=1, keep_best=keep_best)
    held, best = [], []
    for step, loss in enumerate([None, nan, 3.0, 1.0, nan, None, -inf, 2.0], 1):
        store.save(step, state, {}, eval_loss=loss)
        store.wait()
        held.append(finished_steps(tmp_path))
        best.append(store.best_step())
    store.close()
    if not keep_best:
        assert held == [[step] for step in range(1, 9)] and best == [None, None, 3, 4, None, None, None, 8]
        return
    assert held == [[1], [2], [3], [4], [4, 5], [4, 6], [4, 7], [4, 8]]
    assert best == [None, None, 3, 4, 4, 4, 4, 4]
    store = StateStore(tmp_path, keep=1, keep_best=True)
    assert store.best_step() == 4
    store.save(9, state, {}, eval_loss=1.0)
    store.save(10, state, {}, eval_loss=5.0)
    store.close()
    assert finished_steps(tmp_path) == [9, 10]


@pytest.mark.parametrize("call", ["save", "wait", "close"])
def test_an_error_of_a_save_is_raised_by_the_next_call_and_leaves_the_one_before(tmp_path, call, monkeypatch):
    def fail(*_, **__):
        raise OSError("the cable is out")

    state = noise(1)
    store = StateStore(tmp_path, keep=1)
    store.save(1, state, {})
    store.wait()
    with monkeypatch.context() as patch:
        patch.setattr(orbax, "record_files", fail)
        store.save(2, noise(2), {})
        with pytest.raises(
            OSError, match=rf"cannot save step 2 in {tmp_path}: OSError: the cable is out \(.* GB were free\)"
        ):
            getattr(store, call)(*([3, state, {}] if call == "save" else []))
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    store = StateStore(tmp_path, keep=1)
    assert_same(store.restore(1, abstract_of(state)), state)
    store.close()


def test_arrays_in_host_memory_are_saved_and_restored_there(tmp_path):
    spec = jax.sharding.PartitionSpec("fsdp")
    host = jax.sharding.NamedSharding(mesh_of(), spec, memory_kind="pinned_host")
    state = jax.tree.map(lambda x: jax.device_put(x, host), noise(0))
    store = StateStore(tmp_path, keep=2)
    store.save(1, state, {})
    store.wait()
    restored = store.restore(1, abstract_of(state))
    store.close()
    assert_same(restored, state)
    assert restored["x"].sharding == host and restored["x"].sharding.memory_kind == "pinned_host"


PROCESS = """
import sys
import jax
import numpy as np
from s1jax.checkpoint.train_state import StateStore
from s1jax.runtime.processes import start_processes
from tests.support.checkpoints import abstract_of, make_state, mesh_of
start_processes()
store = StateStore(sys.argv[1], keep=5)
_, state = make_state(mesh_of(data=2, fsdp=2), seed=store.latest_step() or 7)
if store.latest_step() is None:
    store.save(7, state, {"seed": 7})
else:
    restored = store.restore(store.latest_step(), abstract_of(state))
    for found, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        for a, b in zip(found.addressable_shards, wanted.addressable_shards, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    assert store.read_metadata(3) == {"seed": 3}
store.close()
"""


@pytest.mark.integration
def test_what_two_processes_saved_one_restores_and_the_other_way_round(tmp_path, processes):
    processes.run_two("-c", PROCESS, tmp_path / "two")
    _, state = make_state(mesh_of(4, 1, 1), seed=7)
    store = StateStore(tmp_path / "two", keep=2)
    assert store.read_metadata(7) == {"seed": 7}
    assert_same(store.restore(7, abstract_of(state)), state)
    store.close()
    store = StateStore(tmp_path / "one", keep=2)
    store.save(3, make_state(mesh_of(1, 2, 1), seed=3)[1], {"seed": 3})
    store.close()
    processes.run_two("-c", PROCESS, tmp_path / "one")


SAVE_FOREVER = """
import itertools, sys
from s1jax.checkpoint.train_state import StateStore
from tests.support.checkpoints import noise
store = StateStore(sys.argv[1], keep=1)
for step in itertools.count((store.latest_step() or 0) + 1):
    store.save(step, noise(step, 300_000), {"step": step})
"""


@pytest.mark.integration
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, rng, processes):
    for _ in range(3):
        before = max(finished_steps(tmp_path), default=0)
        process = processes.start("-c", SAVE_FOREVER, tmp_path)
        deadline = time.monotonic() + 60
        while max(finished_steps(tmp_path), default=0) < before + 5:
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        store = StateStore(tmp_path, keep=1)
        step = store.latest_step()
        wanted = noise(step, 300_000)
        assert step >= before + 5 and store.read_metadata(step) == {"step": step}
        assert_same(store.restore(step, abstract_of(wanted)), wanted)
        store.close()
        # The kill may come between a save and the removal of the one before.
        assert {path.name for path in tmp_path.iterdir()} in ({str(step)}, {str(step - 1), str(step)})


FILL_THE_DISK = """
import shutil, sys
from pathlib import Path
from s1jax.checkpoint.train_state import StateStore
from s1jax.runtime.command import run_command
from tests.support.checkpoints import noise

def main():
    directory, share = Path(sys.argv[1]), float(sys.argv[2])
    store = StateStore(directory / "checkpoints", keep=1)
    store.save(1, noise(1, 1_000_000) | {"y": noise(2, 1_000_000)["x"]}, {"step": 1})
    store.wait()
    disk = shutil.disk_usage(directory)
    (directory / "filler").write_bytes(bytes(disk.free - int(share * disk.used) - 4096))
    store.save(2, noise(3, 1_000_000) | {"y": noise(4, 1_000_000)["x"]}, {"step": 2})
    print("training")
    store.close()

run_command(main)
"""


@pytest.fixture
def small_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", tmp_path / "disk"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


# The disk has room for nothing of a checkpoint, for some arrays, or for all but the last of its records.
@pytest.mark.integration
@pytest.mark.parametrize("share", [0, 0.02, 0.8, 0.998])
def test_a_full_disk_ends_the_run_with_one_clear_message_and_the_checkpoint_before_loads(small_disk, share, processes):
    (done,) = processes.finish(processes.start("-c", FILL_THE_DISK, small_disk, share))
    steps = small_disk / "checkpoints"
    assert re.fullmatch(rf"error: cannot save step 2 in {steps}: the disk is full of .* GB were free\). .*\n", done.err)
    assert done.code == 1
    assert finished_steps(steps) == [1]
    (small_disk / "filler").unlink()
    store = StateStore(steps, keep=1)
    wanted = noise(1, 1_000_000) | {"y": noise(2, 1_000_000)["x"]}
    assert_same(store.restore(1, abstract_of(wanted)), wanted)
    store.save(2, wanted, {})
    store.close()
    assert finished_steps(steps) == [2]


def test_a_save_does_not_count_in_the_agreement_on_preemption(tmp_path, monkeypatch):
    from jax.experimental import multihost_utils

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: counted.append(step))
    counted = []
    store = StateStore(tmp_path, keep=2)
    store.save(3, noise(0), {})
    store.close()
    assert not counted
