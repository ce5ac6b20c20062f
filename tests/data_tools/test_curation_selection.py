"""`selection.py` against algorithm 1 of s1, whose probabilities are enumerated here, and against its distributions.

The statistical tests have fixed seeds, and a level of 0.001. Each states the deviation that it would find with a probability of 99%.
"""

import random
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from data_tools.curation.selection import Candidate, SelectionConfig, check_stages, select, stage
from s1jax.runtime.errors import UserError
from tests.support.curation import pool_of, verdicts_of

LEVEL = 0.001
PRESELECT = dict(benchmark_sources=("AIME", "GPQA"), long_sources=("MATH",), min_long_tokens=5600)


def pool(seed=0, num=200):
    rng = random.Random(seed)
    return [
        Candidate(
            id=f"{i:016x}",
            question=f"question {i}",
            source=rng.choice(["AIME 1983-2021", "GPQA", "MATH", "OmniMath", "xword"]),
            domain=rng.choice(["11 Number theory", "05 Combinatorics", "Physics", ""]),
            num_thinking_tokens=rng.randrange(1, 12_000),
            correct=rng.choice([True, False, None]),
        )
        for i in range(num)
    ]


def chosen_ids(rows, config):
    return {rows[i].id for i in select(rows, config)}


def p_value(counts, shares):
    """The p-value of counts under these probabilities, by a chi-square test."""
    assert min(shares) * sum(counts) >= 5
    return stats.chisquare(counts, np.array(shares) * sum(counts)).pvalue


def power(num, shares, others):
    """The probability that a chi-square test at LEVEL rejects `shares` where `others` hold."""
    shares, others = np.array(shares), np.array(others)
    effect = num * ((others - shares) ** 2 / shares).sum()
    return stats.ncx2.sf(stats.chi2.isf(LEVEL, len(shares) - 1), len(shares) - 1, effect)


# ---- algorithm 1, enumerated ----


def sets_with_probabilities(rows, config):
    """Every set of ids that algorithm 1 may choose, with its probability: a direct reading of the paper."""

    def begins(row, names):
        return any(row.source.startswith(name) for name in names)

    first = set()
    if config.method != "diverse":
        for row in rows:
            is_long = begins(row, config.long_sources) and row.num_thinking_tokens > config.min_long_tokens
            if row.correct and (begins(row, config.benchmark_sources) or is_long):
                first.add(row.id)
    share = Counter(row.domain for row in rows if begins(row, config.benchmark_sources))
    states = {frozenset(first): Fraction(1)}
    for count in range(len(first), config.num):
        after = Counter()
        for chosen, probability in states.items():
            domains = {}
            for row in sorted(rows, key=lambda row: -row.num_thinking_tokens):
                if row.id not in chosen:
                    domains.setdefault(row.domain, []).append(row.id)
            weights = dict.fromkeys(domains, 1)
            if config.method == "s1k_released" and count >= 0.7 * config.num and any(share[name] for name in domains):
                weights = {name: share[name] for name in domains}
            for name, ids in domains.items():
                ranks = [Fraction(1, 2**rank) for rank in range(len(ids))]
                for rank, row_id in zip(ranks, ids, strict=True):
                    part = Fraction(weights[name], sum(weights.values())) * rank / sum(ranks)
                    after[chosen | {row_id}] += probability * part
        states = after
    return {ids: float(probability) for ids, probability in states.items() if probability}


SMALL = [
    Candidate("a1", "", "AIME", "A", 900, True),
    Candidate("a2", "", "AIME", "A", 800, False),
    Candidate("a3", "", "MATH", "A", 5600, True),
    Candidate("a4", "", "GPQA", "A", 300, None),
    Candidate("b1", "", "MATH", "B", 5601, True),
    Candidate("b2", "", "MATH", "B", 5700, False),
    Candidate("b3", "", "GPQA", "B", 100, False),
    Candidate("c1", "", "xword", "C", 9000, True),
]


