"""Sweeps: a grid of settings -> sample rows of every point.

The sequential axis is the product of thinking budgets, minimums and numbers of ignored stops; the parallel axis is the number of samples.
All points go through the same compiled decode loop, since budgets, minimums and ignores are arrays in its carry.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from s1jax.evaluate import DecodingConfig, Point, write_samples


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
    temperature: float = 0.0
    num_samples: int = 1
    """Samples per problem and point, for majority voting."""


def grid(config: SweepConfig) -> list[Point]:
    """Return the points of the sweep. Raises ValueError for a grid without points, or with a negative value."""
    axes = {name: getattr(config, name) for name in ("max_thinking_tokens", "min_thinking_tokens", "num_ignore")}
    for name, values in axes.items():
        if not values or min(values) < 0:
            raise ValueError(f"{name} is {values}; give at least one value, none negative")
    if config.num_samples < 1:
        raise ValueError(f"num_samples is {config.num_samples}; it must be at least 1")
    points = [
        Point(maximum, minimum, ignore, config.ignore_text, config.temperature, config.num_samples)
        for maximum, minimum, ignore in dict.fromkeys(itertools.product(*axes.values()))
        if minimum <= maximum
    ]
    if not points:
        raise ValueError(
            f"every minimum {axes['min_thinking_tokens']} is above every budget {axes['max_thinking_tokens']}"
        )
    return points


def sweep(config: SweepConfig) -> Path:
    """Decode and grade the whole grid; return the file of sample rows."""
    return write_samples(config.decoding, grid(config))
