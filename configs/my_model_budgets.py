"""The scaling curve of your own model on your own problems: greedy, thinking budgets from 256 to 4,096 tokens, no ignored stops.

The model, the problems (JSONL with a question and an answer per line, or the name of a benchmark) and the file of rows must be given.

    python launch/sweep.py my_model_budgets --model MODEL --benchmark problems.jsonl --output rows.jsonl
"""

from configs.my_model import CONFIG as MY_MODEL
from s1jax.evaluate.sweep import SweepConfig

CONFIG = SweepConfig(decoding=MY_MODEL.decoding, max_thinking_tokens=(256, 512, 1024, 2048, 4096))
