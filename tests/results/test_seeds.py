"""`seeds.py`: accuracy of each seed and its spread, against numpy."""

import numpy as np
import pytest

from s1jax.results.seeds import seed_spread
from tests.support.samples import sample


def test_mean_and_deviation_are_over_seeds_of_accuracies_over_problems():
    rng = np.random.default_rng(0)
    right = rng.random((5, 7, 3)) < 0.6  # seeds, problems, samples
    rows = [
        sample(temperature=1.0, seed=s, problem_id=f"p{p}", sample_index=i, correct=bool(right[s, p, i]), num_thinking_tokens=s)
        for s, p, i in np.ndindex(right.shape)
    ]  # fmt: skip
    (point,) = seed_spread(rows)
    of_seed = right.mean((1, 2))
    assert [seed["accuracy"] for seed in point["seeds"]] == pytest.approx(of_seed)
    assert [(seed["seed"], seed["n"], seed["mean_thinking_tokens"]) for seed in point["seeds"]] == [
        (s, 21, s) for s in range(5)
    ]
    assert (point["mean"], point["deviation"]) == pytest.approx((of_seed.mean(), of_seed.std(ddof=1)))
    assert (point["lowest"], point["highest"], point["num_problems"]) == (of_seed.min(), of_seed.max(), 7)


def test_one_seed_greedy_copies_and_seeds_without_a_common_problem_have_no_spread():
    drawn = [sample(temperature=1.0, seed=s, correct=s == 1) for s in (1, 2)]
    assert seed_spread(drawn)[0]["mean"] == 0.5
    assert seed_spread(drawn[:1]) == seed_spread([row | {"temperature": 0.0} for row in drawn]) == []
    other = drawn[1] | {"problem_id": "p1"}
    assert seed_spread([drawn[0], other]) == []
    (point,) = seed_spread([*drawn, other])
    assert (point["num_problems"], point["num_left_out"], point["mean"]) == (1, 1, 0.5)
