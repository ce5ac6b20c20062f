"""Arithmetic of training: a shape and the lengths of examples -> floating-point operations; and what devices can do and read at most.

Convention of every MFU (model FLOPs utilisation, arXiv 2204.02311, appendix B) in this project: 6 operations per token and weight of a
matrix product (4 where it is frozen), the output layer included and the embedding's look-up not, and attention counted over the pairs
that the causal mask keeps, within each example. What is recomputed, or computed for padding, does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s1jax.model.config import ModelConfig


def num_matrix_weights(config: ModelConfig) -> int:
    """Return the number of weights that a token is multiplied with."""
    attention = config.embed_dim * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    layer = attention + 3 * config.embed_dim * config.mlp_dim
    return config.num_layers * layer + config.vocab_size * config.embed_dim


def train_flops(config: ModelConfig, lengths: Sequence[int] | np.ndarray) -> float:
    """Return the operations of a forward and backward pass over examples of these lengths, by the module's convention."""
    n = np.asarray(lengths, np.float64)
    pairs = (n * (n + 1) / 2).sum()
    # Scores and weighted values: 2 products of H for each pair and head, forward; twice that backward.
    attention = 3 * 2 * 2 * config.num_layers * config.num_heads * config.head_dim * pairs
    per_weight = 6 if config.lora is None else 4  # frozen weights have no gradient
    return float(per_weight * num_matrix_weights(config) * n.sum() + attention)
