"""The floating-point operations of training, from a model's shape and the lengths of examples.

All figures of MFU (model FLOPs utilisation, arXiv 2204.02311, appendix B) in this project use this convention. A token costs 6 operations
per weight of a matrix product, or 4 if the weight is frozen. The output layer counts, the embedding's look-up does not. Attention counts
the query-key pairs that the causal mask keeps within each example. Recomputation and padding do not count.
"""

from collections.abc import Sequence

import numpy as np

from s1jax.model.config import ModelConfig


def num_matrix_weights(config: ModelConfig) -> int:
    """Return the number of weights in the matrix products that each token passes through."""
    attention = config.embed_dim * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    layer = attention + 3 * config.embed_dim * config.mlp_dim
    return config.num_layers * layer + config.vocab_size * config.embed_dim


def train_flops(config: ModelConfig, lengths: Sequence[int] | np.ndarray) -> float:
    """Return the operations of a forward and backward pass over examples of these lengths in tokens, by the module's convention."""
    n = np.asarray(lengths, np.float64)
    pairs = (n * (n + 1) / 2).sum()
    # Scores and weighted values take 2 products of H multiply-adds per pair and head. The backward pass takes twice as many.
    attention = 3 * 2 * 2 * config.num_layers * config.num_heads * config.head_dim * pairs
    per_weight = 6 if config.lora is None else 4  # frozen weights have no gradient
    return float(per_weight * num_matrix_weights(config) * n.sum() + attention)
