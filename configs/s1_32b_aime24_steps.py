"""Step-conditional control on AIME24 without forcing (paper, table 3). `--method step_conditional_forced` runs the form with forcing.

The model must have been trained on traces in numbered steps, and on questions that end in "Think for up to N steps.". `s1_32b_control` says
how to make such rows and train on them. The model of that mixture serves, too: `--model runs/s1_32b_control/hf`.

Expected (the paper's): Control 60 %, Scaling +3 points per doubling, Performance 36.7 %; with forcing 100 %, +6, 36.7 %.
Hardware and hours: not yet run.

    python launch/sweep.py s1_32b_aime24_steps --model runs/s1_32b_steps/hf
"""

from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig

CONFIG = SweepConfig(
    decoding=DecodingConfig(model="runs/s1_32b_steps/hf", benchmark="aime24", output="runs/s1_32b_aime24/rows.jsonl"),
    method=("step_conditional",),
    requested=("16", "32", "64", "128", "256"),
    max_thinking_tokens=(30000,),
)
