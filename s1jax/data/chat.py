"""Question, reasoning trace and answer <-> token ids and loss mask, in the chat format of s1 (paper section 4.1).

In: text and a Hugging Face tokenizer of a ChatML chat model. Out: plain lists of token ids. A training example reads

    {chat template with the question, up to <|im_start|>assistant\\n}
    <|im_start|>think\\n{trace}\\n<|im_start|>answer\\n{answer}<|im_end|>\\n

without a line break between these two lines. The delimiters reuse the special token `<|im_start|>` followed by ordinary
text, so no token is added to the vocabulary.

Invariants:
- A prompt at inference is, id for id, a prefix of the training example. So both are tokenised in the same pieces, which
  end at a special token or behind the word `think` or `answer`. Qwen2.5's tokenizer splits at just these places anyway
  (special tokens stand alone, and a word never merges with the line break behind it), so the ids are also those of
  tokenising the whole string at once.
- Text from a user, a dataset or a model never becomes a special token, even if it spells one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from s1jax.runtime.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["reasoning_and_answer", "answer"]

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
ASSISTANT = f"{IM_START}assistant\n"


@dataclass(frozen=True)
class Delimiters:
    """Token ids, under one tokenizer, of what separates thinking from answering."""

    think: tuple[int, ...]
    """`<|im_start|>think`: the end of a prompt."""
    answer: tuple[int, ...]
    """`<|im_start|>answer`: written when thinking ends by itself."""
    final_answer: tuple[int, ...]
    """`<|im_start|>answer\\nFinal Answer:`: written when the budget ends the thinking."""
    newline: tuple[int, ...]
    """A line break: written before `final_answer` unless the last token's text ends in one."""
    end_thinking: tuple[int, ...]
    """Single ids that end the thinking: `<|im_start|>` and those of `end_answer`."""
    end_answer: tuple[int, ...]
    """Single ids that end the answer: `<|im_end|>`, then `<|endoftext|>` and the tokenizer's own end if it has them."""
    pad: int
    """The id that fills empty positions."""


# For models without a tokenizer, such as random weights: ids that no one reads.
MADE_UP_DELIMITERS = Delimiters(
    think=(1, 2), answer=(1, 3), final_answer=(1, 3, 4, 5), newline=(4,), end_thinking=(1, 6), end_answer=(6,), pad=6
)


def find_delimiters(tokenizer: PreTrainedTokenizerBase) -> Delimiters:
    """Return the delimiters under this tokenizer.

    Raises UserError listing all that it lacks of `<|im_start|>`, `<|im_end|>` and a chat template, or if the template
    is not ChatML.
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
    _split_template(tokenizer)
    end_answer = tuple(dict.fromkeys(i for i in (end, end_of_text, tokenizer.eos_token_id) if i is not None))
    return Delimiters(
        think=(start, *encode_text(tokenizer, "think")),
        answer=(start, *encode_text(tokenizer, "answer")),
        final_answer=(start, *encode_text(tokenizer, "answer\nFinal Answer:")),
        newline=tuple(encode_text(tokenizer, "\n")),
        end_thinking=(start, *end_answer),
        end_answer=end_answer,
        pad=next(i for i in (tokenizer.pad_token_id, end_of_text, end) if i is not None),
    )


def check_text(name: str, text: str) -> None:
    """Raise UserError if `text` holds a lone surrogate, as text read from bytes that are no UTF-8 does: it has no token ids."""
    if found := re.search("[\ud800-\udfff]", text):
        kind = "a byte that is no UTF-8" if "\udc80" <= found[0] <= "\udcff" else "a lone surrogate"
        raise UserError(f"{name} is not valid Unicode: character {found.start() + 1} is {kind} ({found[0]!r})")


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of `text` alone: nothing is added, and a special token spelt in it stays ordinary text.

    Raises UserError on text that is not valid Unicode, as all that encodes text does.
    """
    return _encode(tokenizer, text, split_special_tokens=True)


