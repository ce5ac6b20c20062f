"""59K-full: all rows of s1's pool that have a trace (paper section 5.1).

It shares the stages before the selection with `s1k`: give it the same flags.

    python -m data_tools.curation s1k_full
"""

import dataclasses

from configs.s1k import CONFIG as S1K

CONFIG = dataclasses.replace(
    S1K,
    output="out/s1k_full",
    stages=tuple(stage for stage in S1K.stages if stage not in ("difficulty", "domains")),
    quality=dataclasses.replace(S1K.quality, rules=("missing",)),
    selection=dataclasses.replace(S1K.selection, method="full"),
)
