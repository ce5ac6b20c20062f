"""The ablation 59K-full of s1-32B: the same recipe on the whole pool, 394 H100-hours in the paper.

Expected accuracy in percent on AIME24, MATH500 and GPQA Diamond, from table 2 of the paper: 53.3, 92.8, 58.1.

Data: `python -m data_tools.curation s1k_full`. This run has not been done yet.

    python launch/train.py s1_32b_full
"""

import dataclasses

from configs.s1_32b import CONFIG as S1_32B

CONFIG = dataclasses.replace(
    S1_32B,
    output="runs/s1_32b_full",
    data=dataclasses.replace(S1_32B.data, source="out/s1k_full/train.jsonl"),
)
