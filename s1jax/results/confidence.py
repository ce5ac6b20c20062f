"""Per-token figures of one trace -> how confident the model was (DeepConf, arXiv 2508.15260; DEER, arXiv 2504.15895).

The confidence of a token is minus the mean log-probability of the 20 likeliest tokens at its place: high where one token takes nearly all
of the probability. The confidence of a group is the mean over a window of consecutive tokens. A trace has a group for each token from which
a whole window reaches back; a shorter trace is one group. Tokens that were forced are left out, because the model did not choose them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MEASURES = ("mean", "tail", "bottom", "lowest")
"""The names of the confidences of a trace."""


@dataclass(frozen=True)
class Confidence:
    """How confident the model was in its thinking. Every confidence is 0 if no token of the thinking was sampled."""

    mean: float
    """Mean over all tokens."""
    tail: float
    """Mean over the last window."""
    bottom: float
    """Mean over the lowest tenth of the groups, rounded down, and over at least one."""
    lowest: float
    """Confidence of the lowest group."""
    drop_places: np.ndarray
    """Where a group is lower than all groups before it: the number of thinking tokens up to its end, ascending, [d] int64. Only groups of
    a whole window count, as for a rule that watches the trace while it grows."""
    drop_values: np.ndarray
    """The confidences of these groups, descending, [d] float64."""

    def tokens_until(self, thresholds: np.ndarray) -> np.ndarray:
        """Return how many thinking tokens there are when a group first falls below each threshold, int64; -1 if none does."""
        first = np.searchsorted(-self.drop_values, -thresholds, side="right")
        return np.append(self.drop_places, -1)[first]


def measure(records: np.ndarray, window: int) -> Confidence:
    """Return the confidence of a trace.

    `records` are the figures of its thinking tokens: a structured array with the fields `confidence` (the mean log-probability of the 20
    likeliest tokens) and `forced`. `window` is the number of tokens of a group.
    """
    places = np.flatnonzero(records["forced"] == 0)
    values = -records["confidence"][places].astype(np.float64)
    if not len(values):
        return Confidence(0.0, 0.0, 0.0, 0.0, np.zeros(0, np.int64), np.zeros(0))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    groups = (sums[window:] - sums[:-window]) / window  # empty if the trace is shorter than a window
    before = np.minimum.accumulate(np.concatenate([[np.inf], groups]))[:-1]
    drops = np.flatnonzero(groups < before)
    mean = float(values.mean())
    ascending = np.sort(groups) if len(groups) else np.array([mean])
    return Confidence(
        mean=mean,
        tail=float(values[-window:].mean()),
        bottom=float(ascending[: max(len(ascending) // 10, 1)].mean()),
        lowest=float(ascending[0]),
        drop_places=places[drops + window - 1] + 1,
        drop_values=groups[drops],
    )


def answer_probability(logprobs: np.ndarray) -> float:
    """Return the geometric mean of the probabilities of an answer's tokens; 0 for an answer without tokens."""
    return float(np.exp(logprobs.astype(np.float64).mean())) if len(logprobs) else 0.0
