"""The ablation 1K-longest of s1-32B: the same recipe on the longest traces.

Expected accuracy in percent on AIME24, MATH500 and GPQA Diamond, from table 2 of the paper: 33.3, 90.4, 59.6.

Data: `python -m data_tools.curation s1k_longest`. This run has not been done yet.

    python launch/train.py s1_32b_longest
"""

import dataclasses

from configs.s1_32b import CONFIG as S1_32B

CONFIG = dataclasses.replace(
    S1_32B,
    output="runs/s1_32b_longest",
    data=dataclasses.replace(S1_32B.data, source="out/s1k_longest/train.jsonl"),
)
