"""The engine: a model on a mesh that decodes requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from s1jax.data.chat import Delimiters
from s1jax.decode.loop import MOST_STEPS, make_vocabulary
from s1jax.decode.request import Completion, Request
from s1jax.decode.scheduler import Results, Run
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import ShardingRules


class Decoder:
    """A model ready to decode requests; parameters in the per-layer layout. It runs on `mesh`.

    `attention` is the backend over caches, by default the platform's.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        rules: ShardingRules,
        mesh: jax.sharding.Mesh,
        delimiters: Delimiters,
        ends_in_newline: np.ndarray,
        attention: CacheBackend | None = None,
    ):
        self.config, self.params, self.rules, self.mesh, self.attention = config, params, rules, mesh, attention
        self.vocabulary, self.allowed = make_vocabulary(delimiters, ends_in_newline, config.vocab_size)
        self.longest_delimiter = len(delimiters.newline) + max(len(delimiters.final_answer), len(delimiters.answer))

    def check(self, request: Request) -> None:
        """Raise UserError unless the request's prompt and limits fit the model's context."""
        total, condition = len(request.prompt) + self.num_new_tokens(request), request.condition
        if (over := total - self.config.context_length) > 0:
            can_lower = over < condition.max_thinking_tokens + condition.max_answer_tokens
            raise UserError(
                f"a prompt of {len(request.prompt)} tokens, {condition.max_thinking_tokens} of thinking, "
                f"{condition.max_answer_tokens} of answer and {self.longest_delimiter + 1} between and after them need {total} positions; "
                f"the model has {self.config.context_length}, its context length: "
                + (f"lower max_thinking_tokens or max_answer_tokens, by {over} together, or " if can_lower else "")
                + "shorten the prompt"
            )

    def num_new_tokens(self, request: Request) -> int:
        """Return the most tokens this request can emit."""
        return request.condition.max_thinking_tokens + self.longest_delimiter + request.condition.max_answer_tokens + 1

    def stream(
        self,
        requests: Sequence[Request],
        num_rows: int | None = None,
        scores: bool = False,
        steps_per_call: int = MOST_STEPS,
        on_progress: Callable[[dict[int, Completion]], None] | None = None,
    ) -> Iterator[Results]:
        """Decode the requests and yield the index and the completions of each as it finishes.

        There is one completion for each of a request's points, or one of its whole trace where it has none. `num_rows` (default, and most:
        one for each request) decode together. With `scores` completions hold log-probabilities. `on_progress` is given what the traces
        at work have emitted so far, by index, every `steps_per_call` steps. Raises UserError for a request that does not fit the model.
        """
        if num_rows is not None and num_rows < 1:
            raise UserError(f"num_rows is {num_rows}; it must be at least 1")
        for request in requests:
            self.check(request)
        if requests:
            # So many more as keep the rows evenly split over devices.
            split = math.prod(self.mesh.shape[axis] for axis in self.rules.batch)
            run = Run(self, requests, min(num_rows or len(requests), len(requests)), split, scores)
            while run.unfinished:
                # The mesh is not left set while the caller works.
                with jax.set_mesh(self.mesh):
                    results = run.round(min(steps_per_call, MOST_STEPS))
                if on_progress is not None:
                    on_progress(run.progress())
                yield from results

    def decode(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        """Decode requests without points; return their completions in order. The options are those of `stream`."""
        completions = dict(self.stream(requests, **options))
        return [completions[i][0] for i in range(len(requests))]
