"""What is asked of a decoder, and what it gives back: `Request` -> `Completion`s.

A request is one thinking trace under its limits, and the points at which answers are wanted: each a lower limit, whose answer is
decoded as a fork of that trace. Counts are in tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from s1jax.decode.budget import Limits

LARGEST = 2**31 - 1  # of the integers on the device


def check_integer(name: str, value: int, least: int = 0) -> None:
    """Raise ValueError unless `least <= value <= LARGEST`."""
    if not least <= value <= LARGEST:
        raise ValueError(f"{name} is {value}; it must be from {least} to {LARGEST}")


def check_sampling(temperature: float = 0.0, top_p: float = 1.0, min_p: float = 0.0) -> None:
    """Raise ValueError unless tokens can be drawn under these settings."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; it must be finite and not negative")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}; it must be from 0 to 1")


@dataclass(frozen=True)
class Request:
    """One trace to decode, and its answers."""

    prompt: tuple[int, ...]
    """Ids up to and including the think delimiter (or, with `thinks` False, the chat prompt)."""
    max_thinking_tokens: int = 0
    min_thinking_tokens: int = 0
    num_ignore: int = 0
    """How often an attempt to end thinking is replaced by `ignore_ids`."""
    ignore_ids: tuple[int, ...] = ()
    """The ignore string; when empty, another token is drawn instead."""
    max_answer_tokens: int = 512
    points: tuple[Limits, ...] = ()
    """Where answers are wanted, none above the limits above; default: where the trace ends."""
    thinks: bool = True
    """Whether the row thinks first; False answers at once, without an answer delimiter."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    problem: int = 0
    sample: int = 0
    """With `seed` and `problem`, what the row's randomness is drawn from."""

    def __post_init__(self):
        for name in ("max_thinking_tokens", "min_thinking_tokens", "num_ignore", "top_k", "seed", "problem", "sample"):
            check_integer(name, getattr(self, name))
        check_integer("max_answer_tokens", self.max_answer_tokens, least=1)
        check_sampling(self.temperature, self.top_p, self.min_p)
        if self.min_thinking_tokens > self.max_thinking_tokens:
            raise ValueError(
                f"min_thinking_tokens {self.min_thinking_tokens} is above max_thinking_tokens {self.max_thinking_tokens}"
            )
        if self.points and not self.thinks:
            raise ValueError("points are ends of thinking, and this request does not think")
        if not self.prompt:
            raise ValueError("the prompt is empty")
        above = [point for point in self.points if any(a > b for a, b in zip(point, self.limits, strict=True))]
        if above:
            raise ValueError(f"points {above} are above the limits of the trace, {self.limits}")

    @property
    def limits(self) -> Limits:
        """What ends the trace."""
        return Limits(self.max_thinking_tokens, self.min_thinking_tokens, self.num_ignore)


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