@pytest.mark.parametrize(("method", "num"), [("s1k", 4), ("s1k", 7), ("s1k_released", 5), ("diverse", 3)])
def test_each_set_of_rows_is_chosen_as_often_as_algorithm_1_says(method, num):
    expected = sets_with_probabilities(SMALL, SelectionConfig(method, num, **PRESELECT))
    counts = Counter(
        frozenset(chosen_ids(SMALL, SelectionConfig(method, num, seed, **PRESELECT))) for seed in range(4000)
    )
    assert counts.keys() <= expected.keys()
    common = [ids for ids, probability in expected.items() if probability * 4000 >= 5]
    observed = [counts[ids] for ids in common]
    shares = [expected[ids] for ids in common]
    if len(common) < len(expected):
        observed, shares = [*observed, 4000 - sum(observed)], [*shares, 1 - sum(shares)]
        if shares[-1] * 4000 < 5:  # joined with the rarest of the others
            observed, shares = [*observed[:-2], sum(observed[-2:])], [*shares[:-2], sum(shares[-2:])]
    assert p_value(observed, shares) > LEVEL


def test_the_enumeration_tells_the_methods_apart():
    """Power: 4,000 seeds tell `s1k_released` from `s1k`, so the test above would find a histogram that is not used."""
    one, other = (sets_with_probabilities(SMALL, SelectionConfig(m, 5, **PRESELECT)) for m in ("s1k", "s1k_released"))
    common = [ids for ids in one if one[ids] * 4000 >= 5]
    assert power(4000, [one[ids] for ids in common], [other.get(ids, 0) for ids in common]) > 0.99


# ---- distributions ----


def test_the_first_domain_is_uniform_whatever_the_sizes_of_the_domains():
    """Power: one domain of eight with a share of 0.165 in place of 0.125 is found with a probability of 99%."""
    sizes = [1, 2, 3, 5, 8, 40, 80, 200]
    rows = [Candidate(f"{d}-{i}", "", "", f"{d}", i) for d, size in enumerate(sizes) for i in range(size)]
    seeds = 4000
    firsts = Counter(rows[i].domain for seed in range(seeds) for i in select(rows, SelectionConfig("diverse", 1, seed)))
    assert p_value([firsts[f"{d}"] for d in range(8)], [1 / 8] * 8) > LEVEL
    assert power(seeds, [1 / 8] * 8, [0.165] + [0.835 / 7] * 7) > 0.99


def test_within_one_draw_the_domains_are_uniform_and_independent():
    """Power: a domain that follows itself with a probability of 0.24 in place of 0.2 is found with a probability of 99%."""
    rows = [Candidate(f"{d}-{i}", "", "", f"{d}", i) for d in range(5) for i in range(6000)]
    domains = [rows[i].domain for i in select(rows, SelectionConfig("diverse", 8000, seed=3))]
    counts = Counter(domains)
    assert p_value([counts[f"{d}"] for d in range(5)], [1 / 5] * 5) > LEVEL
    same = sum(one == next_one for one, next_one in pairwise(domains))
    assert p_value([same, 7999 - same], [0.2, 0.8]) > LEVEL
    assert power(7999, [0.2, 0.8], [0.24, 0.76]) > 0.99


@pytest.mark.parametrize("draw", [0, 1])
def test_ranks_follow_powers_of_two_with_the_longest_trace_first_also_after_a_row_was_taken(draw):
    """Power: weights of 1.8^-rank are found with a probability of 99%."""
    rows = [Candidate(f"{i:02}", "", "", "d", 100 - i) for i in range(12)]
    seeds, ranks = 4000, Counter()
    for seed in range(seeds):
        order = list(select(rows, SelectionConfig("diverse", draw + 1, seed)))
        left = [i for i in range(12) if i not in order[:draw]]
        ranks[min(left.index(order[draw]), 8)] += 1

    def shares(base):
        weights = base ** -np.arange(12 - draw, dtype=float)
        return [*(weights[:8] / weights.sum()), weights[8:].sum() / weights.sum()]

    assert p_value([ranks[rank] for rank in range(9)], shares(2)) > LEVEL
    assert power(seeds, shares(2), shares(1.8)) > 0.99


