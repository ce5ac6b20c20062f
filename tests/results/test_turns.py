"""`turns.py`: what one more ignored stop does to an answer, counted by hand."""

import random

import pytest
from scipy.stats import binomtest

from s1jax.results.turns import turn_of, turns, wait_pairs
from tests.support.samples import sample


def wait(problem, number, correct, text="Wait", **columns):
    columns = {"num_ignored": number, "ignore_text": text if number else ""} | columns
    return sample(problem_id=problem, num_ignore=number, correct=correct, **columns)


def test_turned_answers_are_those_of_the_same_trace_counted_one_by_one():
    rng = random.Random(0)
    right = {(p, k): rng.random() < 0.5 for p in range(40) for k in (0, 1, 2, 4)}
    rows = [wait(f"p{p}", k, ok, num_ignored=min(k, p % 6)) for (p, k), ok in right.items()]
    rows += [wait("p0", 1, True, max_thinking_tokens=32), wait("p0", 2, False, dtype="float32")]
    rng.shuffle(rows)
    points = turns(rows)
    assert [(p["num_ignore_before"], p["num_ignore"]) for p in points] == [(0, 1), (1, 2), (2, 4)]
    for point in points:
        before, after = point["num_ignore_before"], point["num_ignore"]
        longer = [p for p in range(40) if min(after, p % 6) > min(before, p % 6)]
        to_right = sum(right[p, after] and not right[p, before] for p in longer)
        to_wrong = sum(right[p, before] and not right[p, after] for p in longer)
        assert (point["n"], point["num_to_right"], point["num_to_wrong"]) == (40, to_right, to_wrong)
        assert point["num_longer"] == len(longer)
        assert point["p_value"] == pytest.approx(binomtest(to_right, to_right + to_wrong).pvalue)


def test_every_ignore_text_starts_at_the_same_answer_without_ignored_stops():
    rows = [wait("p0", 0, True), wait("p0", 1, False, "Hmm"), wait("p0", 2, True, "Hmm"), wait("p0", 2, False)]
    found = [(p["ignore_text"], p["num_ignore_before"], p["num_ignore"], p["num_to_wrong"]) for p in turns(rows)]
    assert found == [("Hmm", 0, 1, 1), ("Hmm", 1, 2, 0), ("Wait", 0, 2, 1)]


def test_only_answers_of_one_draw_are_paired():
    drawn = dict(temperature=1.0)
    rows = [wait("p0", k, k == 1, seed=s, sample_index=i, **drawn) for k, s, i in
            ((0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0), (0, 2, 0), (1, 2, 0))]  # fmt: skip
    (point,) = turns(rows)
    assert (point["n"], point["num_to_right"], point["num_problems"], point["test"]) == (2, 2, 1, "exchange")
    assert turns([row for row in rows if row["seed"] == 1]) == [] == turns([wait("p0", 0, True)])


def answer(thinking, num_ignored=0, **columns):
    columns = {"num_ignore": num_ignored, "ignore_text": "Wait", "num_ignored": num_ignored} | columns
    return sample(thinking=thinking, **columns)


def turned(rows):
    """How the answer of each row was turned."""
    found = {id(after): turn_of(before, after) for before, after in wait_pairs(rows)}
    return [found.get(id(row), "") for row in rows]


def test_a_wait_turns_an_answer_against_the_next_fewer_ignored_stops():
    trace = [
        answer("a", 0, correct=False),
        answer("aWaitb", 1, correct=True),
        answer("aWaitbWaitc", 2, correct=True),
        answer("aWaitbWaitcWaitdWaite", 4, correct=False),
    ]
    assert turned(trace) == ["", "to right", "", "to wrong"]
    assert turned(trace[::-1]) == ["to wrong", "", "to right", ""]
    assert turned([trace[0], {**trace[1], "ignore_text": "Hmm"}]) == ["", "to right"], "no stop was ignored before"
    assert turned([trace[1], {**trace[3], "ignore_text": "Hmm"}]) == ["", ""]
    assert turned([trace[1], {**trace[3], "max_thinking_tokens": 999}]) == ["", ""]
    assert turned([trace[1], {**trace[3], "num_ignored": 1}]) == ["", ""], "no further attempt was ignored"


def test_an_ignored_stop_is_compared_only_within_its_limits():
    assert turned([answer("a", correct=False), answer("aWaitb", 1, min_thinking_tokens=3)]) == ["", ""]
    assert turned([answer("a"), answer("aWaitb", 1)]) == ["", ""]
