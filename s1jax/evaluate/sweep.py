"""Sweeps: a grid of settings -> sample rows of every point.

The sequential axis is the product of thinking budgets, minimums and numbers of ignored stops; the parallel axis is the number of samples.
A budget only cuts a trace, and up to an attempt to stop all numbers of ignores think alike; so one trace, thought under the largest
of all limits, serves the whole grid, and only the answers are decoded per point, as forks of it: a curve costs little more than its
largest point, and equals its points decoded one at a time, token for token, as far as `decode.py` can promise it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s1jax.data.condition import Limits
from s1jax.evaluate.conditions import DecodingConfig, Point, Trace
from s1jax.evaluate.run import write_samples
from s1jax.runtime.errors import UserError


@dataclass(frozen=True)
class SweepConfig:
    """A grid of decoding conditions on one benchmark."""

    decoding: DecodingConfig
    max_thinking_tokens: tuple[int, ...]
    """Thinking budgets, in tokens."""
    min_thinking_tokens: tuple[int, ...] = (0,)
    """Tokens before which thinking may not end; pairs above their budget are left out."""
    num_ignore: tuple[int, ...] = (0,)
    """How often an attempt to end thinking is replaced by `ignore_text`."""
    ignore_text: str = "Wait"
    """What replaces it; when empty, another token is drawn instead."""
    temperature: float = 0.0
    """0 is greedy."""
    num_samples: int = 1
    """Samples per problem and point, for majority voting; more than one needs a temperature."""


def grid(config: SweepConfig) -> list[Point]:
    """Return the points of the sweep. Raises UserError for a grid without points, or with one that is none."""
    axes = {name: getattr(config, name) for name in ("max_thinking_tokens", "min_thinking_tokens", "num_ignore")}
    for name, values in axes.items():
        if not values or min(values) < 0:
            raise UserError(f"{name} is {values}; give at least one value, none negative")
    points = [
        Point(maximum, minimum, ignore, config.ignore_text, config.temperature, config.num_samples)
        for maximum, minimum, ignore in dict.fromkeys(itertools.product(*axes.values()))
        if minimum <= maximum
    ]
    if not points:
        raise UserError(
            f"every minimum {axes['min_thinking_tokens']} is above every budget {axes['max_thinking_tokens']}"
        )
    return points


def plan(points: Sequence[Point]) -> list[Trace]:
    """Return the fewest traces that serve all points: one for each ignore string and temperature."""
    traces: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        traces.setdefault((point.ignore_text, point.temperature), []).append(point)
    return [Trace(tuple(points)) for points in traces.values()]


def largest_limits(config: SweepConfig) -> Limits:
    """Return the lowest limits that are above those of every point."""
    return Trace(tuple(grid(config))).limits


def sweep(config: SweepConfig) -> Path:
    """Decode and grade the whole grid; return the file of sample rows."""
    return write_samples(config.decoding, plan(grid(config)))
