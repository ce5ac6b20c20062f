"""`processes.py`: joining the processes of a run and dividing work among them. Here, threads stand for the processes."""

import os
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from s1jax.runtime.processes import check_same, everywhere, from_first_process, map_over_processes, start_processes


def test_one_process_of_several_that_were_not_joined_is_refused(monkeypatch):
    """As on a pod, if each process is started by hand: each sees all devices and would wait for the others for ever."""
    monkeypatch.setattr(os, "environ", {})
    start_processes()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match=r"these devices belong to 4 processes\. Set JAX_COORDINATOR_ADDRESS"):
        start_processes()


@pytest.fixture
def in_each_process(monkeypatch):
    """Call a function in several threads that stand for processes: each has its index, and they exchange arrays."""

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
    failed, other = in_each_process(2, lambda _: map_over_processes(int, ["0", "1", "x", "3"]))
    assert "'x'" in str(failed) and str(other) == f"process 0: {failed}"
    # The process that failed raises its own error, with its own traceback.
    assert failed.__traceback__ is not None and any(
        frame.name == "compute_share" for frame in traceback.extract_tb(failed.__traceback__)
    )


class NotToBePickled(ValueError):
    def __init__(self):
        super().__init__("no file")
        self.lock = threading.Lock()


def test_all_go_on_once_a_function_has_ended_in_all_and_none_where_it_failed_in_one(in_each_process):
    assert in_each_process(3, lambda index: everywhere(lambda: index)) == [0, 1, 2]

    def fail(index):
        if index == 1:
            raise NotToBePickled

    errors = in_each_process(3, lambda index: everywhere(lambda: fail(index)))
    assert list(map(str, errors)) == ["process 1: no file", "no file", "process 1: no file"]
    assert isinstance(errors[1], NotToBePickled)


def test_only_the_first_process_calls_and_all_get_what_it_found(in_each_process):
    called = []
    found = in_each_process(3, lambda index: from_first_process(lambda: called.append(index) or {"a": [index]}))
    assert found == [{"a": [0]}] * 3 and called == [0]
    errors = in_each_process(2, lambda index: from_first_process(lambda: int("x")))
    assert "'x'" in str(errors[0]) and str(errors[1]).startswith("process 0: ")


def test_processes_that_have_other_values_are_refused(in_each_process):
    assert in_each_process(2, lambda index: check_same(["a", 1], "rows")) == [None, None]
    for values in ([["a", "b"], ["a", "c"]], [["a", "b"], ["a"]]):
        errors = in_each_process(2, lambda index, values=values: check_same(values[index], "rows"))
        assert all("do not have the same rows" in str(error) for error in errors) and len(errors) == 2
