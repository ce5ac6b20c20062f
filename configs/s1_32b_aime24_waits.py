"""The extrapolation of s1-32B on AIME24: attempts to stop thinking are replaced by "Wait" 0 to 8 times (paper, figure 4 left).

Expected (the paper's): 50.0, 53.3, 53.3, 53.3, 56.7, 53.3, 56.7, 53.3, 50.0 % for 0 to 8 times. The paper's s1-32B (table 1) uses 4.
The budget leaves 2,048 of the model's 32,768 positions to question and answer. Hardware and hours: not yet run.

    python launch/sweep.py s1_32b_aime24_waits --model runs/s1_32b/hf
"""

from dataclasses import replace

from configs.s1_32b_aime24_budgets import CONFIG as BUDGETS

CONFIG = replace(BUDGETS, max_thinking_tokens=(30720,), num_ignore=(0, 1, 2, 3, 4, 5, 6, 7, 8))
