"""Inputs of attention: packed rows, random queries, keys and values, and the result by all scores at once."""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from s1jax.model.config import ModelConfig
from s1jax.ops.attention import attention_over_caches, self_attention
from s1jax.ops.keys_values import KeysValues
from s1jax.runtime.sharding import ShardingRules

B, T, S, N, K, H = 2, 7, 9, 6, 2, 8
RULES = ShardingRules()


def rows(*segments_of_rows: list[int], length: int | None = None):
    """Positions and segment ids [B, T] of rows with segments of these lengths, padding behind them."""
    T = length or max(sum(lengths) for lengths in segments_of_rows)
    positions, segment_ids = np.zeros((2, len(segments_of_rows), T), np.int32)
    for row, lengths in enumerate(segments_of_rows):
        together = sum(lengths)
        positions[row, :together] = np.concatenate([np.arange(n) for n in [0, *lengths]])
        segment_ids[row, :together] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return jnp.asarray(positions), jnp.asarray(segment_ids)


def random_inputs(positions, heads=(6, 2), head_dim=16):
    """q, k, v and a gradient of the output."""
    (B, T), (N, K), H = positions.shape, heads, head_dim
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (B, T, N, H), (B, K, H, T), (B, K, T, H), (B, T, N, H)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def over_itself(q, k, v, positions, segment_ids, backend=None):
    return self_attention(q, k, v, positions, segment_ids, backend=backend, rules=RULES)


def over_caches(
    q, k, v, q_positions, kv_positions, q_segment_ids, kv_segment_ids, prefixes=(), prefix_end=None, **options
):
    inputs = (q, q_positions, q_segment_ids, KeysValues(k, v, kv_positions, kv_segment_ids), prefixes, prefix_end)
    return attention_over_caches(*jax.tree.map(jnp.asarray, inputs), **options)


def of_all_scores(q, k, v, positions, segment_ids):
    return over_caches(q, k, v, positions, positions, segment_ids, segment_ids, backend="xla")


def random_qkv(seed: int = 0, dtype="float32", scale: float = 1.0, sizes=(B, T, S, N, K, H)):
    b, t, s, n, k, h = sizes
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (b, t, n, h), (b, k, h, s), (b, k, s, h)
    return [(scale * jax.random.normal(key, shape)).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def random_mask_inputs(seed: int = 0):
    """Positions in no order and up to two segments and padding on both sides."""
    rng = np.random.default_rng(seed)
    draw = lambda high, shape: jnp.asarray(rng.integers(0, high, shape), jnp.int32)  # noqa: E731
    return draw(12, (B, T)), draw(12, (B, S)), draw(3, (B, T)), draw(3, (B, S))


CONFIG = ModelConfig(
    vocab_size=64, embed_dim=32, mlp_dim=48, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip
