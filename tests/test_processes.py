"""Processes of one run: joining them, and sharing out work among them. Here they are threads; `test_train.py` starts real ones."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from s1jax.processes import map_over_processes, start_processes


def test_one_process_of_several_that_were_not_joined_is_refused(monkeypatch):
    """As on a pod whose processes were each started by hand: they would see all devices, and wait for each other for ever."""
    for name in (
        "JAX_COORDINATOR_ADDRESS",
        "SLURM_NTASKS",
        "OMPI_COMM_WORLD_SIZE",
        "TPU_PROCESS_ADDRESSES",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)
    start_processes()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="these devices are of 4 processes: set JAX_COORDINATOR_ADDRESS"):
        start_processes()


@pytest.fixture
def in_each_process(monkeypatch):
    """Call a function in each of several processes, as it were: with their numbers, and arrays that go from one to the others."""

    def in_each_process(num_processes, function):
        local, barrier, sent = threading.local(), threading.Barrier(num_processes, timeout=60), [None] * num_processes

        def process_allgather(x):
            sent[local.index] = x
            barrier.wait()
            gathered = np.stack(sent)
            barrier.wait()
            return gathered

        def process(index):
            local.index = index
            try:
                return function(index)
            except ValueError as error:
                return error

        monkeypatch.setattr(jax, "process_count", lambda: num_processes)
        monkeypatch.setattr(jax, "process_index", lambda: local.index)
        monkeypatch.setattr(multihost_utils, "process_allgather", process_allgather)
        with ThreadPoolExecutor(num_processes) as threads:
            return list(threads.map(process, range(num_processes)))

    return in_each_process


@pytest.mark.parametrize(("num_processes", "num_items"), [(1, 3), (2, 7), (3, 6), (4, 2), (2, 0)])
def test_each_process_computes_its_share_and_gets_all_in_order(num_processes, num_items, in_each_process):
    computed = []

    def squares(_):
        return map_over_processes(lambda x: computed.append(x) or np.full(x, x * x), list(range(num_items)))

    for found in in_each_process(num_processes, squares):
        assert [x.tolist() for x in found] == [[x * x] * x for x in range(num_items)]
    assert sorted(computed) == list(range(num_items))


def test_what_fails_in_one_process_is_raised_in_all(in_each_process):
    errors = in_each_process(2, lambda _: map_over_processes(int, ["0", "1", "2", "x"]))
    assert ["'x'" in str(error) for error in errors] == [True, True]


def test_processes_that_read_other_rows_are_refused(in_each_process):
    for items in ([["a", "b"], ["a", "c"]], [["a", "b"], ["a"]]):
        errors = in_each_process(2, lambda index, items=items: map_over_processes(str.upper, items[index]))
        assert all("do not read the same" in str(error) for error in errors) and len(errors) == 2
