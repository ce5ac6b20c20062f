"""Rules that decide when to stop thinking and how to vote, replayed on traces that were decoded without them.

Each rule maps the traces of one problem to an `Outcome`: how often it would have been right, and the tokens it would have decoded. A rule
of k traces is averaged over subsets of the n traces that there are (`draw_subsets`). Tokens are thinking and answer, without delimiters.

Votes are those of `votes.py`: a trace without an answer does not vote, and a tie is broken by a uniform draw. Classes of equal answers are
formed over all n traces. Sums of weights that differ by less than 1e-9 of their size are tied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from s1jax.results.confidence import Confidence
from s1jax.results.votes import CORRECT, answer_classes, count_votes, maj_at_k

_TIED = 1e-9


class Outcome(NamedTuple):
    """What a rule comes to on one problem, as means over the subsets."""

    accuracy: float
    """Chance that the elected answer is correct."""
    tokens: float
    """Tokens of all traces together."""
    longest: float
    """Tokens that are decoded one after the other: those of the longest trace."""


@dataclass(frozen=True)
class Trace:
    """One trace, whole or stopped early."""

    answer: str | None
    correct: bool
    num_thinking: int
    num_tokens: int
    """Thinking, answers and rejected tries."""
    confidence: Confidence | None = None
    """None where no per-token figures were recorded. Only the rules that read it need it."""


@dataclass(frozen=True)
class Probe:
    """An answer that was forked from a trace, or the answer at its end."""

    answer: str | None
    correct: bool
    position: int
    """Thinking tokens before the answer."""
    num_answer: int
    """Tokens of the answer."""
    probability: float | None = None
    """Geometric mean of the probabilities of its tokens. None where no per-token figures were recorded."""


def draw_subsets(n: int, k: int, draws: int, rng: np.random.Generator, in_order: bool = False) -> np.ndarray:
    """Return subsets of k of n traces, [subsets, k] int: all of them if there are at most `draws`, else `draws` random ones.

    With `in_order` they are sequences: the order in which traces come in is random, too.
    """
    if (math.perm if in_order else math.comb)(n, k) <= draws:
        subsets = itertools.permutations(range(n), k) if in_order else itertools.combinations(range(n), k)
        return np.array(list(subsets))
    return rng.random((draws, n)).argsort(axis=1)[:, :k]


# ---- rules that vote ----


def whole_tokens(traces: Sequence[Trace], k: int) -> tuple[float, float]:
    """Return the tokens of k whole traces, and those of the longest of them; exact means over all subsets."""
    tokens = sorted(trace.num_tokens for trace in traces)
    # The chance that the i-th shortest trace is the longest of k: the other k - 1 are among the i shorter ones.
    ways = [math.comb(i, k - 1) for i in range(len(tokens))]
    longest = sum(t * w for t, w in zip(tokens, ways, strict=True)) / math.comb(len(tokens), k)
    return k * sum(tokens) / len(tokens), longest


def vote(traces: Sequence[Trace], k: int) -> Outcome:
    """Plain majority voting of k traces; exact over all subsets."""
    votes = count_votes([trace.answer for trace in traces], [trace.correct for trace in traces])
    return Outcome(maj_at_k(votes, k), *whole_tokens(traces, k))


def vote_by_confidence(
    traces: Sequence[Trace], subsets: np.ndarray, measure: str, keep: float | None = None
) -> Outcome:
    """Votes weighted by a confidence of `MEASURES` (DeepConf, offline).

    With `keep`, only the most confident of the traces with an answer vote: this share of them, rounded up. A trace as confident as the last
    of these votes, too.
    """
    classes, weights = _classes(traces)[subsets], _confidences(traces, measure)[subsets]
    votes = classes >= 0
    if keep is not None:
        ranked = -np.sort(-np.where(votes, weights, -np.inf), axis=1)
        num_kept = np.ceil(keep * votes.sum(axis=1) - _TIED).astype(int)
        votes &= weights >= ranked[np.arange(len(ranked)), np.maximum(num_kept, 1) - 1, None]
    return Outcome(_elect(classes, weights, votes), *whole_tokens(traces, subsets.shape[1]))


def vote_of_shortest(traces: Sequence[Trace], subsets: np.ndarray, m: int) -> Outcome:
    """short-m@k (arXiv 2505.17813): k traces are decoded together until m of them have ended, and these vote.

    A trace ends with the last token of its answer. Traces that end at the same token as the m-th vote, too.
    """
    classes, tokens = _classes(traces)[subsets], _num_tokens(traces)[subsets]
    last = np.sort(tokens, axis=1)[:, m - 1]
    accuracy = _elect(classes, np.ones(classes.shape), (classes >= 0) & (tokens <= last[:, None]))
    return Outcome(accuracy, float(np.minimum(tokens, last[:, None]).sum(axis=1).mean()), float(last.mean()))


def vote_online(traces: Sequence[Trace], sequences: np.ndarray, warm_up: int, keep: float) -> Outcome:
    """DeepConf, online: traces are stopped at the first group whose confidence is below a threshold.

    The first `warm_up` traces of a sequence are decoded whole. The threshold is the percentile of their lowest groups above which the share
    `keep` of them lies, interpolated linearly. All other traces are then decoded together. A trace that was stopped does not vote, nor does
    a trace of the warm-up with a group below the threshold. The votes are weighted by the confidence of the lowest group. DeepConf's second
    rule, to sample no more traces once the vote is clear, is not part of this.
    """
    classes, tokens = _classes(traces)[sequences], _num_tokens(traces)[sequences]
    weights = _confidences(traces, "lowest")[sequences]
    # A group that equals the threshold up to rounding is not below it.
    thresholds = np.quantile(weights[:, :warm_up], 1 - keep, axis=1) * (1 - _TIED)
    stops = np.stack([_confidence(trace).tokens_until(thresholds) for trace in traces])
    stops = stops[sequences, np.arange(len(sequences))[:, None]]
    is_stopped = stops >= 0
    is_stopped[:, :warm_up] = False
    spent = np.where(is_stopped, stops, tokens)
    votes = (classes >= 0) & ~is_stopped
    votes[:, :warm_up] &= weights[:, :warm_up] >= thresholds[:, None]
    longest = spent[:, :warm_up].max(axis=1) + spent[:, warm_up:].max(axis=1)
    return Outcome(_elect(classes, weights, votes), float(spent.sum(axis=1).mean()), float(longest.mean()))


def _classes(traces: Sequence[Trace]) -> np.ndarray:
    """Return the class of each trace's answer, -1 if it does not vote, [n] int."""
    classes = answer_classes([trace.answer for trace in traces], [trace.correct for trace in traces])
    return np.array([-1 if number is None else number for number in classes])