def test_late_domains_of_the_released_code_follow_the_benchmark_rows():
    """Power: uniform domains in place of the shares 0.1, 0.3 and 0.6 are found with a probability of 99%."""
    rows = [Candidate(f"{d}-{i}", "", "other", f"{d}", i) for d in range(4) for i in range(2000)]
    rows += [Candidate(f"b{i}", "", "GPQA", f"{d}", 0) for i, d in enumerate([0] * 10 + [1] * 30 + [2] * 60)]
    order = list(select(rows, SelectionConfig("s1k_released", 1000, seed=1)))
    early, late = (Counter(rows[i].domain for i in part) for part in (order[:700], order[700:]))
    assert p_value([early[f"{d}"] for d in range(4)], [1 / 4] * 4) > LEVEL
    assert late["3"] == 0
    assert p_value([late[f"{d}"] for d in range(3)], [0.1, 0.3, 0.6]) > LEVEL
    assert power(300, [0.1, 0.3, 0.6], [1 / 3] * 3) > 0.99


def test_a_random_selection_takes_each_row_equally_often():
    """Power: one row of twenty that is taken 1.5 times as often as the others is found with a probability of 99%."""
    rows, seeds = pool(num=20), 1200
    counts = Counter(i for seed in range(seeds) for i in select(rows, SelectionConfig("random", 5, seed)))
    # Draws without replacement vary less than a multinomial: by the factor (20 - 5) / (20 - 1), which scales the statistic.
    observed = np.array([counts[i] for i in range(20)])
    expected = seeds * 5 / 20
    statistic = ((observed - expected) ** 2 / expected).sum() * 19 / 15
    assert stats.chi2.sf(statistic, 19) > LEVEL
    others = np.array([1.5] + [1.0] * 19)
    assert power(seeds * 5 * 19 / 15, [1 / 20] * 20, others / others.sum()) > 0.99


# ---- rules ----


@pytest.mark.parametrize("method", ["s1k", "s1k_released"])
@pytest.mark.parametrize("seed", range(5))
def test_each_preselected_row_is_chosen_and_marked_and_no_other_is_marked(method, seed):
    rows = pool(seed)
    chosen = select(rows, SelectionConfig(method, 120, seed))
    marked = {i for i, how in chosen.items() if how == "preselected"}
    assert marked == {
        i
        for i, row in enumerate(rows)
        if row.correct is True
        and (row.source in ("AIME 1983-2021", "GPQA") or (row.source == "MATH" and row.num_thinking_tokens >= 5601))
    }
    assert 20 < len(marked) < 60 and len(chosen) == 120


def test_of_too_many_preselected_rows_only_these_are_drawn(caplog):
    rows = pool()
    num_preselected = sum(how == "preselected" for how in select(rows, SelectionConfig("s1k", 150)).values())
    chosen = select(rows, SelectionConfig("s1k", 10))
    assert len(chosen) == 10 < num_preselected and set(chosen.values()) == {"preselected"}
    assert f"{num_preselected} rows are preselected: 10 of them are drawn" in caplog.text


def test_a_rule_that_preselects_no_row_is_said(caplog):
    rows = [row._replace(source="mine") for row in pool()]
    assert len(select(rows, SelectionConfig("s1k", 10))) == 10
    assert "no row is preselected: none of AIME, GPQA, MATH has a correct trace that the rule takes" in caplog.text


def test_the_longest_and_the_full_selection_are_what_they_say():
    rows = pool()
    longest = sorted(rows, key=lambda row: -row.num_thinking_tokens)[:30]
    assert chosen_ids(rows, SelectionConfig("longest", 30)) == {row.id for row in longest}
    assert len(select(rows, SelectionConfig("full", 3))) == len(rows)


