"""Text <-> token ids of prompts, training examples and answers: a tokenizer, its chat template and a thinking format.

A training example reads, without a line break that is not written here,

    {chat template with the question, up to where the model continues}
    {what opens thinking}{trace}{answer delimiter}{answer}{what the chat template writes after an answer}

In the format of s1 (paper section 4.1) under Qwen2.5 the last line is

    <|im_start|>think\\n{trace}\\n<|im_start|>answer\\n{answer}<|im_end|>\\n

In the format `steps` of step-conditional control, a trace of two steps with the label 2 gives

    <|im_start|>2 steps left\\n{step}\\n<|im_start|>1 steps left\\n{step}\\n<|im_start|>answer\\n{answer}<|im_end|>\\n

Invariants:
- The prompt at inference is a prefix of the training example, id for id. So both are tokenised in the same pieces: the parts in braces
  above. Under Qwen2.5 the whole string has the same ids, since its tokenizer splits there, too.
- Text from a user, a dataset or a model never becomes a markup token (`encoder.py`), even if it spells one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from s1jax.data.chat_template import ChatTemplate
from s1jax.data.control_methods import Method, control_prompt, numbered_steps
from s1jax.data.encoder import Encoder
from s1jax.data.thinking_format import AUTO, CHOICES, END, END_OF_TEXT, ThinkingFormat, find_format, misfit, recognise
from s1jax.runtime.errors import UserError

if TYPE_CHECKING:  # the import takes 0.6 s
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["reasoning_and_answer", "answer"]


@dataclass(frozen=True)
class Delimiters:
    """What separates thinking from answering under one tokenizer."""

    think: tuple[int, ...]
    """Ends a prompt: empty if the chat template opened the thinking itself, or if the model does not think."""
    answer: tuple[int, ...]
    """Written when the model ends its thinking; empty if it does not think."""
    newline: tuple[int, ...]
    """A line break: written before a forced delimiter unless the text already ends in one."""
    end_thinking: tuple[str, ...]
    """Texts that end the thinking, those of `end_answer` among them. Added tokens are spelt as they are: `<|im_start|>0`."""
    forced_ends: tuple[str, ...]
    """Those of `end_thinking` after which the forced delimiter is written, not `answer`."""
    end_answer: tuple[int, ...]
    """Single ids that end the answer: that of the chat template, then `<|endoftext|>` and the tokenizer's end token if it has them."""
    pad: int
    """The id that fills empty positions."""


