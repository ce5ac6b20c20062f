"""`rendezvous.py`: the processes of a run wait for each other, and say for whom. Here, threads stand for the processes."""

import contextlib
import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from s1jax.runtime import rendezvous
from s1jax.runtime.errors import UserError
from s1jax.runtime.launchers import Launch


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def meet(*launches, impatient=None):
    """The outcomes of `wait_for_processes` in as many threads: None, or the message of an error. One of them may be impatient."""

    def process(launch):
        try:
            return rendezvous.wait_for_processes(launch, 1 if launch.process_id == impatient else 30)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(launches)) as threads:
        return list(threads.map(process, launches))


def test_all_go_on_once_all_are_there(address):
    assert meet(*(Launch(address, 3, i) for i in (2, 1, 0))) == [None] * 3
    assert meet(*(Launch(address, 2, i) for i in (0, 1))) == [None] * 2, "the port is free again"


def test_a_process_that_does_not_come_is_named_to_all_others(address, caplog, monkeypatch):
    monkeypatch.setattr(rendezvous, "SECONDS_BEFORE_A_MESSAGE", 0)
    caplog.set_level(logging.INFO)
    first, second = meet(Launch(address, 4, 0), Launch(address, 4, 2), impatient=0)
    assert first.startswith(f"waited 1 s for 2 of 4 processes at {address} (index 1, 3): ")
    assert second == f"process 0 stopped: {first}"
    assert any(record.getMessage().startswith("waiting for 3 of 4 processes") for record in caplog.records)
    (alone,) = meet(Launch(address, 2, 1), impatient=1)
    assert alone.startswith(f"waited 1 s for process 0 at {address} (Connection refused)")


def test_processes_that_contradict_each_other_all_stop(address):
    outcomes = meet(Launch(address, 3, 0), Launch(address, 3, 1), Launch(address, 3, 1))
    assert outcomes[0] == "two processes have the index 1: give each its own"
    assert set(outcomes[1:]) == {f"process 0 stopped: {outcomes[0]}"}
    outcomes = meet(Launch(address, 3, 0), Launch(address, 2, 1))
    assert outcomes[0] == "process 1 is one of 2, process 0 one of 3: give all the same number"
    assert outcomes[1] == f"process 0 stopped: {outcomes[0]}"


def test_a_port_in_use_is_named(address):
    with socket.create_server(("localhost", int(address.partition(":")[2]))):
        (outcome,) = meet(Launch(address, 2, 0))
    assert outcome.startswith("process 0 cannot listen at port ") and f"of {address}: Address already in use" in outcome


@pytest.mark.parametrize("report", [b"GET / HTTP/1.1\r\n\r\n", b"process 1 o", b""])
def test_a_connection_without_a_report_is_closed_and_changes_nothing(address, report, monkeypatch):
    """It may be another program's, or that of a process whose report comes too late; the latter then reports again."""
    monkeypatch.setattr(rendezvous, "SECONDS_FOR_A_REPORT", 0.1)
    port = int(address.partition(":")[2])
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(meet, Launch(address, 2, 0))
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("localhost", port)) as visitor:
                visitor.settimeout(5)
                visitor.sendall(report)
                assert visitor.recv(100) == b""
                break
        assert meet(Launch(address, 2, 1)) == [None] and first.result() == [None]
