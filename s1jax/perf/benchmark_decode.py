"""Measurements: an engine and a workload -> figures, which `launch/benchmark.py` prints.

Speeds are of whole calls, prefill included, after every compilation. What a step must read is counted: each weight once, and the
keys and values of the rows' tokens. `bandwidth_fraction` holds it against what a plain sum reads on this machine in the same run.

Nothing here needs more than jax, flax and numpy (and qwix for 8 bits).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.data.chat import MADE_UP_DELIMITERS
from s1jax.data.condition import Condition, Limits
from s1jax.decode.engine import Engine
from s1jax.decode.loaded import place_model
from s1jax.decode.request import Completion, Request
from s1jax.model.config import ModelConfig, qwen2_5
from s1jax.model.qwen2 import init_params
from s1jax.model.storage import store_in_int8
from s1jax.ops.attention import CacheBackend, check_cache_backend, default_backend
from s1jax.runtime.errors import UserError
from s1jax.runtime.hardware import platform
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh

Figures = dict[str, Any]


def figures(args: Any) -> Iterator[Figures]:
    """Yield what the command line of `launch/benchmark.py decode` or `sweep` asks for."""
    check_cache_backend(args.attention)
    for name, least in dict(batch=1, tokens=2, prompt=1, problems=1, budgets=1, waits=1, answer=1, tensor=1).items():
        if np.min(getattr(args, name), initial=least) < least:
            raise UserError(f"{name} is {getattr(args, name)}: it must be at least {least}")
    if args.limit is not None and args.limit < args.tokens:
        raise UserError(f"limit is {args.limit}: it must be at least the {args.tokens} tokens that are measured")
    mesh = MeshConfig(data=-1, fsdp=1, tensor=args.tensor)
    num_prompts = max(args.batch) if args.what == "decode" else args.problems
    if args.model:
        from s1jax.data.chat import encode_prompt, encode_text
        from s1jax.decode.load import load_engine

        engine, tokenizer = load_engine(args.model, args.dtype, mesh, int8=tuple(args.int8), attention=args.attention)
        questions = [f"What is {i + 12} times 17? Explain every step." for i in range(num_prompts)]
        prompts = [tuple(encode_prompt(tokenizer, question)) for question in questions]
        wait = tuple(encode_text(tokenizer, "Wait"))
    else:
        config = dataclasses.replace(qwen2_5(args.size, args.dtype), int8=tuple(args.int8))
        engine, wait = random_engine(config, mesh, args.attention), (7,)
        prompts = random_prompts(engine, num_prompts, args.prompt)
    if args.what == "decode":
        yield from decode_figures(engine, prompts, args.batch, args.tokens, args.limit)
        return
    points = [Limits(budget, budget) for budget in args.budgets]
    points += [Limits(max(args.budgets), num_ignore=ignores) for ignores in args.waits]
    yield sweep_figures(engine, prompts, points, wait, args.answer)


def random_engine(config: ModelConfig, mesh: MeshConfig, attention: CacheBackend | None = None) -> Engine:
    """Return an engine with random weights, stored as the config says, and made-up delimiters."""
    rules, devices = ShardingRules(), make_mesh(mesh)
    with jax.set_mesh(devices):
        floats = dataclasses.replace(config, int8=())
        params = init_params(floats, rules, "per_layer", devices, seed=0, dtype=config.dtype)
        config, params = store_in_int8(floats, params, config.int8)
    newline = np.arange(config.vocab_size) == 4
    return Engine(place_model(config, params, rules, devices, MADE_UP_DELIMITERS, newline, attention))


def random_prompts(engine: Engine, num: int, length: int) -> list[tuple[int, ...]]:
    """Return prompts of random ids."""
    ids = np.random.default_rng(0).integers(8, min(engine.model.config.vocab_size, 10_000), (num, length))
    return [tuple(row) for row in ids.tolist()]


def decode_figures(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    batch_sizes: Sequence[int],
    num_tokens: int,
    limit: int | None = None,
) -> Iterator[Figures]:
    """Yield the speed of decoding `num_tokens` of thinking for each batch size, and of its steps alone.

    With a `limit` rows might think for so many tokens, and are left after `num_tokens`. Times are the fastest of three; a step's is the
    difference between the whole and its first half, or with a limit all but its last 64 tokens. There must be as many prompts as the
    largest batch has rows, and at least 2 tokens.
    """
    earlier = num_tokens // 2 if limit is None else max(num_tokens // 2, num_tokens - 64)
    for batch in batch_sizes:

        def decode(count: int) -> list[Completion]:
            requests = [_request(prompt, i, limit or count) for i, prompt in enumerate(prompts[:batch])]  # noqa: B023
            return _first_tokens(engine, requests, count) if limit else engine.decode(requests)

        first, _ = _seconds(lambda: decode(num_tokens))
        decode(earlier)
        earlier_s, _ = _fastest(lambda: decode(earlier))
        whole_s, completions = _fastest(lambda: decode(num_tokens))
        step_s = (whole_s - earlier_s) / (num_tokens - earlier)
        bandwidth = read_bandwidth()
        cached = sum(len(prompt) + (num_tokens + earlier) // 2 for prompt in prompts[:batch])
        num_bytes = step_bytes(engine, cached)
        yield dict(
            batch=batch,
            dtype=engine.model.config.dtype,
            int8=engine.model.config.int8,
            attention=backend_of(engine),
            tokens_per_s=round(sum(len(c.tokens) for c in completions) / whole_s, 1),
            # So few tokens that the difference is noise have no step time.
            step_ms=round(1e3 * step_s, 3) if step_s > 0 else None,
            gb_per_step=round(num_bytes / 1e9, 3),
            bandwidth_gb_per_s=round(bandwidth / 1e9, 1),
            bandwidth_fraction=round(num_bytes / step_s / bandwidth, 3) if step_s > 0 else None,
            compile_s=round(first - whole_s, 1),
        )


def sweep_figures(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    points: Sequence[Limits],
    ignore_ids: tuple[int, ...],
    answer_tokens: int,
) -> Figures:
    """Return what a curve costs in one pass, what its largest point does, and its points one at a time; and whether they agree."""
    if not (prompts and points):
        raise UserError("a curve needs at least one problem and one point")
    largest = Limits(*(max(values) for values in zip(*points, strict=True)))
    requests = [
        Request(prompt, Condition(*largest, max_answer_tokens=answer_tokens), ignore_ids, problem=i)
        for i, prompt in enumerate(prompts)
    ]

    def curve() -> list[tuple[Completion, ...]]:
        forked = [dataclasses.replace(request, points=tuple(points)) for request in requests]
        return [completions for _, completions in sorted(engine.stream(forked))]

    def one_at_a_time() -> list[tuple[Completion, ...]]:
        singles = [engine.decode([at_point(request, point) for request in requests]) for point in points]
        return list(zip(*singles, strict=True))

    for warm_up in (curve, one_at_a_time):
        warm_up()
    largest_s, _ = _seconds(lambda: engine.decode(requests))
    curve_s, forked = _seconds(curve)
    one_at_a_time_s, single = _seconds(one_at_a_time)
    return dict(
        points=len(points),
        problems=len(prompts),
        answer_tokens=answer_tokens,
        dtype=engine.model.config.dtype,
        int8=engine.model.config.int8,
        attention=backend_of(engine),
        curve_s=round(curve_s, 2),
        largest_point_s=round(largest_s, 2),
        one_at_a_time_s=round(one_at_a_time_s, 2),
        curve_over_largest=round(curve_s / largest_s, 3),
        one_at_a_time_over_curve=round(one_at_a_time_s / curve_s, 2),
        identical=forked == single,
    )


def at_point(request: Request, point: Limits) -> Request:
    """Return the request with these limits."""
    return dataclasses.replace(request, condition=dataclasses.replace(request.condition, **point._asdict()))


def _first_tokens(engine: Engine, requests: Sequence[Request], num_tokens: int) -> list[Completion]:
    """Decode all requests together for `num_tokens` steps, and leave them; return what they have emitted."""
    rows = Engine(engine.model, len(requests))
    tickets = [rows.submit(request) for request in requests]
    emitted: list[Completion] = []
    while not emitted or any(len(completion.tokens) < num_tokens for completion in emitted):
        rows.step(math.gcd(num_tokens, 64))
        emitted = [rows.progress()[ticket] for ticket in tickets]
    return emitted


def backend_of(engine: Engine) -> str:
    """Return what computes attention over caches."""
    return engine.model.attention or default_backend(platform(), over_itself=False)


def step_bytes(engine: Engine, num_cached: int) -> int:
    """Return the bytes a decode step reads at least: each device's weights, and the keys and values of all rows' tokens together."""
    config = engine.model.config
    weights = dict(engine.model.params)
    if not config.tie_word_embeddings:
        weights.pop("embed_tokens")  # of which only the rows of the batch are read
    # In int8, with a float32 scale for each head.
    per_head = config.head_dim + 4 if "cache" in config.int8 else config.head_dim * jnp.dtype(config.dtype).itemsize
    per_token = 2 * config.num_layers * config.num_kv_heads * per_head
    shards = [shard for x in jax.tree.leaves(weights) for shard in x.addressable_shards]
    return sum(shard.data.nbytes for shard in shards) + num_cached * per_token


def read_bandwidth(num_bytes: int = 2**30) -> float:
    """Return the bytes per second that all devices of this process read in a plain sum, the best of five."""
    if jax.default_backend() == "cpu":
        # One thread per core, each over its own part: what the cores can read together.
        parts = np.array_split(np.ones(num_bytes // 4, np.float32), os.cpu_count() or 1)
        with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
            return num_bytes / min(_seconds(lambda: list(pool.map(np.sum, parts)))[0] for _ in range(5))
    # Many one after another, so that starting them and hearing of the last is little of the time.
    arrays = [jax.device_put(jnp.ones(num_bytes // 4, jnp.float32), device) for device in jax.local_devices()] * 16
    total = jax.jit(jnp.sum)
    jax.block_until_ready([total(array) for array in arrays])
    best = min(_seconds(lambda: jax.block_until_ready([total(array) for array in arrays]))[0] for _ in range(5))
    return num_bytes * len(arrays) / best


def _request(prompt: tuple[int, ...], problem: int, num_tokens: int) -> Request:
    """Return a request for exactly `num_tokens` of thinking."""
    return Request(prompt, Condition(num_tokens, num_tokens, max_answer_tokens=1), problem=problem)


def _fastest(call: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Return how long the fastest of some calls took, and its result."""
    return min((_seconds(call) for _ in range(times)), key=lambda timed: timed[0])


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call took, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result
