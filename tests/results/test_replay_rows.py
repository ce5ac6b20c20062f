"""`replay_rows.py`: from sample rows to the points of the rules."""

import random
import statistics
from pathlib import Path

import numpy as np
import pytest

from s1jax.results.metrics import voting_curve
from s1jax.results.replay_rows import RULES, ReplayConfig, replay
from s1jax.results.replay_table import format_replay_table
from s1jax.results.samples import pick
from s1jax.runtime.errors import UserError
from tests.support.figures import figures
from tests.support.samples import sample, study_rows

BUDGETS = (4, 8, 16)


def family(num_problems=3, num_samples=4, seed=0):
    """Traces of 1 to 20 tokens, with an answer under each budget."""
    rng = random.Random(seed)
    rows = []
    for i in range(num_problems):
        for s in range(num_samples):
            natural, answers = rng.randint(1, 20), [rng.choice([None, "1", "1", "2", "3"]) for _ in BUDGETS]
            for budget, answer in zip(BUDGETS, answers, strict=True):
                if natural < budget:  # every budget that the trace does not reach has its own answer
                    answer = answers[next(j for j, b in enumerate(BUDGETS) if natural < b)]
                columns = dict(extracted=answer, correct=answer == "1", num_thinking_tokens=min(natural, budget))
                columns |= dict(max_thinking_tokens=budget, num_answer_tokens=2, temperature=1.0)
                rows.append(sample(problem_id=f"p{i}", sample_index=s, **columns))
    return rows


def recorded(row):
    """Figures that follow from the row alone: thinking, a forced delimiter, two answer tokens and the id that ends the answer."""
    rng = random.Random(repr(pick(row, ("problem_id", "sample_index", "max_thinking_tokens"))))
    num_thinking = row["num_thinking_tokens"]
    confidences = [rng.randrange(8, 64) / 8 for _ in range(num_thinking)] + [99.0] * 4
    logprobs = [-9.0] * num_thinking + [0.0, -0.25, -0.5 * rng.random(), -9.0]
    return figures(confidences, [False] * num_thinking + [True, False, False, False], logprobs)


def points_of(replayed, rule):
    return [p for p in replayed.points if p["rule"] == rule]


def config(**fields):
    return ReplayConfig(Path("rows.jsonl"), **{"window": 3, "warm_up": 2} | fields)


def test_plain_votes_are_those_of_the_voting_curve():
    rows = family()
    found = points_of(replay(rows, config(), recorded), "votes")
    curve = [p for p in voting_curve(rows) if p["max_thinking_tokens"] == 16]
    assert [(p["k"], p["accuracy"]) for p in found] == [(p["k"], p["maj_at_k"]) for p in curve]
    assert [p["accuracy_low"] for p in found] == [p["maj_at_k_low"] for p in curve]
    whole = [row for row in rows if row["max_thinking_tokens"] == 16]
    mean = statistics.fmean(row["num_thinking_tokens"] + 2 for row in whole)
    assert [p["tokens"] for p in found] == pytest.approx([k * mean for k in (1, 2, 4)])
    assert [p["share"] for p in found] == [1, 1, 1]


def test_neither_the_order_of_rows_nor_a_second_run_changes_a_point():
    rows = family(num_samples=7)
    first = replay(rows, config(draws=30), recorded)
    assert first == replay(random.Random(1).sample(rows, len(rows)), config(draws=30), recorded)
    assert {p["rule"] for p in first.points} == {*RULES} and not first.left_out
    draws = {p["rule"]: p["draws"] for p in first.points}
    assert (draws["votes"], draws["agreement"], draws["shortest"], draws["online"]) == (None, None, 30, 30)  # of 35
    assert {p["draws"] for p in replay(rows, config(draws=35, rules=("shortest",)), recorded).points} == {None}
    assert "over 30 random subsets of the samples, not all: first to end (short-m@k), " in format_replay_table(first)
    assert first != replay(rows, config(draws=30, seed=1), recorded)


def test_early_stops_follow_the_budgets_of_each_trace():
    answers = [("1", 4, 4), ("2", 8, 8), ("2", 16, 12)]  # the third budget is not reached
    rows = [
        sample(extracted=a, correct=a == "1", max_thinking_tokens=budget, num_thinking_tokens=n, num_answer_tokens=2)
        for a, budget, n in answers
    ]
    rows += [rows[-1] | {"max_thinking_tokens": 32}]
    replayed = replay(rows, config(rules=("agreement", "answer_confidence"), threshold=(0.6, 0.99)), recorded)
    two, three = points_of(replayed, "agreement")
    # No two equal answers before the end of the trace: 12 tokens, and three answers. The fourth budget is the same answer again.
    assert (two["tokens"], three["tokens"], two["accuracy"], two["share"]) == (18, 18, 0, 18 / 14)
    sure, surer = points_of(replayed, "answer_confidence")  # the first answer has a probability of 0.69 to 0.88
    assert (sure["tokens"], sure["accuracy"]) == (6, 1) and (surer["tokens"], surer["accuracy"]) == (18, 0)
    rows[1] |= {"extracted": "1", "correct": True}
    two, three = points_of(replay(rows, config(rules=("agreement",)), recorded), "agreement")
    assert (two["tokens"], two["accuracy"], three["tokens"], three["accuracy"]) == (12, 1, 18, 0)


