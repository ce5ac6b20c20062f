"""Prefill: prompts -> their key/value caches and last hidden states, in pieces of few shapes."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from s1jax.decode.loaded import LoadedModel
from s1jax.model.cache import KVCache, init_cache, pin, resize
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params, graphdef
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.sharding import ShardingRules

PREFILL_TOKENS = 512
"""Tokens per prompt that one call of `prefill` reads at most."""
PREFILL_SIZES = (64, 8, 1)
"""Numbers of prompts that are prefilled together."""
MAX_PREFILL_SLOTS = 2**15
"""Slots of all prompts that are prefilled together: with the `xla` backend each token's scores span its prompt's slots."""
SMALLEST_PROMPT = 16


class Prompts(NamedTuple):
    """P prefilled prompts, each for B / P consecutive sequences."""

    cache: KVCache
    hidden: Float[Array, "P D"]
    """Final hidden state of each prompt's last token."""


@functools.partial(jax.jit, static_argnames=("config", "rules", "num_prompts", "capacity"))
def empty_prompts(*, config: ModelConfig, rules: ShardingRules, num_prompts: int, capacity: int) -> Prompts:
    """Return room for prompts of at most `capacity` tokens."""
    hidden = jnp.zeros((num_prompts, config.embed_dim), config.dtype)
    return pin(Prompts(init_cache(config, num_prompts, capacity, rules), hidden), rules)


@functools.partial(jax.jit, static_argnames=("config", "rules", "attention"), donate_argnames="prompts")
def prefill(
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "P T"],
    lengths: Int[Array, " P"],
    *,
    config: ModelConfig,
    rules: ShardingRules,
    attention: CacheBackend | None = None,
) -> Prompts:
    """Return the prompts with their next T tokens read. `tokens` are right-padded; `lengths` are whole prompts. `prompts` is donated."""
    P, T = tokens.shape
    model = nnx.merge(graphdef(config, rules, "per_layer"), params)
    begin = prompts.cache.num_written
    positions = jnp.broadcast_to(begin + jnp.arange(T, dtype=jnp.int32), (P, T))
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    hidden, cache = model(tokens, positions, segment_ids, prompts.cache, attention=attention)
    last = (lengths - 1 - begin)[:, None].clip(0, T - 1)
    is_here = (lengths > begin) & (lengths <= begin + T)
    hidden = jnp.where(is_here[:, None], jnp.take_along_axis(hidden, last[:, :, None], axis=1)[:, 0], prompts.hidden)
    return pin(Prompts(cache, hidden), rules)


def prefill_prompts(model: LoadedModel, prompts: Sequence[Sequence[int]], num_prompts: int, capacity: int) -> Prompts:
    """Read at most `num_prompts` prompts of at most `capacity` tokens. Each place that is left over holds one padding token."""
    tokens, lengths = np.zeros((num_prompts, capacity), np.int32), np.ones(num_prompts, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)], lengths[i] = prompt, len(prompt)
    read = empty_prompts(**model.static, num_prompts=num_prompts, capacity=capacity)
    end = prompt_bucket(int(lengths.max()))
    for begin in range(0, end, PREFILL_TOKENS):
        chunk = tokens[:, begin : min(begin + PREFILL_TOKENS, end)]
        read = prefill(model.params, read, chunk, lengths, **model.static, attention=model.attention)
    return read


@functools.partial(jax.jit, static_argnames="rules", donate_argnames="prompts")
def put_prompts(prompts: Prompts, new: Prompts, places: Int[Array, " M"], *, rules: ShardingRules) -> Prompts:
    """Return `prompts` with the M new ones at these places. A place past the end drops its prompt. `prompts` is donated."""

    def put(held: jax.Array, added: jax.Array) -> jax.Array:
        return held.at[places].set(added, mode="drop") if held.ndim else held

    return pin(jax.tree.map(put, prompts, new), rules)


def grow_prompts(prompts: Prompts, capacity: int, rules: ShardingRules) -> Prompts:
    """Return the prompts with `capacity` slots each. The old caches are given up."""
    cache = resize(prompts.cache, capacity, rules)
    # A buffer of prompts counts no written slots (`put_prompts`), so growing never moves the slots that are held.
    return prompts._replace(cache=cache._replace(num_written=prompts.cache.num_written))


@functools.partial(jax.jit, static_argnames="rules")
def take_rows(tree: Any, rows: Int[Array, " M"], rules: ShardingRules) -> Any:
    """Return copies of these rows of all arrays that have rows."""
    return pin(jax.tree.map(lambda x: jnp.take(x, rows, axis=0) if x.ndim else x, tree), rules)


def prompt_bucket(length: int) -> int:
    """Return the slots that a prompt of this many tokens is rounded up to: 16, 32, 48, 64, 96, 128, 192..."""
    return round_up_finely(length, SMALLEST_PROMPT)


def prefill_batches(items: list[Any], capacity: int) -> Iterator[tuple[list[Any], int]]:
    """Yield the items that are prefilled in one call, and for how many prompts: at least as many, and of few different numbers."""
    fits = [size for size in PREFILL_SIZES if size == 1 or size * capacity <= MAX_PREFILL_SLOTS]
    while items:
        size = next(size for size in fits if len(items) > size // 2)
        yield items[:size], size
        items = items[size:]


def power_of_two(n: int) -> int:
    """Return the power of two at or above `n`."""
    return 1 << (n - 1).bit_length()


def round_up(n: int, smallest: int) -> int:
    """Return the smallest number at or above `n` that is `smallest` times a power of two."""
    return smallest * power_of_two(-(-n // smallest))


def round_up_finely(n: int, smallest: int) -> int:
    """Return the smallest number at or above `n` that is `smallest` times a power of two or times 3, 6, 12..."""
    n = -(-n // smallest)
    return smallest * min(power_of_two(n), 3 * power_of_two(-(-n // 3)))
