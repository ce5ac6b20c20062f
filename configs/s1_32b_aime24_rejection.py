"""Rejection sampling on AIME24: traces are drawn until one is short enough (paper, table 3).

Expected (the paper's): Control 100 %, Scaling -35 points per doubling, Performance 40.0 %. The paper draws without a bound; here at most 64
traces per answer.
Hardware and hours: not yet run.

    python launch/sweep.py s1_32b_aime24_rejection --model runs/s1_32b/hf
"""

from s1jax.data.condition import TraceSettings
from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig

CONFIG = SweepConfig(
    decoding=DecodingConfig(model="runs/s1_32b/hf", benchmark="aime24", output="runs/s1_32b_aime24/rows.jsonl"),
    method=("rejection_sampling",),
    max_thinking_tokens=(3500, 4000, 5000, 6000, 8000, 16000),
    max_tries=64,
    condition=TraceSettings(temperature=1.0),
)
