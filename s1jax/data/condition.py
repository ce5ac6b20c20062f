"""A decoding condition: every setting that can change an answer.

Configs, requests and sample rows share this dataclass. Each field is a column of a sample row, so a new setting is added only here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from s1jax.data.control_methods import FORCING, METHOD_FORMATS, Method, control_prompt
from s1jax.data.encoder import check_text
from s1jax.data.thinking_format import AUTO, END, NONE, find_format
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types
from s1jax.runtime.precision import DType, Int8
from s1jax.runtime.terminal import shortened

LARGEST = 2**31 - 1
"""The largest integer that devices hold: counts and seeds are int32."""

AnswerEnd = Literal["stop", "length", "rejected"]
"""What ended an answer: the model, or `max_answer_tokens`. `rejected`: there is none, because every trace that was drawn is too long."""
MAX_TRIES = 2**15
"""The largest number of traces that rejection sampling may draw for an answer."""


class Limits(NamedTuple):
    """What ends a thinking trace. Counts are in tokens."""

    max_thinking_tokens: int
    min_thinking_tokens: int = 0
    num_ignore: int = 0


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """The settings that the conditions of a sweep share."""

    max_answer_tokens: int = 512
    """Longest answer."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all. Needs a temperature above 0."""
    top_p: float = 1.0
    """Keep the likeliest tokens until their probability reaches p. Needs a temperature above 0."""
    min_p: float = 0.0
    """Drop tokens less likely than p times the likeliest. Needs a temperature above 0."""
    dtype: DType = "bfloat16"
    """Dtype of weights, cache and compute."""
    int8: tuple[Int8, ...] = ()
    """What is stored in 8 bits: `weights`, `cache` or both."""
    thinking_format: str = AUTO
    """What opens and ends thinking: s1, think (`<think>...</think>`), openthinker, or a pair of texts of your own, OPEN...END.
    none: the model answers at once. auto: the format that the tokenizer is made for. A row holds the format, never auto."""
    wrap_up: str = "Final Answer:"
    """Text that is written behind the end of thinking if the budget ended it. `{end}` in it stands for the end, so that text may also
    stand before it. If empty, the end stands alone."""
    prompt_suffix: str = ""
    """Text behind each question, after a blank line."""
    system_prompt: str = ""
    """System prompt. If empty, the chat template writes its own, or none."""

    def __post_init__(self) -> None:
        check_types(self)
        check_integer("top_k", self.top_k)
        check_integer("max_answer_tokens", self.max_answer_tokens, least=1)
        for name in ("wrap_up", "prompt_suffix", "system_prompt"):
            check_text(name, getattr(self, name))
        if self.thinking_format != AUTO:
            find_format(self.thinking_format)
        if self.wrap_up.count(END) > 1:
            raise UserError(f"wrap_up is {shortened(self.wrap_up)}; it may hold {END} once")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}; it must be finite and not negative")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}; it must be from 0 to 1")
        if self.temperature == 0:
            for name, unused in (("top_k", 0), ("top_p", 1), ("min_p", 0)):
                if (value := getattr(self, name)) != unused:
                    raise UserError(
                        f"{name} {value} has no effect at temperature 0: leave it out, or give a temperature above 0"
                    )
        if self.thinking_format == NONE and self.wrap_up not in ("", TraceSettings.wrap_up):
            raise UserError(f"wrap_up has no effect under the thinking format {NONE}: there is no thinking to end")
        # One way to write each choice, since equal conditions must be equal columns of a row.
        if self.thinking_format == NONE:
            object.__setattr__(self, "wrap_up", "")
        object.__setattr__(self, "int8", tuple(sorted(set(self.int8))))


@dataclass(frozen=True)
class Condition(TraceSettings):
    """One decoding condition. Counts are in tokens."""

    max_thinking_tokens: int
    """Thinking budget. At the limit the answer is forced. 0: at once."""
    min_thinking_tokens: int = 0
    """Thinking may not end before this many tokens."""
    num_ignore: int = 0
    """How many attempts to end thinking are replaced by `ignore_text`."""
    ignore_text: str = "Wait"
    """Text that replaces an attempt to end thinking. If empty, another token is drawn instead."""
    method: Method = "budget_forcing"
    """How the amount of thinking is controlled."""
    requested: str = ""
    """The amount of thinking that a conditional method asks for in the prompt: a number of tokens or steps, or short or long."""
    max_tries: int = 1
    """How many traces rejection sampling draws, at most, until one has no more than `max_thinking_tokens`."""

    def __post_init__(self) -> None:
        method = self.method
        if own := METHOD_FORMATS.get(method):
            if self.thinking_format not in (AUTO, own):
                raise UserError(f"thinking_format is {self.thinking_format}: {method} needs {own}")
            object.__setattr__(self, "thinking_format", own)
        super().__post_init__()
        check_text("ignore_text", self.ignore_text)
        for name in Limits._fields:
            check_integer(name, getattr(self, name))
        if self.thinking_format == NONE:
            self._check_answers_at_once()
        if self.min_thinking_tokens > self.max_thinking_tokens:
            raise UserError(
                f"min_thinking_tokens {self.min_thinking_tokens} is above max_thinking_tokens {self.max_thinking_tokens}"
            )
        if (self.min_thinking_tokens or self.num_ignore) and method not in FORCING:
            raise UserError(f"min_thinking_tokens and num_ignore have no effect under {method}: it forces nothing")
        self._check_method()

    def _check_answers_at_once(self) -> None:
        """Raise UserError if a setting controls the thinking of a model that does not think."""
        if self.method != "budget_forcing":
            raise UserError(
                f"method is {self.method}: under the thinking format {NONE} there is no thinking to control"
            )
        for name, value in self.limits._asdict().items():
            if value:
                raise UserError(
                    f"{name} is {value}; it must be 0 under the thinking format {NONE}: the model answers at once"
                )

    def _check_method(self) -> None:
        """Raise UserError unless the request, the tries and the budget are those of the method."""
        control_prompt(self.method, self.requested)
        if self.method == "token_conditional_forced" and self.max_thinking_tokens != int(self.requested):
            raise UserError(
                f"max_thinking_tokens is {self.max_thinking_tokens}: token_conditional_forced needs the number that is requested, "
                f"{self.requested}"
            )
        check_integer("max_tries", self.max_tries, least=1, most=MAX_TRIES)
        if self.method != "rejection_sampling":
            if self.max_tries > 1:
                raise UserError(f"max_tries {self.max_tries} has no effect under {self.method}: it draws one trace")
        elif self.temperature == 0:
            raise UserError("rejection_sampling at temperature 0 would draw the same trace again: give a temperature")
        elif self.max_tries == 1:
            raise UserError(
                "rejection_sampling needs max_tries above 1: how many traces it draws until one is short enough"
            )

    @property
    def prompt(self) -> str:
        """Text behind the question that asks for an amount of thinking; "" if the method asks for nothing."""
        return control_prompt(self.method, self.requested)

    @property
    def limits(self) -> Limits:
        """What ends the thinking."""
        return Limits(self.max_thinking_tokens, self.min_thinking_tokens, self.num_ignore)


def check_integer(name: str, value: int, least: int = 0, most: int = LARGEST) -> None:
    """Raise UserError, with the name of the value, unless `least <= value <= most`."""
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; it must be from {least} to {most}")
