"""`rope.py`: rotary embeddings equal Hugging Face's."""

from __future__ import annotations

import copy

import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.model.config import ModelConfig
from s1jax.ops.rope import apply_rope, rope_attention_factor, rope_frequencies, rotation_at
from tests.support.models import YARN, published, relative_error

torch = pytest.importorskip("torch")


transformers = pytest.importorskip("transformers")


DEFAULT = {"rope_type": "default", "rope_theta": 5e5}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": YARN},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {"rope_scaling": YARN | {"factor": 2.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25}},
        {"rope_parameters": YARN | {"rope_theta": 5e5}},
        # Both forms, and a field in both places.
        {"rope_parameters": DEFAULT, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_parameters": YARN | {"rope_theta": 5e5}, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": DEFAULT, "rope_scaling": {}, "rope_theta": 2e6},
        {"rope_parameters": YARN, "rope_scaling": None, "original_max_position_embeddings": 4096},
        {"rope_scaling": YARN, "rope_theta": 100, "original_max_position_embeddings": 10**9},
    ],
)
@pytest.mark.parametrize("size", ["Qwen2.5-0.5B", "Qwen2.5-7B"])
@torch.no_grad()
def test_rotary_embeddings_equal_hugging_faces(size, changes):
    hf_config = published(size, max_position_embeddings=65536) | copy.deepcopy(changes)
    config = ModelConfig.from_hf(hf_config)
    rotary = transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding(
        transformers.Qwen2Config.from_dict(hf_config)
    )
    frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.yarn)
    attention_factor = rope_attention_factor(config.yarn)
    np.testing.assert_allclose(frequencies, rotary.inv_freq.numpy(), rtol=3e-7)
    assert attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-12)
    # Far out, a float32 angle is only as good as its rounding: 32767 radians are exact to 2e-3.
    for positions, tolerance in ((np.arange(64), 2e-5), (np.arange(32000, 32064), 4e-3)):
        x = np.random.default_rng(0).standard_normal((1, 64, 2, config.head_dim)).astype(np.float32)
        tx = torch.from_numpy(x).swapaxes(1, 2)
        cos, sin = rotary(tx, torch.from_numpy(positions)[None])
        theirs = transformers.models.qwen2.modeling_qwen2.apply_rotary_pos_emb(tx, tx, cos, sin)[0].swapaxes(1, 2)
        rotation = rotation_at(jnp.asarray(positions[None]), config.head_dim, config.rope_theta, config.yarn)
        assert relative_error(apply_rope(jnp.asarray(x), rotation), theirs) < tolerance
