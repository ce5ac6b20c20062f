"""`grid.py`: budgets times votes, their Pareto front, and three ways at equal tokens."""

import itertools
import random

import pytest

from s1jax.results.grid import at_equal_tokens, scaling_grid, to_compare
from s1jax.results.grid_table import format_grid_table
from s1jax.results.metrics import thinking_curve, voting_curve
from s1jax.results.samples import SETTING, pick
from tests.support.samples import sample, study_rows


def test_a_point_has_the_votes_and_the_tokens_of_its_setting():
    rows = study_rows(samples=4)
    grid = scaling_grid(rows)
    votes = {(pick(p, SETTING), p["k"]): p for p in voting_curve(rows)}
    means = {pick(p, SETTING): p["mean_thinking_tokens"] for p in thinking_curve(rows)}
    assert len(grid) == len(votes) == 6 * 3
    for p in grid:
        point = votes[pick(p, SETTING), p["k"]]
        assert (p["accuracy"], p["accuracy_high"]) == (point["maj_at_k"], point["maj_at_k_high"])
        assert p["thinking_tokens"] == pytest.approx(p["k"] * means[pick(p, SETTING)])
        assert p["tokens"] == pytest.approx(p["thinking_tokens"] + 5 * p["k"])


def test_one_sample_per_problem_has_points_of_one_vote():
    assert {p["k"] for p in scaling_grid(study_rows())} == {1}


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_a_sweep_by_tokens_keeps(seed):
    rng = random.Random(seed)
    rows = [
        sample(
            problem_id=f"p{i}",
            sample_index=s,
            temperature=1.0,
            max_thinking_tokens=budget,
            num_thinking_tokens=rng.choice([0, budget // 2, budget]),
            correct=rng.random() < 0.5,
        )
        for budget, i, s in itertools.product((4, 8, 16, 32), range(3), range(4))
    ]
    best, front = -1.0, set()
    grid = scaling_grid(rows)
    for p in sorted(grid, key=lambda p: (p["tokens"], -p["accuracy"])):
        if p["accuracy"] > best or (p["tokens"], p["accuracy"]) in front:
            best = p["accuracy"]
            front.add((p["tokens"], p["accuracy"]))
    assert [p["is_on_front"] for p in grid] == [(p["tokens"], p["accuracy"]) in front for p in grid], seed


def test_points_over_other_problems_have_fronts_of_their_own():
    rows = [sample(max_thinking_tokens=8, num_thinking_tokens=8, correct=False)]
    rows += [sample(max_thinking_tokens=64, problem_id=f"p{i}", num_thinking_tokens=1) for i in range(2)]
    assert [p["is_on_front"] for p in scaling_grid(rows)] == [True, True]


def test_points_over_as_many_but_other_problems_have_fronts_of_their_own():
    rows = [sample(max_thinking_tokens=8, num_thinking_tokens=8, problem_id="other", correct=False)]
    rows += [sample(max_thinking_tokens=64, num_thinking_tokens=1)]
    assert [p["is_on_front"] for p in scaling_grid(rows)] == [True, True]


@pytest.mark.parametrize(
    ("rows", "num_benchmarks"),
    [
        (study_rows(), 0),  # budgets and ignored stops alone: one line
        (study_rows(samples=4, budgets=(64,), waits=()), 0),  # votes alone
        (study_rows(samples=2), 1),  # both
        (study_rows(models=("m", "n")), 1),  # two models
        (study_rows(samples=2) + study_rows(benchmarks=("other",)), 1),  # the other benchmark has one line
        ([row | {"num_answer_tokens": 0} for row in study_rows(samples=2, budgets=(0,), waits=())], 0),
    ],
)
def test_benchmarks_with_two_lines_are_compared(rows, num_benchmarks):
    grid = scaling_grid(rows)
    points = to_compare(grid)
    assert points == [p for p in grid if num_benchmarks and p["benchmark"] == "toy"]


def test_a_point_without_tokens_has_no_place_among_all_tokens():
    rows = [row | {"num_answer_tokens": 0} for row in study_rows(samples=2)]
    points = to_compare(scaling_grid(rows))
    assert points == [p for p in scaling_grid(rows) if p["max_thinking_tokens"]] != []


def line(tokens, right, **setting):
    """Samples of one setting: 4 problems, of which `right` are solved; thinking and answer take `tokens`."""
    limits = {"max_thinking_tokens": 4096, "num_answer_tokens": 0, "temperature": 1.0} | setting
    return [
        sample(problem_id=f"p{i}", sample_index=s, correct=i < right, num_thinking_tokens=tokens, **limits)
        for i in range(4)
        for s in range(4)
    ]


def test_three_ways_are_compared_at_equal_tokens():
    rows = line(1024, 2) + line(512, 1, max_thinking_tokens=512) + line(128, 0, max_thinking_tokens=128)
    rows += line(2048, 4, num_ignore=1, ignore_text="Wait") + line(1448.1547, 3, num_ignore=1, ignore_text="Hmm")
    rows += line(9999, 4, num_ignore=1, ignore_text="Wait", max_thinking_tokens=512)  # not under the largest budget
    levels = at_equal_tokens(scaling_grid(rows))
    assert [(level["share"], level["tokens"]) for level in levels] == [(2.0**i, 1024 * 2.0**i) for i in range(-3, 3)]
    assert [level["cutting"] for level in levels] == [0, 0.125, 0.25, 0.5, None, None]
    assert [level["voting"] for level in levels] == [None, None, None, 0.5, 0.5, 0.5]
    assert [level["extending Wait"] for level in levels] == [None, None, None, 0.5, 1, None]
    assert [level["extending Hmm"] for level in levels] == [None, None, None, 0.5, None, None]
    table = format_grid_table(scaling_grid(rows))
    assert 'extending "Wait"' in table and "accuracy % at equal tokens" in table


def test_one_way_alone_is_no_comparison():
    assert at_equal_tokens(scaling_grid(line(1024, 2))) == []
    assert at_equal_tokens(scaling_grid(study_rows(samples=4, budgets=(64,), waits=()))) == []
    assert at_equal_tokens(scaling_grid(study_rows(budgets=(64, 32), waits=()))) == []


def test_the_grid_table_marks_the_front():
    rows = study_rows(samples=2)
    table = format_grid_table(scaling_grid(rows)).split("accuracy % at equal tokens")[0]
    stars = [line.endswith("*") for line in table.splitlines()[3:]]
    assert sum(stars) == sum(p["is_on_front"] for p in scaling_grid(rows)) > 1
