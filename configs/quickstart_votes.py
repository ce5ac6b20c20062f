"""The quickstart's majority votes: 64 samples of each of 24 held-out problems at temperature 1 (as in the paper's figure 4, right).

python launch/sweep.py quickstart_votes
"""

from dataclasses import replace

from configs.quickstart_budgets import CONFIG as BUDGETS

CONFIG = replace(
    BUDGETS,
    decoding=replace(BUDGETS.decoding, limit=24, num_rows=256),
    max_thinking_tokens=(192,),
    condition=replace(BUDGETS.condition, temperature=1.0),
    num_samples=64,
)
