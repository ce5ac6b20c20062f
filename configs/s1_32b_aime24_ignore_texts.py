"""The ignore texts of s1-32B on AIME24: two attempts to stop thinking are replaced by each text, or forbidden (paper, table 4).

Expected (the paper's): 50.0 % without ignored stops and with no text, "Alternatively" and "Hmm", 53.3 % with "Wait". One problem is 3.3
points. Hardware and hours: not yet run.

    python launch/sweep.py s1_32b_aime24_ignore_texts --model runs/s1_32b/hf
"""

from dataclasses import replace

from configs.s1_32b_aime24_budgets import CONFIG as BUDGETS

CONFIG = replace(
    BUDGETS, max_thinking_tokens=(30720,), num_ignore=(0, 2), ignore_text=("Wait", "", "Alternatively", "Hmm")
)
