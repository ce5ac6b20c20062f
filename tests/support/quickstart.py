"""What the tests of the quickstart's data share: its rows, its arithmetic and where its base model is."""

import random

from data_tools.quickstart.arithmetic import (
    MAX_STEPS,
    make_problem,
    to_row,
)
from s1jax.runtime.files import ROOT


def compute(before, operation, operand):
    before, operand = int(before), int(operand)
    return {"+": before + operand, "-": before - operand, "*": before * operand, "/": before / operand}[operation]


def rows_of(n, seed=0, num_steps=None):
    rng = random.Random(seed)
    return [to_row(make_problem(rng, num_steps or i % MAX_STEPS + 1), rng) for i in range(n)]


BASE = ROOT / "data_tools" / "quickstart" / "tiny_base"
