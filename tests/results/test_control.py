"""`control.py` of results: Control, Scaling and Performance of each method's curve."""

import pytest

from s1jax.data.condition import Condition
from s1jax.results.control import summarise_curves, thinking_bounds
from s1jax.results.metrics import thinking_curve
from s1jax.results.samples import CURVE
from s1jax.results.tables import format_thinking_table, groups
from tests.support.samples import sample


def bounds(budget, unprompted=None, **settings):
    return thinking_bounds(vars(Condition(budget, **settings)), unprompted)


def test_each_method_has_its_bounds():
    assert bounds(64, min_thinking_tokens=8) == (8, 64)
    assert bounds(9000, method="token_conditional", requested="1024") == (0, 1024)
    assert bounds(1024, method="token_conditional_forced", requested="1024") == (0, 1024)
    assert bounds(9000, method="step_conditional", requested="16") == (0, 1600)
    assert bounds(9000, method="step_conditional_forced", requested="16") == (0, 1600)
    assert bounds(1000, method="step_conditional_forced", requested="16") == (0, 1000)
    assert bounds(9000, 500.0, method="class_conditional", requested="short") == (0, 500)
    assert bounds(9000, 500.0, method="class_conditional", requested="long") == (500, float("inf"))
    assert bounds(9000, method="class_conditional", requested="long") is None
    assert bounds(900, method="class_conditional_forced", requested="long") == (0, 900)
    assert bounds(3500, method="rejection_sampling", temperature=1.0, max_tries=9) == (0, 3500)


# Smallest amount asked for, thinking tokens and accuracy of the paper's points on AIME24, and their Control and Scaling (table 3).
PUBLISHED = {
    "token_conditional": (1024, [7939, 7158, 8263, 7108, 7500], [26.7, 30, 33.3, 33.3, 40], 40, -24),
    "token_conditional_forced": (1024, [1024, 2048, 4031, 5664, 6330], [3.3, 30, 33.3, 33.3, 40], 100, 13),
    "step_conditional": (16, [7252, 6277, 5396, 5552, 7551], [33.3, 23.3, 33.3, 36.7, 33.3], 60, 3),
    "step_conditional_forced": (16, [1517, 2963, 4636, 5409, 7551], [23.3, 23.3, 33.3, 36.7, 33.3], 100, 6),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_rows_with_the_published_points_give_the_published_control(method):
    smallest, tokens, accuracies, control, scaling = PUBLISHED[method]
    asked = [smallest * 2**i for i in range(5)]
    rows = [
        sample(
            method=method, requested=str(asked[i]), problem_id=f"p{j}",
            max_thinking_tokens=asked[i] if method == "token_conditional_forced" else 32768,
            num_thinking_tokens=tokens[i], correct=j < round(0.3 * accuracies[i]), extracted="1",
        )
        for i in range(5)
        for j in range(30)
    ]  # fmt: skip
    (summary,) = summarise_curves(rows)
    assert 100 * summary["control"] == control
    assert 100 * summary["scaling_per_doubling"] == pytest.approx(scaling, abs=0.6)
    assert [int(p["requested"]) for p in thinking_curve(rows)] == asked


def test_classes_are_compared_with_the_same_model_without_a_prompt():
    classes = [
        sample(method="class_conditional", requested=r, num_thinking_tokens=n) for r, n in (("short", 30), ("long", 40))
    ]
    (alone,) = summarise_curves(classes)
    assert alone["control"] is None and alone["control_per_sample"] is None
    plain = [sample(num_thinking_tokens=35), sample(max_thinking_tokens=8, num_thinking_tokens=8)]
    other = sample(model="another", weights="ff", num_thinking_tokens=10)

    def control_of_classes(*others):
        rows = [*classes, *others]
        curves = groups(thinking_curve(rows), *CURVE)
        (summary,) = (
            s for c, s in zip(curves, summarise_curves(rows), strict=True) if c[0]["method"] == "class_conditional"
        )
        return summary["control"]

    assert control_of_classes(*plain, other) == 1
    assert control_of_classes(sample(num_thinking_tokens=50)) == 0.5
    # A smaller budget, other problems and another model tell nothing.
    assert control_of_classes(plain[1]) is control_of_classes(other) is None
    assert control_of_classes(sample(num_thinking_tokens=35, problem_id="p9")) is None
    table = format_thinking_table(classes)
    assert "Control - (- of samples)" in table


def test_a_rejected_sample_is_out_of_bounds_and_no_fault_of_the_budget():
    settings = dict(method="rejection_sampling", max_tries=3, temperature=1.0, max_thinking_tokens=16)
    rows = [
        sample(**settings, num_tries=2, num_rejected_tokens=17, num_thinking_tokens=16),
        sample(
            **settings, problem_id="p1", num_tries=3, num_rejected_tokens=51, num_thinking_tokens=17, finish_reason="rejected",
            extracted=None, correct=False, answer_text="",
        ),
    ]  # fmt: skip
    (point,) = thinking_curve(rows)
    assert (point["mean_tries"], point["mean_rejected_tokens"], point["num_rejected"]) == (2.5, 34, 1)
    assert (point["num_over_budget"], point["num_budget_ended"]) == (0, 0)
    assert summarise_curves(rows)[0]["control_per_sample"] == 0.5
    table = format_thinking_table(rows)
    assert "none accepted" in table and "every trace was too long" in table and "raise --max-tries above 3" in table


def test_steps_are_counted_against_what_was_asked_for():
    def trace(n):
        return "<|im_start|>".join(f"{k} steps left\nx\n" for k in range(n, 0, -1))

    settings = dict(method="step_conditional", requested="2", thinking_format="steps")
    rows = [sample(**settings, problem_id=f"p{n}", thinking=trace(n)) for n in (0, 2, 4)]
    (point,) = thinking_curve(rows)
    assert (point["mean_steps"], point["num_steps_over"], point["num_without_steps"]) == (2, 1, 1)


def test_several_curves_are_compared_in_one_table():
    rows = [sample(max_thinking_tokens=b, num_thinking_tokens=b, correct=b > 8) for b in (8, 16)]
    rows += [
        sample(method="token_conditional", requested=r, num_thinking_tokens=12, correct=False) for r in ("8", "16")
    ]
    *_, table = format_thinking_table(rows).split("\n\n")
    _, header, _, first, second = table.splitlines()
    assert header.split()[:2] == ["curve", "Control"]
    assert first.startswith("budget_forcing ") and first.split()[-4:] == ["100%", "100%", "+100.0", "100.0%"]
    assert second.startswith("token_conditional ") and second.split()[-4:] == ["50%", "50%", "-", "0.0%"]
    assert "asked for 16 tokens, budget 64" in format_thinking_table(rows)
