"""s1K: 1,000 of 59,029 questions from sixteen sources, by quality, difficulty and diversity (paper section 2, appendix C).

Rows after each stage, from the paper:

    pool, without copies and held-out questions     59,029
    quality: nothing is missing                     54,116
    quality: no images, no torn markup              51,581
    difficulty: neither model solves it             24,496
    selection                                        1,000

This config has not been run yet: it needs the hub, an endpoint and GPUs. The paper's traces came from Gemini, and a language model graded
them and chose the domains. Give the address and the name of such a model. Without `--difficulty.judge`, rules compare the answers.

    python -m data_tools.curation s1k --traces.endpoint URL --traces.endpoint-model NAME --domains.endpoint URL \
        --domains.endpoint-model NAME
"""

from data_tools.curation.collect import CollectConfig
from data_tools.curation.config import CurationConfig
from data_tools.curation.decontamination import DecontaminationConfig
from data_tools.curation.difficulty import DifficultyConfig
from data_tools.curation.duplicates import DuplicatesConfig
from data_tools.curation.lengths import LengthsConfig
from data_tools.curation.quality import QualityConfig
from data_tools.curation.selection import SelectionConfig
from data_tools.curation.traces import TracesConfig
from s1jax.data.condition import Condition

CONFIG = CurationConfig(
    output="out/s1k",
    work="out/s1k_work",
    stages=(
        "collect",
        "duplicates",
        "decontamination",
        "traces",
        "quality",
        "difficulty",
        "lengths",
        "domains",
        "selection",
    ),
    collect=CollectConfig(pool=("s1:all",)),
    duplicates=DuplicatesConfig(near_threshold=0),
    decontamination=DecontaminationConfig(
        heldout=("math500", "gpqa_diamond", "aime24"), between_sources=True, near_threshold=0
    ),
    traces=TracesConfig(num_samples=1, verify=False),
    quality=QualityConfig(rules=("missing", "image", "numbered_parts", "bold")),
    difficulty=DifficultyConfig(
        models=("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-32B-Instruct"),
        condition=Condition(0, max_answer_tokens=4096, temperature=0.05, thinking_format="none"),
    ),
    lengths=LengthsConfig(tokenizer="Qwen/Qwen2.5-32B-Instruct"),
    selection=SelectionConfig(method="s1k", num=1000),
)
