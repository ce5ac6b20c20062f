"""What curation asks a model about a row: a question, and the answer that its reference states.

The stages difficulty and traces write these as problems of an evaluation (`s1jax/evaluate/run.py`), whose sample rows are the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from data_tools.curation.quality import stated_answers
from s1jax.checkpoint.source import Source, load_tokenizer
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition
from s1jax.runtime import jsonl

UNKNOWN = "unknown"
"""Stands for the answer of a question without one, since a problem needs some."""
_DELIMITER_TOKENS = 64
"""At least as many tokens as the delimiters of any thinking format."""


@dataclass(frozen=True)
class AskedQuestion:
    """A question, and what is known about its answer."""

    question: str
    reference: str
    gold: str
    """The answer that the reference states, by its last reading; `UNKNOWN` if it states none."""

    @classmethod
    def of(cls, question: str, reference: str) -> AskedQuestion:
        """Return the question with what its reference states."""
        # In a problem file, the answer is what follows the last "####".
        readings = [answer.rpartition("####")[2].strip() for answer in stated_answers(reference)]
        return cls(question, reference, next(filter(None, reversed(readings)), UNKNOWN))

    @property
    def has_gold(self) -> bool:
        """Whether the reference states an answer."""
        return self.gold != UNKNOWN

    @property
    def problem_id(self) -> str:
        """16 hex digits of a hash of question and reference. So a question whose reference was edited is asked again."""
        return hashlib.sha256(f"{len(self.question)} {self.question}{self.reference}".encode()).hexdigest()[:16]


def write_problems(path: Path, questions: Iterable[AskedQuestion]) -> None:
    """Write a problem file that evaluation reads."""
    jsonl.write(path, (dict(id=q.problem_id, question=q.question, answer=q.gold) for q in questions))


def prompt_room(source: Source, condition: Condition) -> tuple[int, Callable[[str], int]]:
    """Return for how long a prompt a model has room beside its thinking and answer, and a function that gives the length of a question's
    prompt. Lengths are in tokens.
    """
    chat = ChatFormat.of(
        load_tokenizer(source), condition.thinking_format, condition.system_prompt, condition.prompt_suffix
    )
    room = source.model_config(condition.dtype).context_length - condition.max_thinking_tokens
    room -= condition.max_answer_tokens + len(chat.encode_final(condition.wrap_up)) + _DELIMITER_TOKENS
    return room, lambda question: len(chat.encode_prompt(question))
