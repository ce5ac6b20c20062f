"""The training set of the quickstart: 2,000 of 3,600 generated word problems that are as dirty as a scraped pool.

The stories come from templates. Nearly every question shares 8 words with another, and many differ only in a number. So a held-out
question is recognised by 16 shared words, and near duplicates are kept. The tiny base model answers directly: what it gets right is too
easy.

It needs the pool and the held-out problems that `python -m data_tools.quickstart.arithmetic out/data` makes.

    python -m data_tools.curation quickstart_data
"""

from data_tools.curation.collect import CollectConfig
from data_tools.curation.config import CurationConfig
from data_tools.curation.decontamination import DecontaminationConfig
from data_tools.curation.difficulty import DifficultyConfig
from data_tools.curation.duplicates import DuplicatesConfig
from data_tools.curation.lengths import LengthsConfig
from data_tools.curation.selection import SelectionConfig
from s1jax.data.condition import Condition

_BASE = "data_tools/quickstart/tiny_base"

CONFIG = CurationConfig(
    output="out/curated",
    stages=("collect", "duplicates", "decontamination", "quality", "difficulty", "lengths", "selection"),
    collect=CollectConfig(pool=("out/data/pool.jsonl",)),
    duplicates=DuplicatesConfig(near_threshold=0),
    decontamination=DecontaminationConfig(heldout=("out/data/heldout.jsonl",), ngram=16, near_threshold=0),
    difficulty=DifficultyConfig(
        models=(_BASE,),
        condition=Condition(0, max_answer_tokens=12, dtype="float32", thinking_format="none"),
        num_rows=256,
    ),
    lengths=LengthsConfig(tokenizer=_BASE),
    selection=SelectionConfig(method="diverse", num=2000),
)
