"""`confidence.py`: the confidences of a trace, against a walk over its tokens."""

import collections
import math
import random

import numpy as np
import pytest

from s1jax.results.confidence import MEASURES, answer_probability, measure
from tests.support.figures import figures


def groups_by_hand(values, window):
    groups = [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]
    return groups or [sum(values) / len(values)]


def stop_by_hand(confidences, forced, window, threshold):
    """Walk along the trace, and stop at the first full window below the threshold."""
    recent = collections.deque(maxlen=window)
    for place, (value, is_forced) in enumerate(zip(confidences, forced, strict=True)):
        if is_forced:
            continue
        recent.append(value)
        if len(recent) == window and sum(recent) / window < threshold:
            return place + 1
    return -1


@pytest.mark.parametrize("seed", range(30))
def test_confidences_equal_a_walk_over_the_tokens(seed):
    rng = random.Random(seed)
    length, window = rng.randint(1, 60), rng.randint(1, 12)
    confidences = [rng.randrange(1, 160) / 8 for _ in range(length)]  # exact in float16
    forced = [rng.random() < 0.2 for _ in range(length)]
    found = measure(figures(confidences, forced), window)
    values = [c for c, is_forced in zip(confidences, forced, strict=True) if not is_forced]
    if not values:
        assert [getattr(found, name) for name in MEASURES] == [0, 0, 0, 0]
        return
    groups = sorted(groups_by_hand(values, window))
    few = groups[: max(1, len(groups) // 10)]
    assert found.mean == pytest.approx(sum(values) / len(values), rel=1e-12), seed
    assert found.tail == pytest.approx(sum(values[-window:]) / len(values[-window:]), rel=1e-12), seed
    assert found.bottom == pytest.approx(sum(few) / len(few), rel=1e-12), seed
    assert found.lowest == pytest.approx(groups[0], rel=1e-12), seed
    thresholds = [0.0, *groups, *(rng.uniform(0, 20) for _ in range(20)), 30.0]
    stops = [stop_by_hand(confidences, forced, window, threshold) for threshold in thresholds]
    assert found.tokens_until(np.array(thresholds)).tolist() == stops, seed


def test_a_trace_shorter_than_a_window_is_one_group_and_is_never_stopped():
    found = measure(figures([2.0, 4.0]), window=3)
    assert [getattr(found, name) for name in MEASURES] == [3, 3, 3, 3]
    assert found.tokens_until(np.array([0.0, 100.0])).tolist() == [-1, -1]


def test_a_trace_without_sampled_tokens_has_no_confidence():
    for records in (figures([]), figures([5.0, 5.0], [True, True])):
        assert [getattr(measure(records, 2), name) for name in MEASURES] == [0, 0, 0, 0]


def test_the_lowest_tenth_is_of_groups():
    found = measure(figures([4.0] * 20 + [1.0, 2.0] + [4.0] * 8), window=1)  # 30 groups: the lowest three
    assert (found.bottom, found.lowest) == (pytest.approx(7 / 3), 1)


def test_the_probability_of_an_answer_is_a_geometric_mean():
    logprobs = np.log([0.5, 0.125, 1.0]).astype(np.float32)
    assert answer_probability(logprobs) == pytest.approx(math.prod([0.5, 0.125, 1.0]) ** (1 / 3), rel=1e-6)
    assert answer_probability(logprobs[:0]) == 0
