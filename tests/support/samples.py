"""A sample row with defaults for every column."""

from s1jax.data.condition import Condition
from s1jax.results.samples import COLUMNS, SampleRow


def sample(**columns) -> SampleRow:
    row = {
        "problem_id": "p0",
        "benchmark": "toy",
        "model": "m",
        "weights": "0123456789ab",
        "tokenizer": "ba9876543210",
        "problem": "00112233aabb",
        **vars(Condition(64, ignore_text="")),
        "sample_index": 0,
        "seed": 0,
        "num_thinking_tokens": 10,
        "num_forced_tokens": 3,
        "num_ignored": 0,
        "num_answer_tokens": 5,
        "finish_reason": "stop",
        "thinking": "hm",
        "answer_text": "Answer: 1",
        "extracted": "1",
        "correct": True,
        "commit": "d",
    }
    assert set(columns) <= set(row) == set(COLUMNS)
    return row | columns
