"""Arithmetic of training: a shape and the lengths of examples -> floating-point operations; and what devices can do and read at most.

Convention of every MFU (model FLOPs utilisation, arXiv 2204.02311, appendix B) in this project: 6 operations per token and weight of a
matrix product (4 where it is frozen), the output layer included and the embedding's look-up not, and attention counted over the pairs
that the causal mask keeps, within each example. What is recomputed, or computed for padding, does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s1jax.model_config import ModelConfig

# Dense bfloat16 operations per second by the start of `jax.Device.device_kind`, the longest that fits; from the makers' data sheets.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
}
# Bytes per second that devices read of their memory, likewise.
PEAK_BANDWIDTH = {
    "NVIDIA A100": 2039e9,
    "NVIDIA H100 PCIe": 2000e9,
    "NVIDIA H100": 3350e9,
    "NVIDIA H200": 4800e9,
    "NVIDIA B200": 8000e9,
    "TPU v4": 1228e9,
    "TPU v5 lite": 819e9,
    "TPU v5": 2765e9,
    "TPU v6 lite": 1640e9,
    "TPU7x": 7380e9,
}


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


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return the most operations per second of one device; None where it is not known (other devices, and float32)."""
    return _of_kind(PEAK_FLOPS, device_kind) if dtype == "bfloat16" else None


def peak_bandwidth(device_kind: str) -> float | None:
    """Return the most bytes per second that one device reads of its memory; None where it is not known."""
    return _of_kind(PEAK_BANDWIDTH, device_kind)


def _of_kind(table: dict[str, float], device_kind: str) -> float | None:
    kinds = [kind for kind in table if device_kind.startswith(kind)]
    return table[max(kinds, key=len)] if kinds else None
