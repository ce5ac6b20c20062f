"""The published shapes of Qwen2.5-Instruct, by size: for work that needs a model's shape but not its weights.

Source: the `config.json` of each `Qwen/Qwen2.5-<size>-Instruct`.
"""

from __future__ import annotations

from s1jax.model import ModelConfig

# Embed, mlp, layers, heads, key/value heads, whether embeddings are tied, vocabulary.
SIZES = {
    "0.5B": (896, 4864, 24, 14, 2, True, 151936),
    "1.5B": (1536, 8960, 28, 12, 2, True, 151936),
    "3B": (2048, 11008, 36, 16, 2, True, 151936),
    "7B": (3584, 18944, 28, 28, 4, False, 152064),
    "14B": (5120, 13824, 48, 40, 8, False, 152064),
    "32B": (5120, 27648, 64, 40, 8, False, 152064),
    "72B": (8192, 29568, 80, 64, 8, False, 152064),
}


def qwen2_5(size: str, dtype: str = "bfloat16") -> ModelConfig:
    """Return the shape of Qwen2.5-Instruct of this size. Raises ValueError for a size that does not exist."""
    if size not in SIZES:
        raise ValueError(f"there is no Qwen2.5 of size {size!r}; the sizes are {', '.join(SIZES)}")
    embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, is_tied, vocab_size = SIZES[size]
    return ModelConfig(
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=embed_dim // num_heads,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        tie_word_embeddings=is_tied,
        dtype=dtype,
    )