@pytest.mark.parametrize("method", ["s1k", "s1k_released", "diverse", "random", "longest"])
def test_every_size_can_be_chosen_by_a_function_of_the_seed_and_not_of_the_order(method):
    rows = pool(1)
    rows[10] = rows[10]._replace(num_thinking_tokens=rows[11].num_thinking_tokens)
    for num in (1, 50, 199, 200):
        config = SelectionConfig(method, num, seed=3)
        assert chosen_ids(rows, config) == chosen_ids(rows[::-1], config)
        assert len(chosen_ids(rows, config)) == num
    if method != "longest":
        assert chosen_ids(rows, SelectionConfig(method, 50, 3)) != chosen_ids(rows, SelectionConfig(method, 50, 4))


def test_rows_of_two_sources_that_number_alike_are_told_apart():
    rows = [Candidate("0", f"question {i}", "", "d", 5) for i in range(6)]
    assert sorted(select(rows, SelectionConfig("diverse", 6))) == list(range(6))
    assert chosen_ids(rows, SelectionConfig("diverse", 2)) == {"0"}
    assert {rows[i].question for i in select(rows, SelectionConfig("diverse", 2))} == {
        rows[::-1][i].question for i in select(rows[::-1], SelectionConfig("diverse", 2))
    }


def test_too_few_rows_are_refused_with_their_counts_per_domain():
    rows = [Candidate(f"{i}", "", "", "d" if i < 3 else "", i) for i in range(5)]
    with pytest.raises(UserError, match=r"cannot choose 6 rows: only 5 are left \(by domain: d 3, \(none\) 2\)"):
        select(rows, SelectionConfig("diverse", 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num=0), "num is 0: it must be at least 1"),
        (dict(method="best"), "method is 'best'"),
        (dict(min_long_tokens=-1), "min_long_tokens is -1"),
        (dict(benchmark_sources=("AIME", "")), "hold an empty name"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SelectionConfig(**changes)


# ---- the stage ----


def dicts(rows):
    return [row._asdict() | {"correct": bool(row.correct)} for row in rows]


def test_the_stage_keeps_the_selected_rows_and_counts_those_of_the_domain_for_the_others(tmp_path):
    rows = [row._replace(correct=bool(row.correct)) for row in pool(num=30)]
    config = SelectionConfig("s1k", 12)
    result, found = verdicts_of(stage(config), pool_of(tmp_path, dicts(rows)), tmp_path)
    chosen = select(rows, config)
    assert [row["row"] for row in found if row["reason"] is None] == sorted(chosen)
    assert result.summary["reasons"] == {"not drawn": 18}
    first = next(row for row in found if row["reason"])
    domain = rows[first["row"]].domain
    of_domain = [i for i, row in enumerate(rows) if row.domain == domain]
    num_chosen = sum(i in chosen for i in of_domain)
    assert first["detail"] == f"{num_chosen} of {len(of_domain)} rows of domain {domain or '(none)'} are chosen"


@pytest.mark.parametrize(
    ("method", "column"), [("random", "correct"), ("random", "num_thinking_tokens"), ("diverse", "correct")]
)
def test_a_method_needs_only_the_columns_that_it_reads(method, column, tmp_path):
    rows = [{name: value for name, value in row.items() if name != column} for row in dicts(pool(num=20))]
    result, _ = verdicts_of(stage(SelectionConfig(method, 5)), pool_of(tmp_path, rows), tmp_path)
    assert result.summary["num_kept"] == 5


@pytest.mark.parametrize(
    ("method", "before", "wanted"),
    [
        ("s1k", ["lengths"], "quality or traces"),
        ("s1k", ["quality"], "lengths"),
        ("longest", ["quality"], "lengths"),
        ("s1k", ["lengths", "traces"], None),
        ("diverse", ["lengths"], None),
        ("full", [], None),
    ],
)
def test_a_stage_that_a_method_needs_may_not_be_left_out(method, before, wanted):
    if wanted is None:
        check_stages(SelectionConfig(method), before)
    else:
        with pytest.raises(UserError, match=f"the selection {method} needs the stage {wanted} before it"):
            check_stages(SelectionConfig(method), before)
