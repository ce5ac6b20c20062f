"""1K-longest: the 1,000 rows of s1's pool with the longest traces (paper section 5.1).

It shares the stages before the selection with `s1k`: give it the same flags.

    python -m data_tools.curation s1k_longest
"""

import dataclasses

from configs.s1k import CONFIG as S1K

CONFIG = dataclasses.replace(
    S1K,
    output="out/s1k_longest",
    stages=tuple(stage for stage in S1K.stages if stage not in ("difficulty", "domains")),
    selection=dataclasses.replace(S1K.selection, method="longest"),
)
