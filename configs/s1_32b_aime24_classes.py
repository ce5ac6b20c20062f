"""Class-conditional control on AIME24, beside plain budget forcing: prompts that ask for a short or a long thought (paper, table 3).

Expected (the paper's): Control 50 %, Scaling +25 points per doubling, Performance 36.7 %.
Hardware and hours: not yet run.

    python launch/sweep.py s1_32b_aime24_classes --model runs/s1_32b/hf
"""

from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig

CONFIG = SweepConfig(
    decoding=DecodingConfig(model="runs/s1_32b/hf", benchmark="aime24", output="runs/s1_32b_aime24/rows.jsonl"),
    method=("budget_forcing", "class_conditional"),
    max_thinking_tokens=(30000,),
)
