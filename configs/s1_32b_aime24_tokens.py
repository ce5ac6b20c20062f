"""Token-conditional control on AIME24, without and with forcing (paper, table 3).

The model must have been trained on rows whose questions end in "Think for up to N tokens.", with N the length of the trace, rounded up to a
power of two. `s1_32b_control` says how to make such rows and train on them. The model of that mixture serves, too: `--model
runs/s1_32b_control/hf`.

Expected (the paper's): Control 40 %, Scaling -24 points per doubling, Performance 40.0 %; with forcing 100 %, +13, 40.0 %.
Hardware and hours: not yet run.

    python launch/sweep.py s1_32b_aime24_tokens --model runs/s1_32b_tokens/hf
"""

from s1jax.evaluate.conditions import DecodingConfig
from s1jax.evaluate.sweep import SweepConfig

CONFIG = SweepConfig(
    decoding=DecodingConfig(model="runs/s1_32b_tokens/hf", benchmark="aime24", output="runs/s1_32b_aime24/rows.jsonl"),
    method=("token_conditional", "token_conditional_forced"),
    requested=("1024", "2048", "4096", "8192", "16384"),
    max_thinking_tokens=(30000,),
)
