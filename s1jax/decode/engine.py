"""The engine: decodes requests with one model. Requests may arrive and be cancelled while others decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from s1jax.decode.loaded import LoadedModel
from s1jax.decode.loop import MAX_STEPS
from s1jax.decode.request import Completion, Request
from s1jax.decode.scheduler import Results, Scheduler
from s1jax.decode.score import Pair, score_all
from s1jax.runtime.errors import UserError


class Engine:
    """A model, and rows in which its requests decode together. `scheduler.py` says which request gets a row when.

    With several processes, all must make the same calls in the same order.
    """

    def __init__(self, model: LoadedModel, num_rows: int = 8, scores: bool = False):
        """Take `num_rows` rows, rounded up to an even share for each device. With `scores` completions hold log-probabilities."""
        if num_rows < 1:
            raise UserError(f"num_rows is {num_rows}; it must be at least 1")
        self.model = model
        self.scheduler = Scheduler(model, num_rows, scores)

    @property
    def num_unfinished(self) -> int:
        """Number of submitted requests that are neither finished nor cancelled."""
        return len(self.scheduler.jobs)

    def check(self, request: Request) -> None:
        """Raise UserError unless the request fits the model."""
        self.model.check(request)

    def submit(self, request: Request) -> int:
        """Queue a request and return its ticket. Tickets count from 0. Raises UserError if the request does not fit the model."""
        self.check(request)
        return self.scheduler.submit(request)

    def step(self, max_steps: int = MAX_STEPS) -> list[Results]:
        """Decode for at most `max_steps` tokens per row, and return (ticket, completions) of each request that finished.

        There is one completion per point of the request, or one of its whole trace if it has no points. Forked answers are decoded in
        addition to `max_steps`. If nothing is unfinished, this returns an empty list.
        """
        if max_steps < 1:
            raise UserError(f"max_steps is {max_steps}; it must be at least 1")
        # The mesh is not left set while the caller works.
        with jax.set_mesh(self.model.mesh):
            return self.scheduler.step(min(max_steps, MAX_STEPS))

    def cancel(self, ticket: int) -> None:
        """Drop an unfinished request, so that its row is free. Raises UserError for any other ticket."""
        self.scheduler.cancel(ticket)

    def progress(self) -> dict[int, Completion]:
        """Return what unfinished requests have emitted so far, by ticket. Requests that wait for a row are left out."""
        return self.scheduler.progress()

    def stream(
        self,
        requests: Sequence[Request],
        num_rows: int | None = None,
        scores: bool = False,
        max_steps: int = MAX_STEPS,
    ) -> Iterator[Results]:
        """Decode the requests in rows of their own; yield (index, completions) of each as it finishes.

        `num_rows` rows decode together, and never more than there are requests. If it is None, there is one for each request.
        Raises UserError before anything is decoded if a request does not fit the model.
        """
        if num_rows is not None and num_rows < 1:
            raise UserError(f"num_rows is {num_rows}; it must be at least 1")
        if not requests:
            return
        engine = Engine(self.model, min(num_rows or len(requests), len(requests)), scores)
        for request in requests:
            engine.submit(request)  # whose tickets are the indices
        while engine.num_unfinished:
            yield from engine.step(max_steps)

    def decode(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        """Decode requests without points; return their completions in order. The options are those of `stream`."""
        completions = dict(self.stream(requests, **options))
        return [completions[i][0] for i in range(len(requests))]

    def score(self, prompt: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
        """Return the log-probability [n] of each of the n ids of a continuation; see `score_all`."""
        return self.score_all([(prompt, continuation)])[0]

    def score_all(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Return the float32 log-probabilities [n] of each (prompt, continuation of n ids) under the model; see `score.py`."""
        with jax.set_mesh(self.model.mesh):
            return score_all(self.model, pairs)
