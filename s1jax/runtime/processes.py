"""The processes of one run: how they join, which one writes, and how they divide work on the host."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from s1jax.runtime.errors import UserError, reason_of
from s1jax.runtime.launchers import ADDRESS, NUM_PROCESSES, PROCESS_ID, find_launch
from s1jax.runtime.rendezvous import wait_for_processes

T = TypeVar("T")
R = TypeVar("R")

SET_ALL_THREE = f"Set {ADDRESS} (the first one's HOST:PORT), {NUM_PROCESSES} and {PROCESS_ID} on each"


def start_processes() -> None:
    """Join the processes of a run that has several; do nothing in a run of one process.

    `find_launch` says which variables tell this. JAX finds TPUs of GKE. Raises UserError if the variables are incomplete or wrong, or if
    the processes do not come together (`wait_for_processes`).
    """
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))
    launch = find_launch(os.environ)
    if launch is not None:
        wait_for_processes(launch)
    if launch is not None or ("," in hosts and os.environ.get(NUM_PROCESSES) != "1"):
        try:
            jax.distributed.initialize(*(launch or ()))
        except (KeyError, ValueError, RuntimeError) as error:
            who = f"of the TPU hosts {hosts}" if launch is None else f"at {launch.address}"
            raise UserError(f"JAX cannot join the processes {who}: {reason_of(error)}. {SET_ALL_THREE}") from error
    elif jax.process_count() > 1:
        # A TPU finds its neighbours by itself, but its process could not agree with theirs on a step to stop at.
        raise UserError(f"these devices belong to {jax.process_count()} processes. {SET_ALL_THREE}")
    jax.process_index()  # connects the devices while all processes are alive: a message names its process (`command.py`)


def is_first_process() -> bool:
    """Return whether this is the process that writes the files of the run."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def everywhere(function: Callable[[], T]) -> T:
    """Call `function`, which must not wait for other processes, in every process; wait for all, and return this process's result.

    All processes must call this. If the function fails in one, all raise: that one its own error, the others a UserError with its message.
    """
    if jax.process_count() == 1:
        return function()
    error: Exception | None = None
    try:
        result = function()
    except Exception as raised:  # the others wait for this process, so it must report first
        error = raised
    messages = _gather(None if error is None else str(error) or repr(error))
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message is not None:
            raise UserError(f"process {process}: {message}")
    return result


def from_first_process(function: Callable[[], T]) -> T:
    """Call `function` in the first process only, and return its result in all. If it fails, all raise."""
    result = everywhere(lambda: function() if is_first_process() else None)
    return result if jax.process_count() == 1 else _gather(result)[0]  # type: ignore[return-value]


def check_same(value: Any, what: str) -> None:
    """Raise UserError in all processes if their values differ. All must call this. `repr(value)` must show everything; `what` names it."""
    if jax.process_count() > 1 and len(set(_gather(hashlib.sha256(repr(value).encode()).digest()))) > 1:
        raise UserError(f"the processes do not have the same {what}: give each the same command and the same files")


def map_over_processes(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return `[function(item) for item in items]`; each process computes a share of it and sends that to the others.

    All processes must call this with the same items (`check_same`). Raises UserError if a share is larger than 2 GB, and as `everywhere`.
    """
    num_processes = jax.process_count()
    if num_processes == 1:
        return [function(item) for item in items]

    def compute_share() -> bytes:
        share = pickle.dumps([function(item) for item in items[jax.process_index() :: num_processes]])
        if len(share) >= 2**31:
            raise UserError(
                f"{len(share) / 1e9:.1f} GB of {len(items)} items are too much to send: give fewer items, or use more processes"
            )
        return share

    shares = [pickle.loads(share) for share in _gather_bytes(everywhere(compute_share))]
    return [shares[i % num_processes][i // num_processes] for i in range(len(items))]


def _gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of the processes. All must call this."""
    return [pickle.loads(data) for data in _gather_bytes(pickle.dumps(value))]


def _gather_bytes(data: bytes) -> list[bytes]:
    sent = np.frombuffer(data, np.uint8)
    sizes = multihost_utils.process_allgather(np.array(sent.size, np.int32))
    padded = multihost_utils.process_allgather(np.pad(sent, (0, sizes.max() - sent.size)))
    return [row[:size].tobytes() for row, size in zip(padded, sizes, strict=True)]
