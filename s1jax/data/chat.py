"""Text <-> token ids in the chat format of s1 (paper section 4.1).

A training example reads, without a line break between the two lines,

    {chat template with the question, up to <|im_start|>assistant\\n}
    <|im_start|>think\\n{trace}\\n<|im_start|>answer\\n{answer}<|im_end|>\\n

Invariants:
- The prompt at inference is a prefix of the training example, id for id. So both are tokenised in the same pieces. A piece ends at a
  special token or after the word `think` or `answer`. Qwen2.5's tokenizer also splits there, so the whole string has the same ids.
- Text from a user, a dataset or a model never becomes a special token, even if it spells one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool

from s1jax.runtime.errors import UserError, reason_of
from s1jax.runtime.terminal import shortened

if TYPE_CHECKING:  # the import takes 0.6 s, and grading reads only this file's constants
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["reasoning_and_answer", "answer"]

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
ASSISTANT = f"{IM_START}assistant\n"


@dataclass(frozen=True)
class Delimiters:
    """Token ids, under one tokenizer, of the strings that separate thinking from answering."""

    think: tuple[int, ...]
    """`<|im_start|>think`: ends a prompt."""
    answer: tuple[int, ...]
    """`<|im_start|>answer`: written when the model ends its thinking."""
    final_answer: tuple[int, ...]
    """`<|im_start|>answer\\nFinal Answer:`: written when the budget ends the thinking."""
    newline: tuple[int, ...]
    """A line break: written before `final_answer` unless the text already ends in one."""
    end_thinking: tuple[int, ...]
    """Single ids that end the thinking: `<|im_start|>` and all of `end_answer`."""
    end_answer: tuple[int, ...]
    """Single ids that end the answer: `<|im_end|>`, then `<|endoftext|>` and the tokenizer's end token if it has them."""
    pad: int
    """The id that fills empty positions."""


# For models without a tokenizer, such as random weights. Nobody reads these ids as text.
MADE_UP_DELIMITERS = Delimiters(
    think=(1, 2), answer=(1, 3), final_answer=(1, 3, 4, 5), newline=(4,), end_thinking=(1, 6), end_answer=(6,), pad=6
)


