"""`metrics.py`: intervals, the points of curves and the paper's three figures."""

import numpy as np
import pytest

from s1jax.results.control import control, scaling, summarise_curves
from s1jax.results.metrics import mean_interval, thinking_curve, voting_curve
from s1jax.results.samples import SETTING, distinct_samples
from s1jax.results.votes import pass_at_k
from tests.support.samples import sample


def test_one_sample_per_problem_gives_the_wilson_interval():
    assert mean_interval([1.0] * 15 + [0.0] * 15, 30) == pytest.approx((0.5, 0.3315, 0.6685), abs=1e-4)
    assert mean_interval([0.0] * 30, 30) == pytest.approx(
        (0, 0, 0.1135), abs=1e-4
    )  # 30 problems of AIME24, none solved
    assert mean_interval([1.0] * 30, 900) == pytest.approx((1, 0.8865, 1), abs=1e-4)


def test_more_samples_narrow_an_interval_only_as_far_as_problems_agree():
    def width(values, units=None):
        _, low, high = mean_interval(values, units or len(values))
        return high - low

    one_each = width([1.0, 0.0] * 10)
    assert width([1.0, 0.0] * 10, 20 * 16) == one_each  # 16 equal samples of each problem say nothing new
    assert width([0.6, 0.4] * 10, 20 * 16) < 0.6 * one_each
    apart = width([1.0, 0.0] * 160)  # never narrower than all samples drawn apart
    assert width([0.5] * 20, 20 * 16) == pytest.approx(apart)
    assert width([0.5] * 19 + [0.51], 20 * 16) == pytest.approx(apart, rel=1e-3)


@pytest.mark.parametrize(("a", "b", "samples"), [(2, 2, 1), (2, 2, 8), (8, 2, 4), (20, 1, 4)])
def test_intervals_cover_the_truth_about_95_times_in_100(a, b, samples):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values = rng.binomial(samples, rng.beta(a, b, size=30)) / samples
        _, low, high = mean_interval(values.tolist(), 30 * samples)
        covered += low <= a / (a + b) <= high
    assert 0.91 <= covered / 400 <= 0.99


