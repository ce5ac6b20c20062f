"""`traces.py`: forks of one trace, what ended them, and where Waits stand."""

from s1jax.results.traces import Span, answer_spans, group_traces, thinking_spans, what_ended
from tests.support.samples import sample


def fork(thinking, num_ignored=0, **columns):
    columns = {"num_ignore": num_ignored, "ignore_text": "Wait", "num_thinking_tokens": len(thinking)} | columns
    return sample(**{"thinking": thinking, "num_ignored": num_ignored, "max_thinking_tokens": 1000} | columns)


def test_rows_are_of_one_trace_only_if_nothing_but_the_end_differs():
    rows = [
        fork("a"),
        fork("ab", 1),
        fork("a", seed=1),
        fork("a", method="token_conditional_forced"),
        fork("", model="n"),
    ]
    assert [[rows.index(row) for row in trace] for trace in group_traces(rows)] == [[0, 1, 3], [2], [4]]


def test_a_budget_ended_the_thinking_exactly_if_it_is_used_up():
    assert what_ended(fork("abcd", max_thinking_tokens=4)) == "budget"
    assert what_ended(fork("abc", max_thinking_tokens=4)) == "model"
    assert what_ended(fork("abcd", max_thinking_tokens=4, method="rejection_sampling")) == "model"
    assert what_ended(fork("", finish_reason="rejected")) == "rejected"
    assert what_ended(fork("", max_thinking_tokens=0)) == "budget"
    assert what_ended(fork("", max_thinking_tokens=0, thinking_format="none", wrap_up="")) == "none"


def test_forks_tell_a_forced_wait_from_one_that_the_model_wrote(rng):
    """Random traces in which the model writes Waits of its own; every fork is given, so that each place is certain."""
    for _ in range(50):
        parts = ["".join(rng.choice(["x", "y ", "Wait", "é"], rng.integers(0, 6))) for _ in range(5)]
        forks = [fork("Wait".join(parts[: i + 1]), i) for i in range(5)]
        places = [len(other["thinking"]) for other in forks[:4]]
        for i, row in enumerate(forks):
            expected = [Span(place, place + 4, "wait") for place in places[:i]]
            assert thinking_spans(row, rng.permutation(forks).tolist()) == expected, forks


def test_without_forks_as_many_waits_are_marked_as_attempts_were_ignored():
    row = fork("a Wait b Wait c Wait", 2)
    assert thinking_spans(row, [row]) == [Span(2, 6, "wait"), Span(9, 13, "wait")]
    assert thinking_spans(fork("a Wait", 0), []) == thinking_spans(fork("a Wait", 1, ignore_text=""), []) == []
    assert thinking_spans(fork("no such text", 3), []) == []


def test_a_wait_that_the_budget_cut_is_marked_as_far_as_it_goes():
    row = fork("so 4. Wa", 1, max_thinking_tokens=8)
    assert thinking_spans(row, [row, fork("so 4. ")]) == [Span(6, 8, "wait")]


def test_the_wrap_up_is_marked_only_where_it_was_forced_and_the_graded_answer_where_it_stands_last():
    forced = fork("abcd", max_thinking_tokens=4, answer_text="\nFinal Answer: 1 or 12, so 12", extracted="12")
    assert answer_spans(forced) == [Span(1, 14, "forced"), Span(27, 29, "extracted")]
    assert answer_spans({**forced, "max_thinking_tokens": 5}) == [Span(27, 29, "extracted")]
    assert answer_spans({**forced, "extracted": "x^2", "wrap_up": "no {end}"}) == []
    assert answer_spans({**forced, "extracted": None, "wrap_up": "so{end}Final"}) == [Span(1, 6, "forced")]
