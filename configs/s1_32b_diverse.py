"""The ablation 1K-diverse of s1-32B: the same recipe on diverse rows, easy ones among them.

Expected accuracy in percent on AIME24, MATH500 and GPQA Diamond, from table 2 of the paper: 26.7, 91.2, 54.6.

Data: `python -m data_tools.curation s1k_diverse`. This run has not been done yet.

    python launch/train.py s1_32b_diverse
"""

import dataclasses

from configs.s1_32b import CONFIG as S1_32B

CONFIG = dataclasses.replace(
    S1_32B,
    output="runs/s1_32b_diverse",
    data=dataclasses.replace(S1_32B.data, source="out/s1k_diverse/train.jsonl"),
)
