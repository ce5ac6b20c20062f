"""What this machine can do, measured: the seconds of a call, the rate of reading memory, and the rate of a matrix product."""

import concurrent.futures
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def timed(call: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """Return the seconds of the fastest of several calls, and the result of the last. A call ends when its arrays are computed."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def read_bandwidth(num_bytes: int = 2**30) -> float:
    """Return the bytes per second that all devices of this process together read in a plain sum, the best of five."""
    if jax.default_backend() == "cpu":
        # One thread per core, so that all cores read at the same time.
        parts = np.array_split(np.ones(num_bytes // 4, np.float32), os.cpu_count() or 1)
        with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
            return num_bytes / timed(lambda: list(pool.map(np.sum, parts)), times=5)[0]
    # Many sums in a row, so that starting the first and waiting for the last takes a small part of the time.
    arrays = [jax.device_put(jnp.ones(num_bytes // 4, jnp.float32), device) for device in jax.local_devices()] * 16
    total = jax.jit(jnp.sum)
    jax.block_until_ready([total(array) for array in arrays])
    return num_bytes * len(arrays) / timed(lambda: [total(array) for array in arrays], times=5)[0]


def measured_flops(dtype: str, size: int = 2048) -> float:
    """Return the operations per second of a product of two square matrices on one device, the best of five."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return 2 * size**3 / timed(lambda: product(a, a), times=5)[0]