def test_the_answer_is_what_lies_before_the_id_that_ended_it():
    def probability(reason, logprobs):
        rows = [
            sample(max_thinking_tokens=b, num_thinking_tokens=b, num_answer_tokens=2, finish_reason=reason)
            for b in (2, 4)
        ]
        given = figures([1.0] * len(logprobs), logprobs=logprobs)
        settings = config(rules=("answer_confidence",), threshold=(0.7, 0.8))
        return [p["tokens"] for p in replay(rows, settings, lambda row: given).points]

    stops, goes_on = 2 + 2, 4 + 2 * 2
    assert probability("stop", [-9, -9, -9, *np.log([0.75, 0.75]), -9]) == [stops, goes_on]
    assert probability("length", [-9, -9, -9, -9, *np.log([0.75, 0.75])]) == [stops, goes_on]


def test_rules_without_what_they_need_are_left_out_with_the_reason():
    rows = family(num_samples=2)
    without = replay(rows, config(), lambda row: None)
    assert {p["rule"] for p in without.points} == {"votes", "shortest", "agreement"}
    why = {p["rule"]: p["why"] for p in without.left_out}
    assert why["confidence"] == why["online"] == "6 of 6 traces have no per-token figures"
    assert "have no per-token figures" in why["answer_confidence"]
    few = {p["rule"]: p["why"] for p in replay(rows, config(), recorded).left_out}
    assert few == {"online": "it needs at least 3 votes, and the problems have 2 samples each"}
    (low,) = replay(family(), config(votes=(2,), rules=("online",)), recorded).left_out
    assert low["why"] == "it needs at least 3 votes: raise --votes, up to 4 samples of each problem"
    lone = [row for row in rows if row["max_thinking_tokens"] == 16 and row["sample_index"] == 0]
    alone = {p["rule"]: p["why"] for p in replay(lone, config(), recorded).left_out}
    assert {*alone} == {*RULES} - {"votes"} and "several budgets" in alone["agreement"] == alone["answer_confidence"]
    gap = [row for row in rows if row is not rows[0]]
    holed = {p["rule"]: p["why"] for p in replay(gap, config(), recorded).left_out}
    assert "1 of 6 traces lack the answers under some of the 3 budgets" in holed["agreement"]
    table = format_replay_table(without)
    assert "left out: weighted votes (DeepConf): 6 of 6 traces have no per-token figures" in table


def test_confidence_is_that_of_the_thinking():
    def changed(row, part):
        records = recorded(row)
        records["confidence"][part(row)] *= 0.25 * (1 + row["sample_index"])
        return records

    rows, settings = family(), config(rules=("confidence", "online"), votes=(3,))
    plain = replay(rows, settings, recorded)
    answers = replay(rows, settings, lambda row: changed(row, lambda row: slice(row["num_thinking_tokens"], None)))
    thinking = replay(rows, settings, lambda row: changed(row, lambda row: slice(row["num_thinking_tokens"])))
    assert answers == plain != thinking


def test_figures_are_read_only_where_a_rule_needs_them():
    rows, read = family(), []
    replay(rows, config(rules=("votes", "shortest", "agreement")), read.append)
    assert read == []
    replay(rows, config(rules=("confidence",)), lambda row: read.append(row) or recorded(row))
    assert len(read) == 12 and {row["max_thinking_tokens"] for row in read} == {16}


def test_settings_and_methods_are_replayed_apart():
    rows = study_rows(samples=2, models=("m", "n"))
    rows += [
        sample(method="rejection_sampling", max_tries=4, temperature=1.0, max_thinking_tokens=b, num_rejected_tokens=7)
        for b in (8, 16)
    ]
    replayed = replay(rows, config(), lambda row: None)
    families = {pick(p, ("model", "method", "num_ignore", "max_thinking_tokens")) for p in replayed.points}
    forcing = {(model, "budget_forcing", ignore, 64) for model in "mn" for ignore in (0, 1, 2)}
    assert families == forcing | {("m", "rejection_sampling", 0, b) for b in (8, 16)}
    rejected = [p for p in replayed.points if p["method"] == "rejection_sampling"]
    assert {p["tokens"] for p in rejected} == {22.0}  # 10 of thinking, 5 of the answer, 7 of rejected traces


def test_given_numbers_of_votes_hold_for_every_rule():
    replayed = replay(family(), config(votes=(3, 2, 9)), recorded)
    assert {p["k"] for p in replayed.points if p["rule"] != "online"} == {2, 3}
    assert {p["k"] for p in points_of(replayed, "online")} == {3}
    with pytest.raises(UserError, match="votes is 9; the rows hold at most 4 samples per problem"):
        replay(family(), config(votes=(9,)), recorded)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"votes": (0,)}, "votes is 0"),
        ({"equal_answers": (1,)}, "equal_answers is 1"),
        ({"keep": (0.5, 1.0)}, "keep is 1.0; it must be above 0 and below 1"),
        ({"threshold": (0.0,)}, "threshold is 0.0"),
        ({"threshold": (float("nan"),)}, "threshold is nan"),
        ({"window": 0}, "window is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"shortest": ()}, "shortest is empty"),
        ({"rules": ()}, "rules is empty"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        config(**fields)


def test_the_table_is_aligned_and_names_nothing_that_a_terminal_obeys():
    rows = [row | {"model": "m\x1b[2J"} for row in family()]
    table = format_replay_table(replay(rows, config(), recorded))
    lines = table.splitlines()
    assert lines[0] == "toy, m\\x1b[2J, budget_forcing, temperature 1, budget 16"
    assert len({len(line) for line in lines[1:]}) == 1 and table.replace("\n", "").isprintable()


def test_settings_without_anything_to_replay_are_counted():
    rows = [sample(max_thinking_tokens=16), sample(benchmark="b"), *family()]
    table = format_replay_table(replay(rows, config(), recorded))
    assert table.splitlines()[0].startswith("toy, m, budget_forcing, temperature 1")
    assert table.endswith("nothing to replay under 2 other settings: one sample per problem and one budget")
