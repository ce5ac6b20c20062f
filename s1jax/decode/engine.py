"""The engine: decodes requests with one model. Requests may arrive and be cancelled while others decode."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from s1jax.checkpoint.source import Source, load_model, load_tokenizer
from s1jax.data.chat import ChatFormat
from s1jax.decode.loaded import LoadedModel, make_vocabulary
from s1jax.decode.loop import MAX_STEPS
from s1jax.decode.rejection import Search
from s1jax.decode.request import Completion, Request
from s1jax.decode.scheduler import Results, Scheduler
from s1jax.decode.score import Pair, Scores, score_all
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.errors import UserError
from s1jax.runtime.precision import Int8
from s1jax.runtime.processes import is_first_process
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig, ShardingRules, make_mesh, share_out

logger = logging.getLogger(__name__)

_STEPS_PER_LOOK = 16
"""Tokens between two looks for traces that rejection sampling need not finish."""


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
        return len(self.scheduler.unfinished)

    def check(self, request: Request) -> None:
        """Raise UserError unless the request fits the model."""
        self.model.check(Search(request).next_try() if _is_search(request) else request)

    def submit(self, request: Request) -> int:
        """Queue a request and return its ticket. Tickets count from 0.

        Raises UserError if the request does not fit the model, and under rejection sampling, which `stream` does.
        """
        if _is_search(request):
            raise UserError("rejection_sampling draws several traces for a request: use `stream`")
        self.check(request)
        return self.scheduler.submit(request)

    def step(self, max_steps: int = MAX_STEPS) -> list[Results]:
        """Decode for at most `max_steps` tokens per row, and return (ticket, completions) of each request that finished.

        Forked answers are decoded in addition to `max_steps`. If no request is unfinished, the list is empty.
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
        """Return the tokens so far of each unfinished request that has a row, by ticket."""
        return self.scheduler.progress()

    def stream(
        self,
        requests: Sequence[Request],
        num_rows: int | None = None,
        scores: bool = False,
        show_tokens: Callable[[int, int], None] | None = None,
    ) -> Iterator[Results]:
        """Decode the requests in rows of their own; yield (index, completions) of each as it finishes.

        `num_rows` rows decode together (default: one for each request). With `scores` completions hold log-probabilities. `show_tokens`
        is called after each step with the number of tokens decoded so far, and with that of the longest sequence that still runs. Under
        rejection sampling a request has a completion per point (`rejection.py`). Raises UserError before anything is decoded if a request
        does not fit the model.
        """
        if not requests:
            return
        num_rows = len(requests) if num_rows is None else min(num_rows, len(requests))
        engine = Engine(self.model, num_rows, scores)
        indices: dict[int, int] = {}
        searches: dict[int, Search] = {}
        for index, request in enumerate(requests):
            search = Search(request) if _is_search(request) else None
            ticket = engine.submit(search.next_try() if search else request)
            indices[ticket] = index
            if search:
                searches[ticket] = search
        while engine.num_unfinished:
            results = engine.step(_STEPS_PER_LOOK if searches else MAX_STEPS)
            for log in engine.scheduler.running:
                if log.ticket in searches and searches[log.ticket].is_too_long(log.num_thinking):
                    engine.cancel(log.ticket)
                    results.append((log.ticket, (log.completion(),)))
            if show_tokens is not None:
                longest = max((len(log.tokens) for log in engine.scheduler.running), default=0)
                show_tokens(engine.scheduler.num_tokens, longest)
            for ticket, completions in results:
                index, search = indices.pop(ticket), searches.pop(ticket, None)
                if search is None:
                    yield index, completions
                elif search.take(completions[0]):
                    again = engine.scheduler.submit(search.next_try(), fits=True)
                    indices[again], searches[again] = index, search
                else:
                    yield index, search.completions()

    def decode(self, requests: Sequence[Request], **options: Any) -> list[Completion]:
        """Decode requests without points; return their completions in order. The options are those of `stream`."""
        if any(request.points for request in requests):
            raise UserError("a request with points has several completions: use `stream`")
        completions = dict(self.stream(requests, **options))
        return [completions[i][0] for i in range(len(requests))]

    def score(self, prompt: Sequence[int], continuation: Sequence[int]) -> Scores:
        """Return the log-probability of each id of a continuation, and whether it is the likeliest."""
        return self.score_all([(prompt, continuation)])[0]

    def score_all(self, pairs: Sequence[Pair]) -> list[Scores]:
        """Return the scores of each (prompt, continuation); see `score.py`."""
        with jax.set_mesh(self.model.mesh):
            return score_all(self.model, pairs)


def _is_search(request: Request) -> bool:
    return request.condition.method == "rejection_sampling"


def load_engine(
    source: Source,
    dtype: str = "bfloat16",
    mesh: MeshConfig = DECODING_MESH,
    rules: ShardingRules | None = None,
    int8: tuple[Int8, ...] = (),
    attention: CacheBackend | None = None,
    num_rows: int = 8,
    chat: ChatFormat | None = None,
) -> tuple[Engine, ChatFormat]:
    """Load a model onto a mesh. Return an engine that decodes with it, and the format that encodes its prompts.

    `chat` is that format if the caller has built it already. Otherwise it is the one that the model's tokenizer is made for.

    `dtype` is the dtype of weights and computation, `int8` says what is stored in 8 bits instead, and `attention` is the backend of
    attention over caches (None: the default of the hardware). In `mesh`, `data` and `tensor` may both be -1: `share_out` divides the
    devices. `num_rows` is the number of rows for `Engine.submit`; streams choose their own.
    Raises UserError if the tokenizer does not show how its model thinks, or does not belong to the model.
    """
    rules = rules or ShardingRules()
    num_kv_heads = source.model_config(dtype).num_kv_heads
    chat = chat or ChatFormat.of(load_tokenizer(source))
    devices = make_mesh(share_out(mesh, num_kv_heads, jax.device_count()))
    if num_kv_heads % (tensor := devices.shape["tensor"]) and is_first_process():
        logger.warning(
            "tensor %d does not divide the %d key/value heads of %s, so every device holds all caches. With tensor %d, and data for the "
            "other devices, the caches would be split",
            tensor, num_kv_heads, source.name, math.gcd(num_kv_heads, tensor),
        )  # fmt: skip
    config, params = load_model(
        source, devices, rules, "per_layer", dtype, dtype, store="int8" if "weights" in int8 else None
    )
    vocabulary = make_vocabulary(chat.delimiters, chat.token_texts, chat.added_tokens, config.vocab_size)
    to_text = functools.partial(chat.decode, skip_special_tokens=True)
    model = LoadedModel(dataclasses.replace(config, int8=int8), params, rules, devices, vocabulary, attention, to_text)
    return Engine(model, num_rows), chat
