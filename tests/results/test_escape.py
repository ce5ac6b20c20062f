"""`escape.py`: which forced answers go on thinking."""

import pytest

from s1jax.results.escape import escapes, reopens
from s1jax.results.samples import is_forced
from tests.support.samples import sample

FORCED = dict(max_thinking_tokens=8, num_thinking_tokens=8)


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ("s1", "Final Answer: 4", False),
        ("s1", "Final Answer: hm<|im_start|>think again", True),
        ("s1", "4<|im_start|>", True),
        ("s1", "4 </think>", False),
        ("think", "4</think> 5", True),
        ("think", "<think>hm", True),
        ("think", "I think so", False),
        ("openthinker", "4<|begin_of_thought|>", True),
        ("steps", "4<|im_start|>", True),
        ("[a]...[b]", "1 [b] 2", True),
        ("[a]...[b]", "1 a 2", False),
    ],
)
def test_an_answer_reopens_thinking_by_the_texts_of_its_format(format, text, expected):
    assert reopens(sample(thinking_format=format, answer_text=text)) is expected


def test_what_the_wrap_up_writes_is_no_escape():
    row = sample(**FORCED, thinking_format="think", wrap_up="Enough.\n{end}\n\nNo <think>: ")
    assert not reopens(row | {"answer_text": "No <think>: 4"}) and reopens(
        row | {"answer_text": "No <think>: 4 <think>"}
    )
    assert reopens(row | {"answer_text": "No <think>: 4", "num_thinking_tokens": 7})
    assert is_forced(row) and not is_forced(row | {"method": "rejection_sampling"})


def test_the_escape_rate_is_a_count_by_hand():
    unforced = [sample(problem_id=f"u{i}", num_answer_tokens=n) for i, n in enumerate((4, 6, 100))]
    unforced += [sample(problem_id=f"v{i}", num_answer_tokens=1, answer_text="\n") for i in range(5)]  # no answers
    forced = [
        sample(**FORCED, problem_id="a", num_answer_tokens=18),  # not above three times the median, 6
        sample(**FORCED, problem_id="b", num_answer_tokens=19, finish_reason="length", extracted=None, correct=False),
        sample(**FORCED, problem_id="c", num_answer_tokens=2, answer_text="<|im_start|>think"),
        sample(**FORCED, problem_id="d", num_answer_tokens=50, answer_text="<|im_start|>"),
        sample(**FORCED, problem_id="e", answer_text="Final Answer: \n", num_answer_tokens=0),
    ]
    short, long = escapes([*unforced, *forced])
    assert (short["n"], short["num_forced"], short["num_unforced"], short["median_unforced"], short["longest"]) == (
        5,
        5,
        3,
        6,
        18,
    )
    assert (short["num_reopened"], short["num_longer"], short["escape_rate"]) == (2, 2, 0.6)
    assert short["escape_rate_low"] < 0.6 < short["escape_rate_high"]
    assert (short["num_cut"], short["num_not_found"], short["num_empty"]) == (1, 1, 1)
    assert (long["num_forced"], long["escape_rate"], long["num_longer"]) == (0, None, 0)
    assert escapes([*unforced, *forced], multiple=2)[0]["num_longer"] == 3
    (alone,) = escapes(forced)
    assert (alone["longest"], alone["num_longer"], alone["escape_rate"]) == (None, 0, 0.4)


def test_wrap_ups_are_compared_with_the_unforced_answers_of_their_own_curve_and_problems_weigh_equally():
    rows = []
    for wrap_up, length in (("", 30), ("Final Answer:", 9)):
        rows.append(sample(wrap_up=wrap_up, num_answer_tokens=length // 3))
        rows += [sample(**FORCED, wrap_up=wrap_up, temperature=0.0, num_answer_tokens=n) for n in (length + 1,)]
    assert [p["escape_rate"] for p in escapes(rows)] == [1, None, 1, None]
    drawn = [sample(**FORCED, temperature=1.0, sample_index=i, answer_text="<|im_start|>" * (i > 0)) for i in range(4)]
    drawn.append(sample(**FORCED, temperature=1.0, problem_id="p1"))
    assert escapes(drawn)[0]["escape_rate"] == pytest.approx(0.375)
