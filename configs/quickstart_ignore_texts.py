"""The quickstart's model with other texts in the place of "Wait", and with none (as in the paper's table 4). It knows only "Wait".

python launch/sweep.py quickstart_ignore_texts
"""

from dataclasses import replace

from configs.quickstart_budgets import CONFIG as BUDGETS

CONFIG = replace(
    BUDGETS, max_thinking_tokens=(192,), num_ignore=(0, 1, 2), ignore_text=("Wait", "", "Alternatively", "Hmm")
)