@dataclass(frozen=True, eq=False)
class ChatFormat:
    """How one tokenizer writes prompts, training examples and answers. Build it once per tokenizer with `ChatFormat.of`."""

    tokenizer: PreTrainedTokenizerBase
    delimiters: Delimiters
    before_question: str
    after_question: str
    """The text that the chat template writes before, or after, a question."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """Return the format of this tokenizer.

        Raises UserError unless it has `<|im_start|>`, `<|im_end|>` and a ChatML chat template, and gives text back as it was.
        """
        start, end, end_of_text = (_special_id(tokenizer, token) for token in (IM_START, IM_END, END_OF_TEXT))
        missing = [f"the special token {token}" for token, i in ((IM_START, start), (IM_END, end)) if i is None]
        if not tokenizer.chat_template:
            missing.append("a chat template")
        if start is None or end is None or missing:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r} lacks {', '.join(missing)}: "
                "use the tokenizer of a ChatML chat model, such as Qwen2.5-Instruct"
            )

        def ids(text: str) -> list[int]:
            return _encode(tokenizer, text, split_special_tokens=True)

        label = "answer\nFinal Answer:"
        if (spelt := str(tokenizer.decode(ids(label))).strip()) != label:
            raise UserError(f"tokenizer {tokenizer.name_or_path!r} loses text: it writes {label!r} as {spelt!r}")
        end_answer = tuple(dict.fromkeys(i for i in (end, end_of_text, tokenizer.eos_token_id) if i is not None))
        delimiters = Delimiters(
            think=(start, *ids("think")),
            answer=(start, *ids("answer")),
            final_answer=(start, *ids(label)),
            newline=tuple(ids("\n")),
            end_thinking=(start, *end_answer),
            end_answer=end_answer,
            pad=next(i for i in (tokenizer.pad_token_id, end_of_text, end) if i is not None),
        )
        return cls(tokenizer, delimiters, *_split_template(tokenizer))

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text` alone. Like every method that encodes text, this raises UserError if it is not valid Unicode."""
        return _encode(self.tokenizer, text, split_special_tokens=True)

    def encode_chat(self, question: str) -> list[int]:
        """Return the ids of the chat template with `question` as the user's turn, up to `<|im_start|>assistant\\n`.

        Raises UserError if the question is empty, or if the template writes more than the question in its place.
        """
        if not question.strip():
            raise UserError(f"the question {question!r} is empty: give some text")
        before, after, text = self.before_question, self.after_question, _apply_template(self.tokenizer, question)
        # The template may change the question (strip it, for example), but nothing around it.
        if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path!r} writes more than the question where it is asked "
                f"{shortened(question)}: use one that writes a user's turn as it is"
            )
        # The turn between its special tokens is one piece, because a question may merge with the line break before it.
        start = before.rindex(IM_START) + len(IM_START)
        stop = len(text) - len(after) + after.index(IM_END)
        pieces = ((text[:start], False), (text[start:stop], True), (text[stop:], False))
        return [i for piece, is_text in pieces for i in _encode(self.tokenizer, piece, split_special_tokens=is_text)]

    def encode_prompt(self, question: str) -> list[int]:
        """Return the ids that a model continues with its thinking: those of `encode_chat`, then the think delimiter."""
        return self.encode_chat(question) + list(self.delimiters.think)

    def encode_example(
        self, question: str, thinking: str, answer: str, loss_on: LossOn = "reasoning_and_answer"
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of one training example, and a mask of the same length: whether the loss is taken on each id.

        With `loss_on="reasoning_and_answer"` the mask begins after `<|im_start|>assistant\\n`, with `"answer"` at `<|im_start|>answer`.
        Trace and answer are stripped. The answer gets the prefix `Answer: ` unless it contains `Answer:`. Raises UserError if the question
        is empty.
        """
        prompt_ids = self.encode_chat(question)
        thinking_ids = [*self.delimiters.think, *self.encode_text(f"\n{thinking.strip()}\n")]
        answer_ids = [*self.delimiters.answer, *self.encode_text(f"\n{with_label(answer.strip())}")]
        answer_ids += [self.delimiters.end_answer[0], *self.delimiters.newline]
        parts = ((prompt_ids, False), (thinking_ids, loss_on == "reasoning_and_answer"), (answer_ids, True))
        loss_mask = [trained for ids, trained in parts for _ in ids]
        return prompt_ids + thinking_ids + answer_ids, loss_mask

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of some ids as the tokens spell it, with or without special tokens."""
        options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), **options))

    def split_completion(self, tokens: Sequence[int], num_thinking: int) -> tuple[str, str]:
        """Return the text of the thinking (the first `num_thinking` tokens) and the text of the answer.

        The answer begins after its delimiter, so a forced "Final Answer:" is part of it. It lacks the token that ended it. Special tokens
        within the thinking stay.
        """
        answer = self.decode(tokens[num_thinking:]).partition(f"{IM_START}answer")[2]
        for end in self.delimiters.end_answer:
            answer = answer.removesuffix(self.decode([end]))
        return self.decode(tokens[:num_thinking]), answer

    @property
    def newline_ids(self) -> Bool[np.ndarray, " num_tokens"]:
        """For every id below `len(tokenizer)`: whether its text ends in a line break."""
        return np.array([self.decode([i]).endswith("\n") for i in range(len(self.tokenizer))], bool)


def with_label(answer: str) -> str:
    """Return an answer, with the prefix `Answer: ` unless it contains `Answer:`."""
    return answer if "Answer:" in answer else f"Answer: {answer}"


def check_text(name: str, text: str) -> None:
    """Raise UserError, with the name of the text, if `text` holds a lone surrogate, as bytes other than UTF-8 give."""
    if found := re.search("[\ud800-\udfff]", text):
        kind = "a byte that is not UTF-8" if "\udc80" <= found[0] <= "\udcff" else "a lone surrogate"
        raise UserError(f"{name} is not valid Unicode: character {found.start() + 1} is {kind} ({found[0]!r})")


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, split_special_tokens: bool) -> list[int]:
    check_text(f"the text {shortened(text)}", text)
    with _named_errors(tokenizer, "encode a text"):
        # verbose=False: no warning about lengths, because `examples.py` checks them.
        encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False)
    return encoding["input_ids"]


@contextlib.contextmanager
def _named_errors(tokenizer: PreTrainedTokenizerBase, task: str) -> Iterator[None]:
    """Turn any error of the tokenizer or of jinja2, which have no common base class, into one UserError that names the tokenizer."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} cannot {task} ({reason_of(error)}): "
            "use the tokenizer of a ChatML chat model, such as Qwen2.5-Instruct"
        ) from error


def _special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """Return the id of a special token, or None if the tokenizer reads the token as ordinary text."""
    special, ordinary = (_encode(tokenizer, token, split_special_tokens=split) for split in (False, True))
    return special[0] if len(special) == 1 and special != ordinary else None


def _apply_template(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    with _named_errors(tokenizer, "apply its chat template to a user's turn"):
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _split_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the texts that the chat template writes before and after a question. Raises UserError if they are not ChatML."""
    text = _apply_template(tokenizer, "s1jax question")
    before, _, after = text.partition("s1jax question")
    if IM_START not in before or IM_END not in after or not after.endswith(ASSISTANT):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} is not ChatML: a user's turn must stand between {IM_START} and "
            f"{IM_END}, and {ASSISTANT!r} must follow, but the template writes {text!r}"
        )
    return before, after
