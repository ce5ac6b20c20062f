"""`divergence.py`: the first difference, against a loop."""

import random
from pathlib import Path

import numpy as np
import pytest

from s1jax.results.divergence import compare_texts, first_divergence
from tests.support.samples import sample

FILES = (Path("a"), Path("b"))


def by_loop(a, b):
    for i in range(max(len(a), len(b))):
        if i >= len(a) or i >= len(b) or a[i] != b[i]:
            return i
    return None


def test_the_first_divergence_is_that_of_a_loop():
    rng = random.Random(0)
    for _ in range(300):
        a = [rng.randrange(2) for _ in range(rng.randrange(6))]
        b = [rng.randrange(2) for _ in range(rng.randrange(6))]
        assert first_divergence(a, b) == first_divergence(np.array(a), np.array(b)) == by_loop(a, b), (a, b)


def test_texts_are_compared_by_character_and_shown_escaped():
    pairs = [
        (sample(thinking="é😀x", answer_text="1"), sample(thinking="é😀x", answer_text="1")),
        (sample(thinking="é😀x", answer_text="1"), sample(thinking="é😀", answer_text="\x1b[2J\n\ud800")),
        (sample(problem_id="p1", thinking="a" * 90), sample(problem_id="p1", thinking="b" + "a" * 89)),
    ]
    result = compare_texts(pairs, FILES)
    assert (result["num_pairs"], result["num_equal"], result["num_with_tokens"]) == (3, 1, 0)
    assert (result["first_character"], result["median_character"]) == (0, 1)
    one, other = result["divergences"]
    assert (one["character"], one["text_a"], one["text_b"]) == (2, "é😀x1", "é😀\\x1b[2J\\n\\ud800")
    assert (other["problem_id"], other["character"], other["text_a"]) == ("p1", 0, "a" * 40) and "token" not in other
    assert compare_texts(pairs[:1], FILES)["first_character"] is None


@pytest.mark.parametrize(
    ("tokens_b", "expected"), [([5, 6, 8], (2, 7, 8)), ([5, 6], (2, 7, None)), ([5, 6, 7], (None,) * 3)]
)
def test_recorded_tokens_tell_the_token_and_its_log_probability(tokens_b, expected):
    kind = np.dtype([("token", "<i4"), ("logprob", "<f2"), ("forced", "u1")])
    records = {
        "a": np.array([(t, 0.0, 1) for t in (5, 6, 7)], kind),
        "b": np.array([(t, -0.25, 0) for t in tokens_b], kind),
    }
    row = sample() | {"tokens_at": 0}
    pairs = [(row, row | {"thinking": "other"}), (row, sample(thinking="other"))]
    result = compare_texts(pairs, FILES, lambda path, row: records[path.name])
    recorded, unrecorded = result["divergences"]
    assert result["num_with_tokens"] == 1 and "token" not in unrecorded
    assert (recorded["token"], recorded["token_a"], recorded["token_b"]) == expected
    assert recorded["logprob_b"] == (-0.25 if expected[2] else None)
    assert recorded["logprob_a"] is None  # a forced token has none
