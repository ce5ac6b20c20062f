"""s1-32B on GPQA Diamond under one condition, with two ignored stops (paper, table 1).

Expected: 59.6 % (the paper's; 56.6 without ignored stops, 49.0 for Qwen2.5-32B-Instruct).
Hardware and hours: not yet run.

    python launch/evaluate.py s1_32b_gpqa --model runs/s1_32b/hf
"""

from dataclasses import replace

from configs.s1_32b_math500 import CONFIG as MATH500

CONFIG = replace(
    MATH500, decoding=replace(MATH500.decoding, benchmark="gpqa_diamond", output="runs/s1_32b_gpqa/rows.jsonl")
)
