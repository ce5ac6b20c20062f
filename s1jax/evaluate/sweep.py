"""Sweeps: a grid of conditions -> sample rows of every condition, from one thinking trace per prompt and sample.

The sequential axis is the product of thinking budgets, minimums, numbers of ignored stops and ignore texts, or the amounts of thinking that
a control method asks for (`methods.py`). The parallel axis is the number of samples.

A smaller budget only cuts a trace short. Up to the next attempt to end the thinking, any number of ignored stops gives the same trace. So
one trace, decoded under the largest of all limits, serves the whole grid, and only the answers are decoded per condition. A curve costs
little more than its largest point, and equals its points decoded one at a time. Each further ignore text costs a trace of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from s1jax.data.condition import Condition, Limits, TraceSettings
from s1jax.data.control_methods import FORCING, Method
from s1jax.evaluate.conditions import DecodingConfig, check_num_samples
from s1jax.evaluate.methods import conditions_of
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types


@dataclass(frozen=True)
class SweepConfig:
    """A grid of conditions on one benchmark."""

    decoding: Annotated[DecodingConfig, tyro.conf.arg(name="")]
    max_thinking_tokens: tuple[int, ...]
    """Thinking budgets, in tokens."""
    min_thinking_tokens: tuple[int, ...] = (0,)
    """Thinking may not end before so many tokens. A minimum above a budget is left out of the grid."""
    num_ignore: tuple[int, ...] = (0,)
    """How many attempts to end thinking are replaced by the ignore text."""
    ignore_text: tuple[str, ...] = ("Wait",)
    """Texts that replace an attempt to end thinking. For an empty text, another token is drawn instead."""
    method: tuple[Method, ...] = ("budget_forcing",)
    """How the amount of thinking is controlled. The rows of several methods can be compared."""
    requested: tuple[str, ...] = ()
    """Amounts of thinking that conditional methods ask for in the prompt: numbers of tokens or steps, or short or long. A number is also
    the budget of token_conditional_forced."""
    max_tries: int = 1
    """How many traces rejection sampling draws, at most, until one has no more tokens than the budget."""
    condition: Annotated[TraceSettings, tyro.conf.arg(name="")] = field(default_factory=TraceSettings)
    """What all points of the grid share."""
    num_samples: int = 1
    """Samples per problem and point, for majority voting. More than one needs a temperature above 0."""
    report: bool = False
    """Write figures, tables and report.html beside the rows at the end, as plot.py and report.py do."""

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.condition, Condition):
            raise UserError(
                "a sweep takes its limits from lists of its own: give TraceSettings(...), not Condition(...)"
            )
        check_num_samples(self.num_samples, self.condition)


def grid(config: SweepConfig) -> list[Condition]:
    """Return the conditions of a sweep. Raises UserError for an empty grid, or for a condition or a setting that makes no sense."""
    axes = {name: getattr(config, name) for name in Limits._fields}
    for name, values in axes.items():
        if not values or min(values) < 0:
            raise UserError(f"{name} is {values}; give at least one value, none negative")
    points = [Limits(*values) for values in dict.fromkeys(itertools.product(*axes.values()))]
    if not config.ignore_text:
        raise UserError("ignore_text is empty; give at least one text")
    first, *others = dict.fromkeys(config.ignore_text)
    conditions = [
        replace(condition, ignore_text=text)
        for method in dict.fromkeys(config.method)
        for condition in conditions_of(method, config.condition, points, config.requested, config.max_tries)
        # Where nothing is ignored, all texts give the same answer.
        for text in (first, *(others if condition.num_ignore or condition.min_thinking_tokens else ()))
    ]
    for name, unused, is_used in (
        ("min_thinking_tokens", (0,), {*config.method} & {*FORCING}),
        ("num_ignore", (0,), {*config.method} & {*FORCING}),
        ("max_tries", 1, "rejection_sampling" in config.method),
    ):
        if (value := getattr(config, name)) != unused and not is_used:
            raise UserError(f"{name} is {value}: it has no effect under {' and '.join(config.method)}")
    if others and all(condition.ignore_text == first for condition in conditions):
        raise UserError(
            f"ignore_text is {config.ignore_text}: it has no effect, because no attempt to end thinking is ignored"
        )
    if unused_amounts := set(config.requested) - {condition.requested for condition in conditions}:
        raise UserError(f"no method asks for {', '.join(sorted(unused_amounts))}: {' and '.join(config.method)}")
    return conditions
