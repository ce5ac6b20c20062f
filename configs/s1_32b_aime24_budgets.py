"""The scaling curve of s1-32B on AIME24: thinking budgets from 512 to 16,384 tokens (paper, figure 1).

Expected (the paper's): 0, 13.3, 30.0, 43.3, 50.0 % at mean thinking tokens 500, 1000, 2000, 3933, 5300; 50.0 % without a budget
(paper, table 1). The last points of the figure, 53.3 at 6657 and 56.7 at 7320, need ignored stops: `s1_32b_aime24_waits`.
Hardware and hours: not yet run.

    python launch/sweep.py s1_32b_aime24_budgets --model runs/s1_32b/hf
"""

from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig

CONFIG = SweepConfig(
    decoding=DecodingConfig(model="runs/s1_32b/hf", benchmark="aime24", output="runs/s1_32b_aime24/rows.jsonl"),
    max_thinking_tokens=(512, 1024, 2048, 4096, 8192, 16384),
)
