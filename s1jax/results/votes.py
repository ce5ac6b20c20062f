"""Votes of the samples of a problem: answers -> classes of equal answers -> maj@k, pass@k.

How samples vote: the answer that most of k samples gave wins. Equal answers vote together, however they are spelled. A sample without an
answer does not vote. A tie is broken by a uniform draw. maj@k and pass@k are exact expectations over all subsets of k of the n samples, and
over the draws of ties, for every k from 1 to n. At k = 1 both are avg@n, the share of correct samples.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from s1jax.grading.equivalence import compare

Votes = tuple[int, list[int], int]
"""Votes of the correct answer, votes of each distinct wrong answer in descending order, and the number of samples that do not vote."""

CORRECT = 0
"""The class of all correct answers."""


def answer_classes(answers: Sequence[str | None], correct: Sequence[bool]) -> list[int | None]:
    """Return the class of each sample's answer: `CORRECT`, 1 and up for wrong answers, None for a sample that does not vote.

    All answers that the grader called correct are one class. Wrong answers are classes of equal answers, by `compare` without algebra.
    `compare` is neither symmetric nor transitive: it takes "C) 5 m" for the gold answer "C", but not the other way round. So two answers
    are linked if it finds them equal in one of the two orders, and a class is a connected component of these links. The classes do not
    depend on the order of the samples. They do depend on which samples there are, so take all samples of a problem.
    """
    wrong = sorted({a for a, is_correct in zip(answers, correct, strict=True) if a is not None and not is_correct})
    linked = {answer: {answer} for answer in wrong}  # each answer's component, which its members share
    for a, b in itertools.combinations(wrong, 2):
        if linked[a] is not linked[b] and (_is_equal(a, b) or _is_equal(b, a)):
            linked[a] |= linked[b]
            for answer in linked[b]:
                linked[answer] = linked[a]
    number = {id(component): i for i, component in enumerate({id(c): c for c in linked.values()}.values(), CORRECT + 1)}
    return [
        CORRECT if is_correct else None if answer is None else number[id(linked[answer])]
        for answer, is_correct in zip(answers, correct, strict=True)
    ]


@functools.lru_cache(maxsize=100_000)
def _is_equal(answer: str, other: str) -> bool:
    return bool(compare(answer, other))


def count_votes(answers: Sequence[str | None], correct: Sequence[bool]) -> Votes:
    """Count the votes of all samples of a problem, by `answer_classes`."""
    votes = Counter(answer_classes(answers, correct))
    silent, right = votes.pop(None, 0), votes.pop(CORRECT, 0)
    return right, sorted(votes.values(), reverse=True), silent


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the chance that at least one of k samples, drawn without replacement from n, is correct.

    1 - C(n - c, k) / C(n, k): the unbiased estimator of arXiv 2107.03374.
    """
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def maj_at_k(votes: Votes, k: int) -> float:
    """Return the chance that a vote among k samples, drawn without replacement, elects a correct answer.

    Exact over all subsets and over the draws of ties. The votes in a random subset of k are distributed as independent binomials, one per
    answer, under the condition that they sum to k. So a coefficient of a product of small polynomials is the chance that the correct answer
    gets j votes, that t wrong answers get j votes too, and that no answer gets more.
    """
    num_correct, wrong, silent = votes
    total = num_correct + sum(wrong) + silent
    share = k / total  # every share in (0, 1] gives the same result; this one keeps the factors near 1
    chance = 0.0
    for j in range(1, min(num_correct, k) + 1):
        rest = k - j
        # ways[t, v]: chance that the wrong answers so far got v votes together, none more than j, and t of them exactly j.
        ways = np.zeros((rest // j + 1, rest + 1))
        ways[0] = _binomial(silent, share, rest)
        for votes_of_one in wrong:
            likely = _binomial(votes_of_one, share, rest)
            grown = np.zeros_like(ways)
            for v in range(min(votes_of_one, j - 1, rest) + 1):
                grown[:, v:] += likely[v] * ways[:, : rest + 1 - v]
            if j <= min(votes_of_one, rest):
                grown[1:, j:] += likely[j] * ways[:-1, : rest + 1 - j]
            ways = grown
        chance += _binomial(num_correct, share, j)[j] * float(np.sum(ways[:, rest] / (1 + np.arange(len(ways)))))
    return min(chance / float(_binomial(total, share, k)[k]), 1.0)


def _binomial(n: int, share: float, max_successes: int) -> np.ndarray:
    """Return the chances of 0 to `max_successes` successes among n draws, [max_successes + 1] float64."""
    chances = np.zeros(max_successes + 1)
    if share == 1:
        chances[n : n + 1] = 1
        return chances
    for m in range(min(n, max_successes) + 1):
        log_ways = math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)
        chances[m] = math.exp(log_ways + m * math.log(share) + (n - m) * math.log1p(-share))
    return chances
