"""A tokenizer's chat template, taken apart: what it writes around a system prompt, a question and an answer.

The template is given made-up words in their places. It may strip a text that it is given. It must write the text once, and the same
around any other text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from s1jax.data.encoder import Segment, named_errors
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _QUESTION, _ANSWER = "s1jax system", "s1jax question", "s1jax answer"


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """The texts that a chat template writes under one system prompt."""

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str
    """If empty, the template writes its own, or none."""
    before: tuple[Segment, ...]
    """Up to a question."""
    after: str
    """After a question, up to where the model continues."""
    end: str
    """After an answer."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, system_prompt: str = "") -> ChatTemplate:
        """Take the template of a tokenizer apart. Raises UserError if it has none, or if the template cannot be used."""
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer {tokenizer.name_or_path!r} lacks a chat template: use that of a chat model")
        before, after = _split(tokenizer, _apply(tokenizer, system_prompt, _QUESTION), _QUESTION, "a user's turn")
        finished = _apply(tokenizer, system_prompt, _QUESTION, _ANSWER)
        end = _split(tokenizer, finished, _ANSWER, "an answer")[1]
        segments: tuple[Segment, ...] = ((before, True),)
        if system_prompt:
            what = "a system prompt before a user's turn (leave system_prompt out)"
            first, rest = _split(tokenizer, _apply(tokenizer, _SYSTEM, _QUESTION), _SYSTEM, what)
            between = _split(tokenizer, rest, _QUESTION, what)[0]
            given = _middle(tokenizer, before, first, between, system_prompt)
            segments = ((first, True), (given, False), (between, True))
        return cls(tokenizer, system_prompt, segments, after, end)

    def segments(self, question: str) -> list[Segment]:
        """Return the texts of a prompt. Raises UserError if the template writes more than the question in its place."""
        text, before = _apply(self.tokenizer, self.system_prompt, question), "".join(text for text, _ in self.before)
        asked = _middle(self.tokenizer, text, before, self.after, question)
        return [*self.before, (asked, False), (self.after, True)]


def _apply(tokenizer: PreTrainedTokenizerBase, system_prompt: str, question: str, answer: str | None = None) -> str:
    turns = [("system", system_prompt), ("user", question), ("assistant", answer)]
    messages = [{"role": role, "content": content} for role, content in turns if content]
    whose = "a system prompt and a user's turn" if system_prompt else "a user's turn"
    with named_errors(tokenizer, f"apply its chat template to {whose}"):
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None))


def _split(tokenizer: PreTrainedTokenizerBase, text: str, word: str, what: str) -> tuple[str, str]:
    """Return what the template wrote before and after a word."""
    before, found, after = text.partition(word)
    if not found:
        raise UserError(f"the chat template of {tokenizer.name_or_path!r} does not write {what}")
    return before, after


def _middle(tokenizer: PreTrainedTokenizerBase, text: str, before: str, after: str, content: str) -> str:
    """Return what the template wrote between two texts where it was given `content`."""
    if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} writes more than the text in its place where it is given "
            f"{shortened(content)}: use one that writes a turn as it is"
        )
    return text[len(before) : len(text) - len(after)]