def _num_tokens(traces: Sequence[Trace]) -> np.ndarray:
    return np.array([trace.num_tokens for trace in traces])


def _confidence(trace: Trace) -> Confidence:
    if trace.confidence is None:
        raise ValueError("this rule needs per-token figures of every trace")
    return trace.confidence


def _confidences(traces: Sequence[Trace], measure: str) -> np.ndarray:
    return np.array([getattr(_confidence(trace), measure) for trace in traces])


def _elect(classes: np.ndarray, weights: np.ndarray, votes: np.ndarray) -> float:
    """Return the mean chance that a correct answer wins. All arrays are [subsets, k]: class, weight, and whether a trace votes."""
    num_classes = max(int(classes.max()), CORRECT) + 1
    places = (np.arange(len(classes))[:, None] * num_classes + classes)[votes]
    shape = (len(classes), num_classes)
    stands = np.bincount(places, minlength=math.prod(shape)).reshape(shape) > 0
    sums = np.bincount(places, weights[votes], minlength=math.prod(shape)).reshape(shape)
    highest = np.where(stands, sums, -np.inf).max(axis=1, keepdims=True)
    leads = stands & (sums >= highest * (1 - _TIED))
    return float((leads[:, CORRECT] / np.maximum(leads.sum(axis=1), 1)).mean())


# ---- rules that stop a trace early ----


def stop_at_agreement(probes: Sequence[Probe], num_equal: int) -> Trace:
    """Stop at the first position where the last `num_equal` answers are equal (Dynasor, arXiv 2412.20993).

    `probes` are in the order of their positions; the last one is the answer at the end of the trace. Answers are equal if they are of one
    class among those of this trace. A missing answer equals nothing.
    """
    classes = answer_classes([probe.answer for probe in probes], [probe.correct for probe in probes])
    for i in range(num_equal - 1, len(probes) - 1):
        if classes[i] is not None and len(set(classes[i - num_equal + 1 : i + 1])) == 1:
            return _stopped(probes[: i + 1])
    return _stopped(probes)


def stop_at_confidence(probes: Sequence[Probe], threshold: float) -> Trace:
    """Stop at the first position where the probability of the answer is above a threshold (DEER, arXiv 2504.15895).

    `probes` are as in `stop_at_agreement`. A missing answer stops nothing.
    """
    for i, probe in enumerate(probes[:-1]):
        if probe.probability is None:
            raise ValueError("this rule needs per-token figures of every answer")
        if probe.answer is not None and probe.probability > threshold:
            return _stopped(probes[: i + 1])
    return _stopped(probes)


def _stopped(probes: Sequence[Probe]) -> Trace:
    """Return a trace that ends with the last of these probes. It has decoded the answers of all of them."""
    last = probes[-1]
    return Trace(last.answer, last.correct, last.position, last.position + sum(probe.num_answer for probe in probes))
