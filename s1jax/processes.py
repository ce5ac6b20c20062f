"""The processes of one run: how they join, which one writes, and how they share out work on the host.

What lies on devices is shared out by `sharding.py`, and a signal is agreed on in `preemption.py`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

T = TypeVar("T")
R = TypeVar("R")


def start_processes() -> None:
    """Join the processes of a multi-host run: under srun or Open MPI, on TPUs of GKE, or where JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID are set.

    Alone, this does nothing. Raises ValueError where some of these are missing.
    """
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name not in env]
        if missing:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS is set, but not {' and '.join(missing)}: set all three, or none")
        jax.distributed.initialize(num_processes=int(env["JAX_NUM_PROCESSES"]), process_id=int(env["JAX_PROCESS_ID"]))
    elif (
        (int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in env)  # else not started by srun, and alone
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
    ):
        jax.distributed.initialize()
    elif jax.process_count() > 1:
        # A TPU knows of its neighbours by itself, but could not agree with them on when to stop.
        raise ValueError(
            f"these devices are of {jax.process_count()} processes: set JAX_COORDINATOR_ADDRESS (the first one's host:port), "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID on each"
        )


def is_first_process() -> bool:
    """Return whether this is the one process that writes what belongs to all."""
    return jax.process_index() == 0


def map_over_processes(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return `[function(item) for item in items]`, of which each process computes its share and sends it to the others.

    All processes call it, with equal items. Raises in every one what the function raised in any, and ValueError where the items differ.
    """
    num_processes = jax.process_count()
    if num_processes == 1:
        return [function(item) for item in items]
    error, mine = None, []
    try:
        mine = [function(item) for item in items[jax.process_index() :: num_processes]]
    except Exception as raised:  # for the others, which wait for this process
        error = raised
    shares = _gather((hashlib.sha256(repr(items).encode()).digest(), error, mine))
    if error := next((error for _, error, _ in shares if error is not None), None):
        raise error
    if len({digest for digest, _, _ in shares}) > 1:
        raise ValueError("the processes do not read the same: give each the same files")
    results = [share for _, _, share in shares]
    return [results[i % num_processes][i // num_processes] for i in range(len(items))]


def _gather(value: T) -> list[T]:
    """Return the values of all processes, in their order; all call it."""
    from jax.experimental import multihost_utils

    # Pickles of one run's own processes.
    sent = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(sent.size))
    padded = multihost_utils.process_allgather(np.pad(sent, (0, sizes.max() - sent.size)))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]
