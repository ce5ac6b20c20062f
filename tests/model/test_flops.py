"""The arithmetic that MFU is counted by."""

import dataclasses

import jax
import numpy as np
import pytest

from s1jax.model.config import SIZES, LoraConfig, config_of_size
from s1jax.model.flops import num_matrix_weights, train_flops
from s1jax.model.qwen2 import abstract_params
from s1jax.runtime.hardware import peak_flops
from s1jax.runtime.sharding import MeshConfig, make_mesh
from tests.support.training import CONFIG, RULES


@pytest.mark.parametrize("size", SIZES)
def test_every_matrix_of_the_model_counts_once_and_the_embedding_as_the_output_layer_only(size):
    config = config_of_size(size)
    params = abstract_params(config, RULES, "stacked", make_mesh(MeshConfig(), jax.devices()[:1]))
    kernels = jax.tree_util.tree_map_with_path(
        lambda path, x: x.size if path[-1].key == "kernel" and path[0].key != "lm_head" else 0, params
    )
    assert num_matrix_weights(config) == sum(jax.tree.leaves(kernels)) + config.vocab_size * config.embed_dim


def test_attention_counts_the_pairs_within_each_example():
    lengths = [5, 9]
    pairs = sum(int(np.tril(np.ones((n, n))).sum()) for n in lengths)
    products = 6 * num_matrix_weights(CONFIG) * 14
    # Forward: a score and a weighted value of each pair and head, H multiplications and additions each; twice that backward.
    attention = 3 * pairs * CONFIG.num_layers * CONFIG.num_heads * 2 * (2 * CONFIG.head_dim)
    assert train_flops(CONFIG, lengths) == products + attention


def test_frozen_weights_have_no_gradient_of_their_own():
    adapted = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4))
    assert train_flops(CONFIG, [5, 9]) - train_flops(adapted, [5, 9]) == 2 * num_matrix_weights(CONFIG) * 14


def test_peaks_are_of_the_card_that_is_named_most_closely():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12 and peak_flops("TPU v5p", "bfloat16") == 459e12
    assert peak_flops("cpu", "bfloat16") is None and peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
