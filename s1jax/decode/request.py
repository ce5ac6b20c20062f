"""Input and output of an engine: a `Request` -> `Completion`s.

A request is one thinking trace under a condition, and optionally points: lower limits at which answers are wanted, too. The answer of a
point is decoded as a fork of the trace. Counts are in tokens.
"""

from dataclasses import dataclass
from typing import Literal

from s1jax.data.condition import AnswerEnd, Condition, Limits, check_integer
from s1jax.data.encoder import check_text
from s1jax.runtime.errors import UserError

FinishReason = AnswerEnd | Literal["unfinished", "stop_string"]
"""What ended an answer: see `AnswerEnd`; or nothing yet, or a stop string."""

OF_PLACE = ("end_logprobs", "confidences")
"""Fields of a completion that depend on the tokens before a place, and not on the token there."""
SCORES = ("logprobs", *OF_PLACE)
"""Fields of a completion that are filled with `scores`."""
PER_TOKEN = ("tokens", "forced", *SCORES)
"""Fields of a completion that hold a value per token."""


@dataclass(frozen=True)
class Request:
    """One trace to decode, and its answers."""

    prompt: tuple[int, ...]
    """Ids up to and including the think delimiter. If `thinks` is False, the ids of the chat prompt."""
    condition: Condition
    """How to think and answer, with the limits of the trace."""
    ignore_ids: tuple[int, ...] = ()
    """Ids of the condition's `ignore_text`. If empty, another token is drawn in place of an attempt to end thinking."""
    final_ids: tuple[int, ...] = ()
    """Delimiter that is written when the budget ends the thinking, without the line break before it. Needed if `thinks`."""
    points: tuple[Limits, ...] = ()
    """Where answers are wanted, none above the limits of the trace. If empty: where the trace ends."""
    thinks: bool = True
    """Whether to think first. False answers at once, without an answer delimiter."""
    seed: int = 0
    problem: int = 0
    sample: int = 0
    """Seed, problem and sample are the only sources of the trace's randomness."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer. It is cut after the first token with which its text contains one of them. Special tokens have no text."""

    def __post_init__(self):
        for name in ("seed", "problem", "sample"):
            check_integer(name, getattr(self, name))
        if self.points and not self.thinks:
            raise UserError("points are ends of thinking, and this request does not think")
        for text in self.stop:
            check_text("a stop string", text)
            if not text or "\ufffd" in text:
                raise UserError(f"the stop string {text!r} is empty or holds U+FFFD: no text can end with it")
        if not self.prompt:
            raise UserError("the prompt is empty")
        if self.thinks and not self.final_ids:
            raise UserError("final_ids are empty: give the delimiter that is written when the budget ends the thinking")
        may_ignore = self.thinks and (self.condition.num_ignore or self.condition.min_thinking_tokens)
        if may_ignore and bool(self.ignore_ids) != bool(self.condition.ignore_text):
            raise UserError(
                f"ignore_ids {self.ignore_ids} are not the ids of the condition's ignore_text {self.condition.ignore_text!r}"
            )
        limits = self.condition.limits
        above = [point for point in self.points if any(a > b for a, b in zip(point, limits, strict=True))]
        if above:
            raise UserError(f"points {above} are above the limits of the trace, {limits}")


@dataclass(frozen=True)
class Completion:
    """The tokens that one trace or fork emitted."""

    tokens: tuple[int, ...]
    """Thinking, answer delimiter and answer, with the id that ended it."""
    forced: tuple[bool, ...]
    """For each token, whether it was not sampled."""
    num_thinking: int
    num_ignored: int
    num_answer: int
    """Sampled answer tokens, without the id that ended the answer."""
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    """With `scores`: log-probability of each token under the model, before temperature and filters; 0 if it was forced."""
    end_logprobs: tuple[float, ...] = ()
    """With `scores`: log-probability, before each token, of drawing any id that completes an end of thinking. After tokens were taken
    back, it is that before the first of them."""
    confidences: tuple[float, ...] = ()
    """With `scores`: mean log-probability, before each token, of the 20 likeliest ids, before temperature and filters; of all ids if the
    tokenizer has fewer. DeepConf's confidence is minus this value."""
    num_tries: int = 1
    """Traces that were drawn; rejection sampling may draw several."""
    num_rejected_tokens: int = 0
    """Thinking tokens of the rejected traces, each up to one token past the budget."""

    @property
    def num_forced(self) -> int:
        """Number of tokens that were not sampled."""
        return sum(self.forced)
