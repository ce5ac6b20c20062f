"""Thinking formats: the texts with which a model opens and ends its thinking, and how a training example stands around them.

In: the name of a format, or what a tokenizer and its chat template reveal. Out: a `ThinkingFormat`. This file encodes nothing.
`<|im_start|>` is a token wherever a format uses it. The other texts may be tokens of a tokenizer or ordinary text.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
AUTO = "auto"
"""Stands for the format that `recognise` returns."""
NONE = "none"
"""Names the format of a model that answers at once."""

END = "{end}"
"""Stands in a wrap-up for the answer delimiter."""


@dataclass(frozen=True)
class ThinkingFormat:
    """The texts of one format. A training example reads: opening, trace, `answer`, answer."""

    name: str
    opening: str
    """Ends a prompt."""
    around_trace: tuple[str, str]
    """What a training example writes before and after a trace."""
    ends: tuple[str, ...]
    """With each of these the model ends its thinking."""
    answer: str
    """The answer delimiter, which is written when the thinking has ended."""
    around_answer: tuple[str, str]
    """What a training example writes before and after an answer. The first text also stands before a wrap-up."""
    forced_ends: tuple[str, ...] = ()
    """Those of `ends` after which the wrap-up is written, too."""

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think. If not, its whole reply to the chat prompt is the answer."""
        return bool(self.ends)

    def opens(self, prompt: str) -> bool:
        """Return whether a chat template's prompt ends in this format's opening."""
        return self.thinks and prompt.rstrip().endswith(self.opening.rstrip())

    def rest_of_opening(self, prompt: str) -> str:
        """Return what of the opening a chat template's prompt lacks: all of it, its line breaks, or nothing."""
        if not self.opens(prompt):
            return self.opening
        written, opened = prompt.rstrip(), self.opening.rstrip()
        return self.opening[len(opened) + len(prompt) - len(written) :]


def _tagged(name: str, opening: str, end: str) -> ThinkingFormat:
    return ThinkingFormat(
        name, opening=f"{opening}\n", around_trace=("", "\n"), ends=(end,), answer=end, around_answer=("\n\n", "")
    )


_THINK = _tagged("think", "<think>", "</think>")
_S1 = ThinkingFormat(
    "s1",
    opening=f"{IM_START}think",
    around_trace=("\n", "\n"),
    ends=(IM_START,),
    answer=f"{IM_START}answer",
    around_answer=("\n", ""),
)
_OPENTHINKER = ThinkingFormat(
    "openthinker",
    opening="<|begin_of_thought|>\n\n",
    around_trace=("", "\n\n"),
    ends=("<|end_of_thought|>",),
    answer="<|end_of_thought|>\n\n<|begin_of_solution|>\n\n",
    around_answer=("", "\n\n<|end_of_solution|>"),
)
# The paper's step-conditional control: `<|im_start|>` heads each step, and ends the thinking only before "answer".
_STEPS = ThinkingFormat(
    "steps",
    opening=IM_START,
    around_trace=("", "\n"),
    ends=(f"{IM_START}answer",),
    answer=f"{IM_START}answer",
    around_answer=("\n", ""),
)
# With budget forcing the header of a step 0 ends the thinking, too.
_STEPS_FORCED = replace(_STEPS, name="steps_forced", ends=(f"{IM_START}0", *_STEPS.ends), forced_ends=(f"{IM_START}0",))
_NONE = ThinkingFormat(NONE, opening="", around_trace=("", ""), ends=(), answer="", around_answer=("", ""))
FORMATS = {format.name: format for format in (_S1, _THINK, _OPENTHINKER, _STEPS, _STEPS_FORCED, _NONE)}
CHOICES = f"{', '.join(FORMATS)} or a pair of texts OPEN...END"


def find_format(name: str) -> ThinkingFormat:
    """Return the format of this name, or of the pair of texts `OPEN...END`. Raises UserError if it is neither."""
    if name in FORMATS:
        return FORMATS[name]
    opening, _, end = name.partition("...")
    if not opening.strip() or not end.strip() or "..." in end:
        raise UserError(f"thinking_format is {shortened(name)}: it must be {AUTO}, {CHOICES}")
    pair = _tagged(name, opening, end)
    return next(
        (named for named in FORMATS.values() if named.opening == pair.opening and named.ends == pair.ends), pair
    )


def recognise(prompt: str, template: str, added_tokens: Collection[str]) -> ThinkingFormat | None:
    """Return the format that a tokenizer is made for, None if that is not certain.

    `prompt` is what the chat template writes after a question, `template` its source.
    """
    if _THINK.opens(prompt) or {"<think>", "</think>"} <= set(added_tokens):
        return _THINK
    if "<|begin_of_thought|>" in template:
        return _OPENTHINKER
    is_chatml = IM_END in prompt and prompt.endswith(f"{IM_START}assistant\n")
    return _S1 if is_chatml and {IM_START, IM_END} <= set(added_tokens) else None


def misfit(format: ThinkingFormat, prompt: str, added_tokens: Collection[str]) -> str | None:
    """Return why a format does not fit a tokenizer, None if it fits. The arguments are those of `recognise`."""
    if IM_START in format.opening and IM_START not in added_tokens:
        return f"it lacks the token {IM_START}"
    if not format.opens(prompt) and (opened := next((f.name for f in FORMATS.values() if f.opens(prompt)), None)):
        return f"its chat template opens the thinking in the format {opened}"
    return None
