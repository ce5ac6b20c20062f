"""`replay.py`: each rule against a simulation that decodes its traces token by token."""

import collections
import itertools
import random
import statistics
from fractions import Fraction

import numpy as np
import pytest

from s1jax.results.confidence import MEASURES, measure
from s1jax.results.replay import (
    Probe,
    Trace,
    draw_subsets,
    stop_at_agreement,
    stop_at_confidence,
    vote,
    vote_by_confidence,
    vote_of_shortest,
    vote_online,
)
from tests.support.figures import figures

WINDOW = 3
ALL = 10_000_000


class Decoded:
    """A trace as a model would decode it: the confidence of each thinking token, and an answer behind them."""

    def __init__(self, rng):
        self.confidences = [rng.choice([1.0, 1.5, 2.0, 4.0]) for _ in range(rng.randint(1, 9))]
        self.num_answer = rng.randint(0, 2)
        self.answer = rng.choice([None, "1", "1", "2", "3"])

    @property
    def length(self):
        return len(self.confidences) + self.num_answer

    def trace(self):
        confidence = measure(figures(self.confidences), WINDOW)
        return Trace(self.answer, self.answer == "1", len(self.confidences), self.length, confidence)

    def groups(self):
        values = self.confidences
        full = [Fraction(sum(values[i : i + WINDOW])) / WINDOW for i in range(len(values) - WINDOW + 1)]
        return full or [Fraction(sum(values)) / len(values)]

    def weight(self, name):
        values, groups = self.confidences, sorted(self.groups())
        few = groups[: max(1, len(groups) // 10)]
        return {
            "mean": Fraction(sum(values)) / len(values),
            "tail": Fraction(sum(values[-WINDOW:])) / len(values[-WINDOW:]),
            "bottom": sum(few) / len(few),
            "lowest": groups[0],
        }[name]


def elect(ballots):
    """Chance that "1" wins, of (answer, weight) with exact weights."""
    sums = collections.defaultdict(Fraction)
    for answer, weight in ballots:
        if answer is not None:
            sums[answer] += Fraction(weight)
    leaders = [answer for answer in sums if sums[answer] == max(sums.values())]
    return leaders.count("1") / len(leaders) if leaders else 0.0


def mean_of(outcomes):
    return [statistics.fmean(values) for values in zip(*outcomes, strict=True)]


def cases(num_cases, least=1, most=6):
    for seed in range(num_cases):
        rng = random.Random(seed)
        decoded = [Decoded(rng) for _ in range(rng.randint(least, most))]
        yield seed, rng, decoded, [d.trace() for d in decoded]


def every(traces, k, in_order=False):
    return draw_subsets(len(traces), k, ALL, np.random.default_rng(0), in_order)


def test_plain_votes_equal_every_subset():
    for seed, _, decoded, traces in cases(20):
        for k in range(1, len(traces) + 1):
            outcomes = [
                (elect([(d.answer, 1) for d in subset]), sum(d.length for d in subset), max(d.length for d in subset))
                for subset in itertools.combinations(decoded, k)
            ]
            assert vote(traces, k) == pytest.approx(mean_of(outcomes), abs=1e-12), (seed, k)


def keep_most_confident(subset, name, keep):
    """Ballots in descending confidence until the share is reached; equals of the last one go along."""
    voters = sorted((d for d in subset if d.answer is not None), key=lambda d: -d.weight(name))
    kept = []
    for d in voters:
        if len(kept) >= Fraction(str(keep)) * len(voters) and d.weight(name) != kept[-1].weight(name):
            break
        kept.append(d)
    return kept


@pytest.mark.parametrize("keep", [None, 0.1, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("name", MEASURES)
def test_weighted_votes_equal_every_subset(name, keep):
    for seed, _, decoded, traces in cases(12):
        for k in range(1, len(traces) + 1):
            outcomes = []
            for subset in itertools.combinations(decoded, k):
                voters = subset if keep is None else keep_most_confident(subset, name, keep)
                won = elect([(d.answer, d.weight(name)) for d in voters])
                outcomes.append((won, sum(d.length for d in subset), max(d.length for d in subset)))
            found = vote_by_confidence(traces, every(traces, k), name, keep)
            assert found == pytest.approx(mean_of(outcomes), abs=1e-9), (seed, k)


def decode_until(subset, m):
    """All traces emit a token per tick, until m have ended."""
    emitted = [0] * len(subset)
    while sum(e == d.length for e, d in zip(emitted, subset, strict=True)) < m:
        emitted = [e + (e < d.length) for e, d in zip(emitted, subset, strict=True)]
    ended = [d for e, d in zip(emitted, subset, strict=True) if e == d.length]
    return elect([(d.answer, 1) for d in ended]), sum(emitted), max(emitted)


def test_the_first_to_end_equal_a_clock():
    for seed, _, decoded, traces in cases(20, least=2):
        for k in range(1, len(traces) + 1):
            for m in range(1, k + 1):
                outcomes = [decode_until(subset, m) for subset in itertools.combinations(decoded, k)]
                found = vote_of_shortest(traces, every(traces, k), m)
                assert found == pytest.approx(mean_of(outcomes), abs=1e-12), (seed, k, m)


def test_all_to_end_is_plain_voting():
    for seed, _, _, traces in cases(10, least=2):
        k = len(traces)
        assert vote_of_shortest(traces, every(traces, k), k) == pytest.approx(vote(traces, k), abs=1e-12), seed


def decode_online(sequence, warm_up, keep):
    """DeepConf's online rule, token by token."""
    lowest = sorted(d.weight("lowest") for d in sequence[:warm_up])
    place = (1 - Fraction(str(keep))) * (warm_up - 1)
    below = int(place)
    threshold = lowest[below] + (place - below) * (lowest[min(below + 1, warm_up - 1)] - lowest[below])
    ballots = [(d.answer, d.weight("lowest")) for d in sequence[:warm_up] if d.weight("lowest") >= threshold]
    spent = [d.length for d in sequence]
    for i, d in enumerate(sequence[warm_up:], warm_up):
        recent = collections.deque(maxlen=WINDOW)
        for place, value in enumerate(d.confidences):
            recent.append(value)
            if len(recent) == WINDOW and Fraction(sum(recent)) / WINDOW < threshold:
                spent[i] = place + 1
                break
        else:
            ballots.append((d.answer, d.weight("lowest")))
    return elect(ballots), sum(spent), max(spent[:warm_up]) + max(spent[warm_up:])


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_online_stops_equal_decoding_token_by_token(keep):
    stopped = 0
    for seed, _, decoded, traces in cases(12, least=3, most=5):
        for k in range(2, len(traces) + 1):
            for warm_up in range(1, k):
                outcomes = [decode_online(s, warm_up, keep) for s in itertools.permutations(decoded, k)]
                found = vote_online(traces, every(traces, k, in_order=True), warm_up, keep)
                assert found == pytest.approx(mean_of(outcomes), abs=1e-9), (seed, k, warm_up)
                stopped += found.tokens < vote(traces, k).tokens - 1e-9
    assert stopped > 20


def random_probes(rng):
    positions = sorted(rng.sample(range(12), rng.randint(1, 7)))
    answers = [rng.choice([None, "1", "1", "2"]) for _ in positions]
    parts = [(rng.randint(0, 3), rng.choice([0.0, 0.5, 0.8, 0.9, 1.0])) for _ in positions]
    return [Probe(a, a == "1", p, *part) for a, p, part in zip(answers, positions, parts, strict=True)]


def think(probes, should_stop):
    """Think token by token; at the position of a probe decode its answer, and ask the rule."""
    at, spent, seen = {probe.position: probe for probe in probes}, 0, []
    for position in range(probes[-1].position + 1):
        spent += position > 0
        if position in at:
            seen.append(at[position])
            spent += at[position].num_answer
            if should_stop(seen):
                break
    return seen[-1].answer, seen[-1].correct, position, spent


@pytest.mark.parametrize("num_equal", [2, 3])
def test_stopping_at_equal_answers_equals_thinking_token_by_token(num_equal):
    def should_stop(seen):
        last = [probe.answer for probe in seen[-num_equal:]]
        return len(last) == num_equal and None not in last and len({*last}) == 1

    for seed in range(200):
        probes = random_probes(random.Random(seed))
        found = stop_at_agreement(probes, num_equal)
        by_hand = think(probes, should_stop)
        assert (found.answer, found.correct, found.num_thinking, found.num_tokens) == by_hand, seed


@pytest.mark.parametrize("threshold", [0.5, 0.85])
def test_stopping_at_a_sure_answer_equals_thinking_token_by_token(threshold):
    for seed in range(200):
        probes = random_probes(random.Random(seed))
        found = stop_at_confidence(probes, threshold)
        by_hand = think(probes, lambda seen: seen[-1].answer is not None and seen[-1].probability > threshold)
        assert (found.answer, found.correct, found.num_thinking, found.num_tokens) == by_hand, seed


def test_equal_answers_are_found_in_any_spelling():
    probes = [Probe(a, False, p, 1) for p, a in enumerate(["7", "1/2", "0.5", "9"])]
    assert stop_at_agreement(probes, 2) == Trace("0.5", False, 2, 5)


def test_subsets_are_all_of_them_or_seeded_draws():
    rng = np.random.default_rng
    assert draw_subsets(5, 2, 10, rng(0)).tolist() == [list(s) for s in itertools.combinations(range(5), 2)]
    assert draw_subsets(3, 2, 6, rng(0), in_order=True).tolist() == [
        list(s) for s in itertools.permutations(range(3), 2)
    ]
    drawn = draw_subsets(30, 8, 4000, rng(1))
    assert drawn.shape == (4000, 8) and all(len({*subset}) == 8 for subset in drawn.tolist())
    assert (drawn == draw_subsets(30, 8, 4000, rng(1))).all() and (drawn != draw_subsets(30, 8, 4000, rng(2))).any()
    shares = np.bincount(drawn.ravel(), minlength=30) / 4000
    assert np.abs(shares - 8 / 30).max() < 0.03
    assert np.abs(np.bincount(drawn[:, 0], minlength=30) / 4000 - 1 / 30).max() < 0.012  # the order is random, too


def test_draws_come_near_to_all_subsets():
    rng = random.Random(5)
    traces = [Decoded(rng).trace() for _ in range(12)]
    exact = vote_by_confidence(traces, every(traces, 5), "tail", 0.5)
    drawn = vote_by_confidence(traces, draw_subsets(12, 5, 700, np.random.default_rng(5)), "tail", 0.5)
    assert drawn.accuracy == pytest.approx(exact.accuracy, abs=4 * (0.25 / 700) ** 0.5)
    assert drawn[1:] == exact[1:]  # these have formulas


def test_a_rule_of_confidence_refuses_traces_without_figures():
    with pytest.raises(ValueError, match="per-token figures"):
        vote_by_confidence([Trace("1", True, 1, 1)], np.array([[0]]), "mean")
    with pytest.raises(ValueError, match="per-token figures"):
        stop_at_confidence([Probe("1", True, 1, 1), Probe("1", True, 2, 1)], 0.5)
