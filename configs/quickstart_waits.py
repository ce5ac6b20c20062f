"""The quickstart's extrapolation: up to 4 attempts to stop thinking are replaced by "Wait" (as in the paper's figure 4, left).

python launch/sweep.py quickstart_waits
"""

from dataclasses import replace

from configs.quickstart_budgets import CONFIG as BUDGETS

CONFIG = replace(BUDGETS, max_thinking_tokens=(192,), num_ignore=(1, 2, 4))