@dataclass(frozen=True, eq=False)
class ChatFormat:
    """How one tokenizer writes prompts, training examples and answers. Build it once per tokenizer with `ChatFormat.of`."""

    encoder: Encoder
    template: ChatTemplate
    thinking: ThinkingFormat
    delimiters: Delimiters
    after_answer: tuple[int, ...]
    """The ids that the chat template writes after an answer."""
    prompt_suffix: str

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        thinking_format: str = AUTO,
        system_prompt: str = "",
        prompt_suffix: str = "",
    ) -> ChatFormat:
        """Return the format of this tokenizer. `TraceSettings` explains the other arguments.

        Raises UserError if the thinking format does not fit the tokenizer, or must be given, and if the tokenizer has no usable chat
        template or does not give text back as it was.
        """
        encoder, template = Encoder.of(tokenizer), ChatTemplate.of(tokenizer, system_prompt)
        return cls._of_parts(encoder, template, thinking_format, prompt_suffix)

    def in_format(self, thinking_format: str) -> ChatFormat:
        """Return this format with another thinking format. Raises UserError if that does not fit the tokenizer."""
        return self._of_parts(self.encoder, self.template, thinking_format, self.prompt_suffix)

    @classmethod
    def _of_parts(
        cls, encoder: Encoder, template: ChatTemplate, thinking_format: str, prompt_suffix: str
    ) -> ChatFormat:
        tokenizer, thinking = encoder.tokenizer, _thinking_format(encoder, template, thinking_format)

        def ids(text: str) -> tuple[int, ...]:
            return tuple(encoder.encode_segments([(text, True)]))

        encoder.check_keeps(f"{thinking.opening}{thinking.answer}\nFinal Answer:")
        encoder.check_pieces("".join(text for text, _ in template.segments("What is 2 + 2?")))
        end_of_text = encoder.added_tokens.get(END_OF_TEXT)
        token = encoder.markup.search(template.end)
        end = encoder.added_tokens[token[0]] if token else tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no token that ends an answer: use that of a chat model"
            )
        end_answer = tuple(dict.fromkeys(i for i in (end, end_of_text, tokenizer.eos_token_id) if i is not None))
        delimiters = Delimiters(
            think=ids(thinking.rest_of_opening(template.after)),
            answer=ids(thinking.answer),
            newline=ids("\n"),
            end_thinking=(*thinking.ends, *tokenizer.convert_ids_to_tokens(list(end_answer))),
            forced_ends=thinking.forced_ends,
            end_answer=end_answer,
            pad=next(i for i in (tokenizer.pad_token_id, end_of_text, end) if i is not None),
        )
        after_answer = ids(template.end) if token else (end,)
        return cls(encoder, template, thinking, delimiters, after_answer, prompt_suffix)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text` alone. Like every method that encodes text, this raises UserError if it is not valid Unicode."""
        return self.encoder.encode_text(text)

    def encode_chat(self, question: str, amount: str = "") -> list[int]:
        """Return the ids of the chat template with a user's turn: `question`, `amount` and the prompt suffix, with blank lines between.

        `amount` is what a control method asks for (`control_prompt`). The ids end where the model continues. Raises UserError if the
        question is empty, or if the template writes more in its place.
        """
        if not question.strip():
            raise UserError(f"the question {question!r} is empty: give some text")
        for text in filter(None, (amount, self.prompt_suffix)):
            question = f"{question.rstrip()}\n\n{text}"
        return self.encoder.encode_segments(self.template.segments(question))

    def encode_prompt(self, question: str, amount: str = "") -> list[int]:
        """Return the ids that a model continues: those of `encode_chat`, then what opens the thinking, if the model thinks."""
        return self.encode_chat(question, amount) + list(self.delimiters.think)

    def encode_trace(self, thinking: str, method: Method = "budget_forcing", requested: str = "") -> list[int]:
        """Return the ids between what opens the thinking and the answer delimiter of a training example."""
        before, after = self.thinking.around_trace
        in_steps = method == "step_conditional"
        trace = numbered_steps(thinking, requested) if in_steps else [(thinking.strip(), False)]
        return self.encoder.encode_segments([(before, True), *trace, (after, True)])

    def encode_final(self, wrap_up: str) -> list[int]:
        """Return the ids of the delimiter that is forced when the budget ends the thinking, without a line break before it.

        `wrap_up` stands behind the answer delimiter, or around it if it holds `{end}`. If it is empty, the delimiter stands alone.
        """
        before, end, after = wrap_up.partition(END)
        if not end:
            before, after = "", wrap_up and self.thinking.around_answer[0] + wrap_up
        return [*self.encode_text(before), *self.delimiters.answer, *self.encode_text(after)]

    def encode_example(
        self,
        question: str,
        thinking: str,
        answer: str,
        loss_on: LossOn = "reasoning_and_answer",
        method: Method = "budget_forcing",
        requested: str = "",
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of one training example, and a mask of the same length: whether the loss is taken on each id.

        With `loss_on="reasoning_and_answer"` the mask begins behind the ids of `encode_chat`, with `"answer"` at the answer delimiter.
        Trace and answer are stripped. The answer gets the prefix `Answer: ` unless it contains `Answer:`. `method` and `requested` are the
        label of the row. Step-conditional control needs this chat format in the thinking format `steps`. Raises UserError if the question
        is empty, or if the label is not valid.
        """
        before_answer, after_answer = self.thinking.around_answer
        prompt_ids = self.encode_chat(question, control_prompt(method, requested))
        thinking_ids = [*self.delimiters.think, *self.encode_trace(thinking, method, requested)]
        answer_text = f"{before_answer}{with_label(answer.strip())}"
        answer_ids = [
            *self.delimiters.answer,
            *self.encoder.encode_segments([(answer_text, False), (after_answer, True)]),
        ]
        answer_ids += self.after_answer
        parts = ((prompt_ids, False), (thinking_ids, loss_on == "reasoning_and_answer"), (answer_ids, True))
        loss_mask = [trained for ids, trained in parts for _ in ids]
        return prompt_ids + thinking_ids + answer_ids, loss_mask

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of some ids as the tokens spell it, with or without special tokens."""
        return self.encoder.decode(ids, skip_special_tokens)

    def split_completion(self, tokens: Sequence[int], num_thinking: int) -> tuple[str, str]:
        """Return the text of the thinking (the first `num_thinking` tokens) and the text of the answer.

        The answer begins behind its delimiter, so a forced "Final Answer:" is part of it. It lacks the token that ended it, and what the
        format writes behind an answer. Special tokens within the thinking stay. Without thinking, the answer is the whole reply.
        """
        answer = self.decode(tokens[num_thinking:])
        if self.thinking.thinks:
            answer = answer.partition(self.thinking.answer)[2]
        for end in self.delimiters.end_answer:
            answer = answer.removesuffix(self.decode([end]))
        return self.decode(tokens[:num_thinking]), answer.removesuffix(self.thinking.around_answer[1])

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """All special and other added tokens."""
        return self.encoder.added_tokens

    @functools.cached_property
    def token_texts(self) -> list[str]:
        """The text of each id below `len(tokenizer)`."""
        return [self.decode([i]) for i in range(len(self.encoder.tokenizer))]


def _thinking_format(encoder: Encoder, template: ChatTemplate, name: str) -> ThinkingFormat:
    """Return the format of this name, or the one that the tokenizer is made for. Raises UserError if it does not fit or is not certain."""
    tokenizer, prompt, tokens = encoder.tokenizer, template.after, encoder.added_tokens
    if name != AUTO:
        thinking = find_format(name)
        if why := misfit(thinking, prompt, tokens):
            raise UserError(f"the thinking format {name} does not fit the tokenizer {tokenizer.name_or_path!r}: {why}")
        return thinking
    if (recognised := recognise(prompt, str(tokenizer.chat_template), tokens)) is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} does not show how its model thinks: give --thinking-format (in training "
            f"--data.thinking-format) {CHOICES}"
        )
    return recognised


def with_label(answer: str) -> str:
    """Return an answer, with the prefix `Answer: ` unless it contains `Answer:`."""
    return answer if "Answer:" in answer else f"Answer: {answer}"


# For models without a tokenizer, such as random weights. Nobody reads these ids as text.
MADE_UP_DELIMITERS = Delimiters(
    think=(1, 2),
    answer=(1, 3),
    newline=(4,),
    end_thinking=("<1>", "<6>"),
    forced_ends=(),
    end_answer=(6,),
    pad=6,
)
MADE_UP_TOKENS = {"<1>": 1, "<6>": 6}


def made_up_texts(vocab_size: int) -> list[str]:
    """Return the texts of so many made-up tokens."""
    return ["\n" if i == 4 else f"<{i}>" for i in range(vocab_size)]
