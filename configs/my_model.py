"""Your own model on your own problems under one condition: greedy, up to 4,096 thinking tokens, no ignored stops.

The model, the problems (JSONL with a question and an answer per line, or the name of a benchmark) and the file of rows must be given.

    python launch/evaluate.py my_model --model MODEL --benchmark problems.jsonl --output rows.jsonl
"""

from tyro import MISSING

from s1jax.data.condition import Condition
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig

CONFIG = EvaluateConfig(
    decoding=DecodingConfig(model=MISSING, benchmark=MISSING, output=MISSING),
    condition=Condition(max_thinking_tokens=4096),
)
