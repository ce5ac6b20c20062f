"""Benchmarks of decoding: an engine and a workload -> speed, as `launch/benchmark.py decode` and `sweep` print it.

Speeds are those of whole calls, with prefill and without compilation. A decode step reads every weight once, and the keys and values of all
tokens in the cache. `bandwidth_fraction` is the rate of these reads, relative to the rate at which a plain sum reads memory on the same
machine in the same run.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.checkpoint.source import resolve_source
from s1jax.data.chat import MADE_UP_DELIMITERS, MADE_UP_TOKENS, made_up_texts
from s1jax.data.condition import Condition, Limits
from s1jax.decode.engine import Engine, load_engine
from s1jax.decode.loaded import LoadedModel, make_vocabulary
from s1jax.decode.request import Completion, Request
from s1jax.model.config import ModelConfig, config_of_size
from s1jax.model.qwen2 import init_params
from s1jax.model.storage import quantize_matrices
from s1jax.ops.attention import CacheBackend, check_cache_backend, default_cache_backend
from s1jax.perf.measure import read_bandwidth, timed
from s1jax.runtime.errors import UserError
from s1jax.runtime.hardware import platform
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh


def figures(args: Any) -> Iterator[dict[str, Any]]:
    """Yield the figures for the command line `launch/benchmark.py decode` or `sweep`, whose parsed arguments are `args`."""
    check_cache_backend(args.attention)
    for name, smallest in dict(batch=1, tokens=2, prompt=1, problems=1, budgets=1, waits=1, answer=1, tensor=1).items():
        if np.min(getattr(args, name), initial=smallest) < smallest:
            raise UserError(f"{name} is {getattr(args, name)}: it must be at least {smallest}")
    if args.limit is not None and args.limit < args.tokens:
        raise UserError(f"limit is {args.limit}: it must be at least {args.tokens}, the number of tokens")
    mesh = MeshConfig(data=-1, fsdp=1, tensor=args.tensor)
    num_prompts = max(args.batch) if args.what == "decode" else args.problems
    if args.model:
        source, int8 = resolve_source(args.model), tuple(args.int8)
        engine, chat = load_engine(source, args.dtype, mesh, int8=int8, attention=args.attention)
        questions = [f"What is {i + 12} times 17? Explain every step." for i in range(num_prompts)]
        prompts = [tuple(chat.encode_prompt(question)) for question in questions]
        wait, final = tuple(chat.encode_text("Wait")), tuple(chat.encode_final("Final Answer:"))
    else:
        config = dataclasses.replace(config_of_size(args.size, args.dtype), int8=tuple(args.int8))
        engine, wait, final = random_engine(config, mesh, args.attention), (7,), (1, 3, 4, 5)
        ids = np.random.default_rng(0).integers(8, min(config.vocab_size, 10_000), (num_prompts, args.prompt))
        prompts = [tuple(row) for row in ids.tolist()]
    if args.what == "decode":
        if args.record:
            yield from record_figures(engine, prompts, final, args.batch, args.tokens, args.record)
        else:
            yield from decode_figures(engine, prompts, final, args.batch, args.tokens, args.limit)
        return
    points = [Limits(budget, budget) for budget in args.budgets]
    points += [Limits(max(args.budgets), num_ignore=ignores) for ignores in args.waits]
    yield sweep_figures(engine, prompts, points, wait, final, args.answer)


def random_engine(config: ModelConfig, mesh: MeshConfig, attention: CacheBackend | None) -> Engine:
    """Return an engine with random weights, in the storage that the config asks for, and made-up delimiters."""
    rules, devices = ShardingRules(), make_mesh(mesh)
    with jax.set_mesh(devices):
        floats = dataclasses.replace(config, int8=())
        params = init_params(floats, rules, "per_layer", devices, seed=0, dtype=config.dtype)
        if "weights" in config.int8:
            params = quantize_matrices(params, "int8")
    tokens = made_up_texts(config.vocab_size), MADE_UP_TOKENS
    vocabulary = make_vocabulary(MADE_UP_DELIMITERS, *tokens, config.vocab_size)
    return Engine(LoadedModel(config, params, rules, devices, vocabulary, attention))


def decode_figures(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    final_ids: tuple[int, ...],
    batch_sizes: Sequence[int],
    num_tokens: int,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield, for each batch size, the speed of decoding `num_tokens` (at least 2) of thinking, and the time of a step.

    With a `limit`, rows may think for so many tokens, and are stopped after `num_tokens`. Times are the fastest of three. The time of a
    step is the difference between decoding all tokens and decoding the first half (with a `limit`: all except the last 64). There must be
    a prompt for each row of the largest batch.
    """
    earlier = num_tokens // 2 if limit is None else max(num_tokens // 2, num_tokens - 64)
    for batch in batch_sizes:

        def decode(count: int) -> list[Completion]:
            exactly = Condition(limit or count, limit or count, ignore_text="", max_answer_tokens=1)
            requests = [
                Request(prompt, exactly, (), final_ids, problem=i)
                for i, prompt in enumerate(prompts[:batch])  # noqa: B023
            ]
            return _first_tokens(engine, requests, count) if limit else engine.decode(requests)

        first, _ = timed(lambda: decode(num_tokens))
        decode(earlier)
        earlier_s, _ = timed(lambda: decode(earlier), times=3)
        whole_s, completions = timed(lambda: decode(num_tokens), times=3)
        step_s = (whole_s - earlier_s) / (num_tokens - earlier)
        bandwidth = read_bandwidth()
        cached = sum(len(prompt) + (num_tokens + earlier) // 2 for prompt in prompts[:batch])
        num_bytes = step_bytes(engine, cached)
        yield dict(
            batch=batch,
            **_of_engine(engine),
            tokens_per_s=round(sum(len(c.tokens) for c in completions) / whole_s, 1),
            # With very few tokens the difference is noise, and may be negative.
            step_ms=round(1e3 * step_s, 3) if step_s > 0 else None,
            gb_per_step=round(num_bytes / 1e9, 3),
            bandwidth_gb_per_s=round(bandwidth / 1e9, 1),
            bandwidth_fraction=round(num_bytes / step_s / bandwidth, 3) if step_s > 0 else None,
            compile_s=round(first - whole_s, 1),
        )


def record_figures(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    final_ids: tuple[int, ...],
    batch_sizes: Sequence[int],
    num_tokens: int,
    num_pairs: int,
) -> Iterator[dict[str, Any]]:
    """Yield, for each batch size, the speeds of decoding `num_tokens` of thinking without and with what token records hold.

    The two take turns, in pairs whose order alternates. `cost` is the median over the pairs of the share of time that is added, and
    `cost_interval` holds its quartiles. The speeds are medians, too.
    """
    for batch in batch_sizes:
        exactly = Condition(num_tokens, num_tokens, ignore_text="", max_answer_tokens=1)
        requests = [Request(prompt, exactly, (), final_ids, problem=i) for i, prompt in enumerate(prompts[:batch])]
        seconds: dict[bool, list[float]] = {False: [], True: []}
        found = [engine.decode(requests, scores=scores) for scores in seconds]  # compiles
        for pair in range(num_pairs):
            for scores in (False, True) if pair % 2 else (True, False):
                seconds[scores].append(timed(lambda: engine.decode(requests, scores=scores))[0])  # noqa: B023
        plain, recorded = np.array(seconds[False]), np.array(seconds[True])
        low, cost, high = np.quantile(recorded / plain - 1, (0.25, 0.5, 0.75))
        emitted = sum(len(completion.tokens) for completion in found[0])
        yield dict(
            batch=batch,
            **_of_engine(engine),
            pairs=num_pairs,
            tokens_per_s=round(emitted / float(np.median(plain)), 1),
            recorded_tokens_per_s=round(emitted / float(np.median(recorded)), 1),
            cost=round(float(cost), 4),
            cost_interval=(round(float(low), 4), round(float(high), 4)),
            identical=[c.tokens for c in found[0]] == [c.tokens for c in found[1]],
        )


def sweep_figures(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    points: Sequence[Limits],
    ignore_ids: tuple[int, ...],
    final_ids: tuple[int, ...],
    answer_tokens: int,
) -> dict[str, Any]:
    """Return the seconds of a curve from one pass, of its largest point alone, and of its points one at a time.

    `identical` says whether one pass gives the same tokens as the points one at a time.
    """
    largest = Limits(*(max(values) for values in zip(*points, strict=True)))
    whole = Condition(*largest, max_answer_tokens=answer_tokens)
    requests = [Request(prompt, whole, ignore_ids, final_ids, problem=i) for i, prompt in enumerate(prompts)]

    def curve() -> list[tuple[Completion, ...]]:
        forked = [dataclasses.replace(request, points=tuple(points)) for request in requests]
        return [completions for _, completions in sorted(engine.stream(forked))]

    def one_at_a_time() -> list[tuple[Completion, ...]]:
        conditions = [dataclasses.replace(whole, **point._asdict()) for point in points]
        singles = [
            engine.decode([dataclasses.replace(request, condition=condition) for request in requests])
            for condition in conditions
        ]
        return list(zip(*singles, strict=True))

    for warm_up in (curve, one_at_a_time):
        warm_up()
    largest_s, _ = timed(lambda: engine.decode(requests))
    curve_s, forked = timed(curve)
    one_at_a_time_s, single = timed(one_at_a_time)
    return dict(
        points=len(points),
        problems=len(prompts),
        answer_tokens=answer_tokens,
        **_of_engine(engine),
        curve_s=round(curve_s, 2),
        largest_point_s=round(largest_s, 2),
        one_at_a_time_s=round(one_at_a_time_s, 2),
        curve_over_largest=round(curve_s / largest_s, 3),
        one_at_a_time_over_curve=round(one_at_a_time_s / curve_s, 2),
        identical=forked == single,
    )


def _first_tokens(engine: Engine, requests: Sequence[Request], num_tokens: int) -> list[Completion]:
    """Decode all requests together for `num_tokens` steps, and return the tokens so far."""
    rows = Engine(engine.model, len(requests))
    tickets = [rows.submit(request) for request in requests]
    emitted: list[Completion] = []
    while not emitted or any(len(completion.tokens) < num_tokens for completion in emitted):
        rows.step(math.gcd(num_tokens, 64))
        emitted = [rows.progress()[ticket] for ticket in tickets]
    return emitted


def _of_engine(engine: Engine) -> dict[str, Any]:
    """Return the settings of an engine that its figures depend on."""
    config, attention = engine.model.config, engine.model.attention
    return dict(dtype=config.dtype, int8=config.int8, attention=attention or default_cache_backend(platform()))


def step_bytes(engine: Engine, num_cached: int) -> int:
    """Return the bytes that a decode step must read: the weights on each device, and the keys and values of `num_cached` tokens."""
    config = engine.model.config
    weights = dict(engine.model.params)
    if not config.tie_word_embeddings:
        weights.pop("embed_tokens")  # a step reads only a few rows of it
    # An int8 cache has a float32 scale per head and token.
    per_head = config.head_dim + 4 if "cache" in config.int8 else config.head_dim * jnp.dtype(config.dtype).itemsize
    per_token = 2 * config.num_layers * config.num_kv_heads * per_head
    shards = [shard for x in jax.tree.leaves(weights) for shard in x.addressable_shards]
    return sum(shard.data.nbytes for shard in shards) + num_cached * per_token
