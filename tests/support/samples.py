"""A sample row with defaults for every column."""

from s1jax.results.samples import SampleRow


def sample(**columns) -> SampleRow:
    row = {
        "problem_id": "p0",
        "benchmark": "toy",
        "model": "m",
        "method": "budget_forcing",
        "max_thinking_tokens": 64,
        "min_thinking_tokens": 0,
        "num_ignore": 0,
        "ignore_text": "",
        "temperature": 0.0,
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
        "config_hash": "c",
        "commit": "d",
    }
    assert set(columns) <= set(row)
    return row | columns  # type: ignore[return-value]
