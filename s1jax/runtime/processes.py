"""The processes of one run: how they join, which one writes, and how they share out work on the host.

What lies on devices is shared out by `sharding.py`, and a signal is agreed on in `preemption.py`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from s1jax.runtime.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def start_processes() -> None:
    """Join the processes of a multi-host run: under srun or Open MPI, on TPUs of GKE, or where JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID are set.

    Alone, this does nothing. Raises UserError where some of these are missing.
    """
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name not in env]
        if missing:
            raise UserError(f"JAX_COORDINATOR_ADDRESS is set, but not {' and '.join(missing)}: set all three, or none")
        jax.distributed.initialize(num_processes=int(env["JAX_NUM_PROCESSES"]), process_id=int(env["JAX_PROCESS_ID"]))
    elif (
        (int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in env)  # else not started by srun, and alone
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
    ):
        jax.distributed.initialize()
    elif jax.process_count() > 1:
        # A TPU knows of its neighbours by itself, but could not agree with them on when to stop.
        raise UserError(
            f"these devices are of {jax.process_count()} processes: set JAX_COORDINATOR_ADDRESS (the first one's host:port), "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID on each"
        )


def is_first_process() -> bool:
    """Return whether this is the one process that writes what belongs to all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def everywhere(function: Callable[[], T]) -> T:
    """Return what `function` returns in this process once it has ended in all; all call it, and where it fails in one, all raise.

    It may not wait for other processes itself. Its error is raised where it was, and a ValueError that tells it in the others.
    """
    if jax.process_count() == 1:
        return function()
    error: Exception | None = None
    try:
        result = function()
    except Exception as raised:  # the others wait for this process
        error = raised
    messages = _gather(None if error is None else str(error) or repr(error))
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message is not None:
            raise UserError(f"process {process}: {message}")
    return result


def from_first_process(function: Callable[[], T]) -> T:
    """Return, in all processes, what `function` returns in the first, which alone calls it; where it fails, all raise."""
    result = everywhere(lambda: function() if is_first_process() else None)
    return result if jax.process_count() == 1 else _gather(result)[0]  # type: ignore[return-value]


def check_same(value: Any, what: str) -> None:
    """Raise UserError in all processes, which all call it, where they do not have the same `what`: a value of which `repr` shows all."""
    if jax.process_count() > 1 and len(set(_gather(hashlib.sha256(repr(value).encode()).digest()))) > 1:
        raise UserError(f"the processes do not have the same {what}: give each the same command and the same files")


def map_over_processes(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return `[function(item) for item in items]`, of which each process computes its share and sends it to the others.

    All call it, with items that `check_same` finds to be the same. Raises UserError where a share is larger than 2 GB; of failures see
    `everywhere`.
    """
    num_processes = jax.process_count()
    if num_processes == 1:
        return [function(item) for item in items]

    def compute_share() -> bytes:
        share = pickle.dumps([function(item) for item in items[jax.process_index() :: num_processes]])
        if len(share) >= 2**31:
            raise UserError(
                f"{len(share) / 1e9:.1f} GB of {len(items)} items are too much to send: give fewer, or more processes"
            )
        return share

    shares = [pickle.loads(share) for share in _gather_bytes(everywhere(compute_share))]
    return [shares[i % num_processes][i // num_processes] for i in range(len(items))]


def _gather(value: T) -> list[T]:
    """Return the values of all processes, in their order; all call it."""
    return [pickle.loads(data) for data in _gather_bytes(pickle.dumps(value))]


def _gather_bytes(data: bytes) -> list[bytes]:
    from jax.experimental import multihost_utils

    sent = np.frombuffer(data, np.uint8)
    sizes = multihost_utils.process_allgather(np.array(sent.size, np.int32))
    padded = multihost_utils.process_allgather(np.pad(sent, (0, sizes.max() - sent.size)))
    return [row[:size].tobytes() for row, size in zip(padded, sizes, strict=True)]
