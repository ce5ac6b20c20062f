"""The ablation 1K-random of s1-32B: the same recipe on random rows of the pool.

Expected accuracy in percent on AIME24, MATH500 and GPQA Diamond, from table 2 of the paper: 36.7, 90.6, 52.0.

Data: `python -m data_tools.curation s1k_random`. This run has not been done yet.

    python launch/train.py s1_32b_random
"""

import dataclasses

from configs.s1_32b import CONFIG as S1_32B

CONFIG = dataclasses.replace(
    S1_32B,
    output="runs/s1_32b_random",
    data=dataclasses.replace(S1_32B.data, source="out/s1k_random/train.jsonl"),
)
