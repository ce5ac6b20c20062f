"""The base model of `launch/quickstart.sh`, made from nothing but its seed.

Run on two CPU cores: 799 s, loss 0.208 over the last 50 of 1,700 steps; 875,000 parameters, 3.5 MB.
On fresh texts, under teacher forcing, it looks up noted steps and does sums without an error, and carries a result to the
next step in 0.993 of cases; without thinking it solves 3 of 48 one-step problems. These weights came from this code run
through a wrapper that also took snapshots; the command itself was not rerun since.

    python -m data_tools.tiny_base tiny_base
"""

from __future__ import annotations

from data_tools.tiny_base import TinyBaseConfig
from s1jax.model import ModelConfig

CONFIG = TinyBaseConfig(
    output="data_tools/tiny_base",
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
    num_steps=1700,
    batch_size=12,
    length=256,
    learning_rate=1e-2,
    vector_learning_rate=3e-3,
    warmup_steps=100,
    context_weight=0.1,
    init_scale=3.0,
    seed=0,
)
