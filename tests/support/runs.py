"""Runs of evaluation in the test's own process."""

from pathlib import Path

from s1jax.evaluate.conditions import EvaluateConfig
from s1jax.evaluate.run import write_samples
from s1jax.evaluate.sweep import SweepConfig, grid


def evaluate(config: EvaluateConfig) -> Path:
    """Decode and grade one condition; return the file of rows."""
    return write_samples(config.decoding, [config.condition], config.num_samples)[0]


def sweep(config: SweepConfig) -> Path:
    """Decode and grade a grid of conditions; return the file of rows."""
    return write_samples(config.decoding, grid(config), config.num_samples)[0]
