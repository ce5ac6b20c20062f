"""The scaling curve of s1-32B on AIME24 (paper, figures 1 and 4 left): budgets from 512 to 16,384 tokens, and 0 to 8 ignored stops.

Expected: 0, 13.3, 30.0, 43.3, 50.0, 53.3, 56.7 % at mean thinking tokens 500, 1000, 2000, 3933, 5300, 6657, 7320 (paper, figure 1).
Not yet run.

    python launch/sweep.py s1_32b_aime24 --decoding.model runs/s1_32b/hf
"""

from s1jax.evaluate import DecodingConfig
from s1jax.sweep import SweepConfig

CONFIG = SweepConfig(
    decoding=DecodingConfig(model="runs/s1_32b/hf", benchmark="aime24", output="runs/s1_32b_aime24/rows.jsonl"),
    max_thinking_tokens=(512, 1024, 2048, 4096, 8192, 16384),
    num_ignore=(0, 1, 2, 3, 4, 6, 8),
)
