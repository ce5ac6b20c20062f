"""A sample row with defaults for every column."""

import json

from s1jax.data.condition import Condition
from s1jax.results.samples import COLUMNS, SampleRow, read_samples


def sample(**columns) -> SampleRow:
    row = {
        "problem_id": "p0",
        "benchmark": "toy",
        "model": "m",
        "weights": "0123456789ab",
        "tokenizer": "ba9876543210",
        "problem": "00112233aabb",
        **vars(Condition(64, ignore_text="", thinking_format="s1")),
        "sample_index": 0,
        "seed": 0,
        "num_thinking_tokens": 10,
        "num_forced_tokens": 3,
        "num_ignored": 0,
        "num_answer_tokens": 5,
        "finish_reason": "stop",
        "num_tries": 1,
        "num_rejected_tokens": 0,
        "tokens_at": None,
        "num_tokens": None,
        "thinking": "hm",
        "answer_text": "Answer: 1",
        "extracted": "1",
        "judge": "",
        "correct": True,
        "commit": "d",
    }
    assert set(columns) <= set(row) | {"verdict"} == set(COLUMNS)
    row |= columns
    verdict = "no_answer" if row["extracted"] is None else "equal" if row["correct"] else "different"
    return {name: (row | {"verdict": columns.get("verdict", verdict)})[name] for name in COLUMNS}


def study_rows(benchmarks=("toy",), samples=1, budgets=(0, 16, 32, 64), waits=(1, 2), models=("m",), natural=50):
    return [
        sample(
            benchmark=benchmark,
            model=model,
            problem_id=f"p{i}",
            sample_index=s,
            max_thinking_tokens=budget,
            num_ignore=ignore,
            ignore_text="Wait" if ignore else "",
            temperature=float(samples > 1),
            num_thinking_tokens=min(budget, natural + 6 * ignore + i),
            correct=(i + s) % 5 < (budget > 16) + (budget > 32) + ignore,
            extracted=str((i + s) % 5),
        )
        for benchmark in benchmarks
        for model in models
        for i in range(5)
        for s in range(samples)
        for budget, ignore in [*((b, 0) for b in budgets), *((budgets[-1], w) for w in waits)]
    ]


def comparable(path):
    """Rows in one order, without what may differ between equal runs."""
    return sorted(json.dumps(r) for r in read_samples(path))
