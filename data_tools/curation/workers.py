"""Worker processes for the stages of curation: a function and the parts of a pool -> the results, in order.

On one machine the processes are Python's own. Over several machines they are tasks of Ray Data, which brings its own scheduler: the
machines form a Ray cluster and share the folder of the results. No result depends on which of them is used, or on how many there are.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal, TypeVar

from s1jax.runtime.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
Executor = Literal["processes", "ray"]


class Workers:
    """Context manager that calls functions in other processes. They start with the first call."""

    def __init__(self, executor: Executor = "processes", num_processes: int | None = None):
        """`num_processes` is the number of processes on this machine; default: one per core. Ray uses its whole cluster."""
        self.executor = executor
        self.num_processes = num_processes or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Yield `function(item)` for each item, in order. Function, items and results must be picklable."""
        if self.executor == "ray":
            yield from _map_with_ray(function, items, self.num_processes)
        elif self.num_processes == 1:
            yield from map(function, items)
        else:
            if self._pool is None:
                # JAX runs threads, so a forked process could hang.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self.num_processes, context, _end_with_parent, (os.getpid(),))
            yield from self._pool.map(function, items)


def _end_with_parent(parent: int) -> None:
    """Let this process end when its parent is killed. Otherwise it would wait for work for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it was killed before
            os.kill(os.getpid(), signal.SIGKILL)


def _map_with_ray(function: Callable[[T], R], items: Sequence[T], num_processes: int) -> Iterator[R]:
    try:
        import ray
    except ImportError:
        raise UserError('the executor ray needs Ray: pip install -e ".[ray]"') from None
    if not ray.is_initialized():
        # With RAY_ADDRESS, Ray joins that cluster, and otherwise starts one on this machine.
        here: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_processes}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # Ray starts programs, which JAX does not mind
            ray.init(log_to_driver=False, logging_level=logging.WARNING, **here)
    logging.getLogger("ray").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    shared = ray.put(list(items))

    def call(task: dict[str, Any]) -> dict[str, Any]:
        return {"id": task["id"], "result": pickle.dumps(function(ray.get(shared)[task["id"]]))}

    done = ray.data.range(len(items), override_num_blocks=len(items)).map(call).take_all()
    yield from (pickle.loads(task["result"]) for task in sorted(done, key=lambda task: task["id"]))
