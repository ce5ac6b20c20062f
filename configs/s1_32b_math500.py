"""s1-32B on MATH500 at one point, two ignored stops (paper, table 1).

Expected: 93.0 (paper, table 1). Not yet run.

    python launch/evaluate.py s1_32b_math500 --decoding.model runs/s1_32b/hf
"""

from s1jax.evaluate import DecodingConfig, EvaluateConfig, Point

CONFIG = EvaluateConfig(
    decoding=DecodingConfig(model="runs/s1_32b/hf", benchmark="math500", output="runs/s1_32b_math500/rows.jsonl"),
    point=Point(max_thinking_tokens=16384, num_ignore=2),
)
