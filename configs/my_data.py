"""Your own 1K: questions with answers become 1,000 rows with traces that your own model wrote and that reach the right answer.

Give the pool (files with a question and an answer per line, or hub datasets), the model that writes the traces, and the problems that must
stay held out. Questions that the model answers rightly without thinking are dropped as too easy. Each remaining question gets four
answers, and the first right one becomes its trace.

    python -m data_tools.curation my_data --collect.pool FILE.jsonl --traces.model MODEL --difficulty.models MODEL \
        --lengths.tokenizer MODEL --domains.model MODEL --decontamination.heldout math500 aime24
"""

from data_tools.curation.config import CurationConfig
from data_tools.curation.selection import SelectionConfig

CONFIG = CurationConfig(
    output="out/my_data",
    stages=(
        "collect",
        "duplicates",
        "decontamination",
        "difficulty",
        "traces",
        "quality",
        "lengths",
        "domains",
        "selection",
    ),
    selection=SelectionConfig(method="diverse"),
)