BUDGETS = [1024, 2048, 4096, 8192, 16384]
STEPS = [1600, 3200, 6400, 12800, 25600]  # 16 to 256 steps of about 100 tokens
PUBLISHED = {
    "budget forcing": (
        [500, 1000, 2000, 3933, 5300, 6657, 7320],
        [0, 13.3, 30, 43.3, 50, 53.3, 56.7],
        [500, 1000, 2000, 4000, 8000, 8000, 8000],
        (100, 15, 56.7),
        14.8,
    ),
    "token-conditional": ([7939, 7158, 8263, 7108, 7500], [26.7, 30, 33.3, 33.3, 40], BUDGETS, (40, -24, 40), -23.4),
    "token-conditional, forced": (
        [1024, 2048, 4031, 5664, 6330],
        [3.3, 30, 33.3, 33.3, 40],
        BUDGETS,
        (100, 13, 40),
        13.2,
    ),
    "step-conditional": ([7252, 6277, 5396, 5552, 7551], [33.3, 23.3, 33.3, 36.7, 33.3], STEPS, (60, 3, 36.7), 3.0),
    "step-conditional, forced": (
        [1517, 2963, 4636, 5409, 7551],
        [23.3, 23.3, 33.3, 36.7, 33.3],
        STEPS,
        (100, 6, 36.7),
        6.4,
    ),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_table_3_follows_from_its_points(method):
    tokens, accuracies, limits, (published_control, published_scaling, best), exact = PUBLISHED[method]
    assert 100 * control(tokens, [(0, limit) for limit in limits]) == pytest.approx(published_control)
    # The table is rounded, and so are the token counts it was published with.
    assert scaling(tokens, accuracies) == pytest.approx(exact, abs=0.05)
    assert exact == pytest.approx(published_scaling, abs=1)
    assert max(accuracies) == best


def test_scaling_is_the_mean_slope_over_all_pairs_of_different_counts():
    assert scaling([400, 100, 200, 200], [0.5, 0.0, 0.1, 0.1]) == pytest.approx((0.25 + 2 * 0.1 + 2 * 0.4) / 5)


def test_scaling_per_token_is_the_plain_mean_slope():
    assert scaling([100, 200, 400], [0.0, 0.1, 0.5], per="token") == pytest.approx(
        (0.1 / 100 + 0.4 / 200 + 0.5 / 300) / 3
    )


def test_two_counts_above_zero_are_needed_for_a_slope():
    assert scaling([5, 5], [0.1, 0.2]) is None and scaling([0, 5], [0.1, 0.2]) is None


def test_a_point_pools_one_setting_only_and_weighs_problems_equally():
    setting = {"temperature": 1.0, "num_ignore": 1, "ignore_text": "Hmm"}
    rows = [sample(**setting, sample_index=i, correct=True, num_thinking_tokens=64) for i in range(3)]
    rows += [sample(**setting, problem_id="p1", correct=False, extracted=None, num_thinking_tokens=4)]
    others = {"benchmark": "b", "model": "n", "weights": "w", "tokenizer": "t", "method": "x", "temperature": 0.5}
    others |= {"max_thinking_tokens": 128, "min_thinking_tokens": 1, "num_ignore": 2, "ignore_text": "Wait"}
    others |= {"top_k": 5, "top_p": 0.5, "min_p": 0.5, "max_answer_tokens": 9, "dtype": "float32", "int8": ("cache",)}
    others |= {"thinking_format": "think", "wrap_up": "", "prompt_suffix": "s", "system_prompt": "p"}
    others |= {"requested": "8", "max_tries": 2}
    assert set(others) == set(SETTING)
    rows += [sample(**setting | {name: value}) for name, value in others.items()]
    points = thinking_curve(rows)
    assert len(points) == 1 + len(others)
    (point,) = (p for p in points if p["num_problems"] == 2)
    assert (point["n"], point["accuracy"], point["mean_thinking_tokens"]) == (4, 0.5, 34)
    assert (point["num_budget_ended"], point["num_over_budget"]) == (3, 0)
    assert point["accuracy_low"] < 0.2 and point["accuracy_high"] > 0.8


def test_greedy_copies_are_no_samples():
    rows = [
        sample(
            problem_id=f"p{i}", seed=seed, sample_index=index, correct=seed == 0, num_thinking_tokens=80 * (seed > 0)
        )
        for i in range(2)
        for seed, index in ((0, 0), (1, 0), (0, 1))
    ]
    (point,) = thinking_curve(rows)
    assert (point["n"], point["accuracy"], point["num_over_budget"]) == (2, 1, 0)
    assert distinct_samples(rows) == rows[::3] and voting_curve(rows) == []
    assert summarise_curves(rows)[0]["control_per_sample"] == 1
    drawn = [row | {"temperature": 0.5} for row in rows]
    assert distinct_samples(drawn) == drawn and voting_curve(drawn)[-1]["num_samples"] == 3


def test_an_ignore_text_is_part_of_a_setting_only_where_it_is_used():
    texts = ("Wait", "Hmm", "")
    for temperature in (0.0, 1.0):
        (point,) = thinking_curve([sample(ignore_text=text, temperature=temperature) for text in texts])
        assert (point["n"], point["ignore_text"]) == (1, "")
    for used in ({"num_ignore": 1}, {"min_thinking_tokens": 1}):
        points = thinking_curve([sample(ignore_text=text, **used) for text in texts])
        assert [point["ignore_text"] for point in points] == sorted(texts)


def test_thinking_past_the_budget_is_seen():
    (point,) = thinking_curve([sample(num_thinking_tokens=64), sample(problem_id="p1", num_thinking_tokens=65)])
    assert (point["num_budget_ended"], point["num_over_budget"]) == (2, 1)


def test_voting_points_double_up_to_the_fewest_samples_of_any_problem():
    rows = [sample(sample_index=i, correct=i < 3, extracted="1" if i < 3 else f"no{i}") for i in range(9)]
    rows += [sample(problem_id="p1", sample_index=i, correct=i == 0, extracted=str(1 + (i > 0))) for i in range(5)]
    rows = [row | {"temperature": 1.0} for row in rows]
    rows += [sample(model="greedy"), sample(model="greedy", problem_id="p1")]
    points = voting_curve(rows)
    assert [(p["model"], p["k"], p["num_samples"]) for p in points] == [("m", k, 5) for k in (1, 2, 4)]
    first, _, last = points
    assert first["maj_at_k"] == pytest.approx((3 / 9 + 1 / 5) / 2) == pytest.approx(first["pass_at_k"])
    assert last["pass_at_k"] == pytest.approx((pass_at_k(9, 3, 4) + pass_at_k(5, 1, 4)) / 2)
    assert last["maj_at_k_low"] < last["maj_at_k"] < last["pass_at_k"] < last["pass_at_k_high"]


def test_a_summary_counts_control_by_run_average_and_by_sample():
    rows = [
        sample(max_thinking_tokens=8, num_thinking_tokens=n, problem_id=f"p{n > 8}", correct=False) for n in (0, 12)
    ]
    rows += [
        sample(max_thinking_tokens=16, min_thinking_tokens=6, num_thinking_tokens=n, problem_id=f"p{n > 8}")
        for n in (4, 20)
    ]
    (summary,) = summarise_curves(rows)
    assert (summary["control"], summary["control_per_sample"], summary["performance"]) == (1, 0.25, 1)
    assert summary["scaling_per_doubling"] == pytest.approx(1)
    (lone,) = summarise_curves(rows[:2])
    assert lone["scaling_per_doubling"] is None and lone["scaling_per_token"] is None


def test_points_over_different_problems_have_no_slope():
    rows = [sample(max_thinking_tokens=n, num_thinking_tokens=n, correct=n > 4) for n in (4, 8)]
    assert summarise_curves(rows)[0]["scaling_per_doubling"] == 1
    (summary,) = summarise_curves([*rows, sample(max_thinking_tokens=8, problem_id="p1")])
    assert summary["scaling_per_doubling"] is None and summary["scaling_per_token"] is None


def test_a_point_without_thinking_has_no_doubling():
    rows = [sample(max_thinking_tokens=n, num_thinking_tokens=n, correct=n > 4, extracted="1") for n in (0, 4, 8)]
    (summary,) = summarise_curves(rows)
    assert summary["scaling_per_doubling"] == 1


def test_a_rejected_sample_is_no_answer_that_was_not_found():
    rows = [sample(problem_id=f"p{i}", extracted=None, correct=False, method="rejection_sampling") for i in range(3)]
    rows = [row | {"finish_reason": "rejected" if i else "stop", "num_tries": 2} for i, row in enumerate(rows)]
    (point,) = thinking_curve(rows)
    assert (point["num_not_found"], point["num_rejected"]) == (1, 2)
