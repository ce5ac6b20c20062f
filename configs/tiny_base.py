"""The base model of `launch/quickstart.sh`, trained from random weights. It is determined by its seed.

Run on two CPU cores that did other work at the same time: 1,919 s (about half of that on idle cores). The mean loss of the last 50 of 2,400
steps was 0.219. The model has 875,000 parameters (3.5 MB). Without thinking it solves 88 of 200 problems of one step, and 9 of 400 problems
of two or three steps.

    python -m data_tools.quickstart.tiny_base tiny_base
"""

from __future__ import annotations

from data_tools.quickstart.tiny_base import TinyBaseConfig
from s1jax.model.config import ModelConfig

CONFIG = TinyBaseConfig(
    output="data_tools/quickstart/tiny_base",
    model=ModelConfig(
        vocab_size=672,
        embed_dim=128,
        mlp_dim=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        dtype="float32",
    ),
    num_steps=2400,
    batch_size=9,
    length=352,
    learning_rate=1e-2,
    vector_learning_rate=3e-3,
    warmup_steps=100,
    context_weight=0.1,
    init_scale=3.0,
    seed=0,
)