def encode_chat(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Return the ids of the chat template with `question` as the user's turn, up to `<|im_start|>assistant\\n`.

    Raises UserError on an empty question and on a chat template that is missing or not ChatML.
    """
    if not question.strip():
        raise UserError(f"the question {question!r} is empty: give some text")
    before, after = _split_template(tokenizer)
    text = _apply_template(tokenizer, question)
    # The template may change the question (strip it, say), but nothing around it.
    if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} writes more than the question where it is asked "
            f"{question[:80]!r}: use one that writes a user's turn as it is"
        )
    # The turn between its special tokens is one piece: a question may merge with the line break before it.
    start = before.rindex(IM_START) + len(IM_START)
    stop = len(text) - len(after) + after.index(IM_END)
    return (
        _encode(tokenizer, text[:start], split_special_tokens=False)
        + encode_text(tokenizer, text[start:stop])
        + _encode(tokenizer, text[stop:], split_special_tokens=False)
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Return the ids behind which a model thinks: those of `encode_chat`, then the think delimiter.

    Raises UserError as `find_delimiters` and `encode_chat` do.
    """
    delimiters = find_delimiters(tokenizer)
    return encode_chat(tokenizer, question) + list(delimiters.think)


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    thinking: str,
    answer: str,
    loss_on: LossOn = "reasoning_and_answer",
) -> tuple[list[int], list[bool]]:
    """Return the ids of one training example and, of the same length, which of them the loss is taken on.

    `loss_on="reasoning_and_answer"`: all behind `<|im_start|>assistant\\n`; `"answer"`: from `<|im_start|>answer` on.
    Trace and answer are stripped, and the answer starts with `Answer: ` unless it contains `Answer:` already.
    Raises UserError on an empty question, trace or answer, and as `find_delimiters` and `encode_chat` do.
    """
    if loss_on not in get_args(LossOn):
        raise UserError(f"loss_on is {loss_on!r}: choose one of {', '.join(get_args(LossOn))}")
    thinking, answer = thinking.strip(), answer.strip()
    if not thinking or not answer:
        empty = "answer" if thinking else "reasoning trace"
        raise UserError(f"the {empty} of the question {question[:80]!r} is empty: give some text")
    if "Answer:" not in answer:
        answer = f"Answer: {answer}"
    delimiters = find_delimiters(tokenizer)
    prompt_ids = encode_chat(tokenizer, question)
    thinking_ids = [*delimiters.think, *encode_text(tokenizer, f"\n{thinking}\n")]
    answer_ids = [*delimiters.answer, *encode_text(tokenizer, f"\n{answer}")]
    answer_ids += [delimiters.end_answer[0], *delimiters.newline]
    loss_mask = [False] * len(prompt_ids)
    loss_mask += [loss_on == "reasoning_and_answer"] * len(thinking_ids)
    loss_mask += [True] * len(answer_ids)
    return prompt_ids + thinking_ids + answer_ids, loss_mask


def split_completion(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], num_thinking: int) -> tuple[str, str]:
    """Return the text of the thinking, the first `num_thinking` tokens, and that of the answer behind its delimiter.

    The thinking keeps special tokens it may hold; the answer loses the one that ends it. A "Final Answer:" that was forced stays.
    """
    thinking = str(tokenizer.decode(list(tokens[:num_thinking]), skip_special_tokens=False))
    after = str(tokenizer.decode(list(tokens[num_thinking:]), skip_special_tokens=False))
    answer = after.partition(f"{IM_START}answer")[2]
    for end in find_delimiters(tokenizer).end_answer:
        answer = answer.removesuffix(str(tokenizer.decode([end])))
    return thinking, answer


def newline_ids(tokenizer: PreTrainedTokenizerBase) -> Bool[np.ndarray, " V"]:
    """Return for every id below `len(tokenizer)` whether its text ends in a line break."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    return np.array([text.endswith("\n") for text in texts], bool)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, split_special_tokens: bool) -> list[int]:
    check_text(f"the text {text[:80]!r}", text)
    # verbose=False: no warning about lengths, `data.py` checks them.
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False)
    return encoding["input_ids"]


def _special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """Return the id of a special token, None if the tokenizer reads it as ordinary text, one token or several."""
    ids = _encode(tokenizer, token, split_special_tokens=False)
    return ids[0] if len(ids) == 1 and encode_text(tokenizer, token) != ids else None


def _apply_template(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _split_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the chat template writes before and after a question; ValueError if that is not ChatML."""
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise UserError(f"tokenizer {name!r} has no chat template: use that of a ChatML chat model")
    text = _apply_template(tokenizer, "s1jax question")
    before, _, after = text.partition("s1jax question")
    if IM_START not in before or IM_END not in after or not after.endswith(ASSISTANT):
        raise UserError(
            f"the chat template of {name!r} is not ChatML, where a user's turn stands between {IM_START} and {IM_END} "
            f"and {ASSISTANT!r} follows: it writes {text!r}"
        )
    return before, after
