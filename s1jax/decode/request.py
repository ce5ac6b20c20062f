"""What is asked of an engine, and what it gives back: `Request` -> `Completion`s.

A request is one thinking trace under a condition, and the points at which answers are wanted. Each point has lower limits than the trace;
its answer is decoded as a fork of the trace. Counts are in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from s1jax.data.condition import Condition, Limits, check_integer
from s1jax.runtime.errors import UserError


@dataclass(frozen=True)
class Request:
    """One trace to decode, and its answers."""

    prompt: tuple[int, ...]
    """Ids up to and including the think delimiter (or, with `thinks` False, the chat prompt)."""
    condition: Condition
    """How to think and answer. The limits of the trace are those of the condition."""
    ignore_ids: tuple[int, ...] = ()
    """The ids of the condition's `ignore_text`. If empty, another token is drawn in place of an attempt to end thinking."""
    points: tuple[Limits, ...] = ()
    """Where answers are wanted, none above the limits of the trace; default: where the trace ends."""
    thinks: bool = True
    """Whether the row thinks first; False answers at once, without an answer delimiter."""
    seed: int = 0
    problem: int = 0
    sample: int = 0
    """With `seed` and `problem`, what the row's randomness is drawn from."""

    def __post_init__(self):
        for name in ("seed", "problem", "sample"):
            check_integer(name, getattr(self, name))
        if self.points and not self.thinks:
            raise UserError("points are ends of thinking, and this request does not think")
        if not self.prompt:
            raise UserError("the prompt is empty")
        limits = self.condition.limits
        above = [point for point in self.points if any(a > b for a, b in zip(point, limits, strict=True))]
        if above:
            raise UserError(f"points {above} are above the limits of the trace, {limits}")


@dataclass(frozen=True)
class Completion:
    """What a row emitted."""

    tokens: tuple[int, ...]
    """Thinking, answer delimiter and answer, with the id that ended it."""
    forced: tuple[bool, ...]
    """Which of them were not sampled."""
    num_thinking: int
    num_ignored: int
    num_answer: int
    """Sampled answer tokens, without the one that ended the answer."""
    stopped: bool
    """Whether the model ended the answer; False: `max_answer_tokens` did."""
    logprobs: tuple[float, ...] = ()
    """With `scores`: the log-probability of each token under the model, before temperature and filters; 0 where it was forced."""
    end_logprobs: tuple[float, ...] = ()
    """With `scores`: the log-probability, before each token, of any id that ends thinking."""

    @property
    def num_forced(self) -> int:
        """How many tokens were not sampled."""
        return sum(self.forced)
