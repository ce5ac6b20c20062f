"""s1-32B on MATH500 under one condition, with two ignored stops (paper, table 1).

Expected: 93.0 % (the paper's; 92.6 without ignored stops, 84.0 for Qwen2.5-32B-Instruct).
Hardware and hours: not yet run.

    python launch/evaluate.py s1_32b_math500 --model runs/s1_32b/hf
"""

from s1jax.data.condition import Condition
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig

CONFIG = EvaluateConfig(
    decoding=DecodingConfig(model="runs/s1_32b/hf", benchmark="math500", output="runs/s1_32b_math500/rows.jsonl"),
    condition=Condition(max_thinking_tokens=16384, num_ignore=2),
)
