"""Multiple-choice problems: the columns of one row -> the choices, and the letter of the right one.

The choices are a list (`choices` or `options`), an object from letter to text, an object of the lists `text` and `label`, the columns
`A`, `B`, ..., or GPQA's four columns. Each column that says which choice is right must name the same one. It may give

- a letter ("B" or "(B)"), or a label of the row's own, perhaps with the text
- a whole number that is no text, which counts from 0
- the text of a choice

The row's own labels come first, then the number. A row is refused if its answer could still mean two choices. A number in quotes is no
index: it may count from 0 or from 1.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from string import ascii_uppercase as LETTERS
from typing import Any

from s1jax.data.columns import filled_text_of, first_column, is_empty, is_missing, text_of
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

CHOICE_COLUMNS = ("choices", "options", "Choices", "Options")
RIGHT_COLUMNS = (
    "answer", "Answer", "gold", "answerKey", "answer_key", "answer_idx", "answer_index", "answer_letter", "correct_answer",
    "correct_option", "correct", "label",
)  # fmt: skip
# Columns of GPQA. The first one holds the right choice.
GPQA_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


@dataclass(frozen=True)
class Choices:
    """The choices of one problem."""

    texts: list[str]
    right: str
    """The letter of the right choice."""
    columns: tuple[str, ...]
    """The columns that hold the choices."""

    def below(self, question: str) -> str:
        """Return a question with the choices below it, each with its letter; the question alone if it shows them already."""
        choices = list(zip(LETTERS, self.texts, strict=False))
        if all(re.search(rf"\b{letter}\W{{1,3}}{re.escape(text)}", question) for letter, text in choices):
            return question
        return "\n".join([question.strip(), "", *(f"{letter}) {text}" for letter, text in choices)])


def find_choices(row: dict[str, Any], question: str) -> Choices | None:
    """Return the choices of a row, None if it has none. Raises UserError if they, or the right one, are not certain."""
    if all(name in row for name in GPQA_COLUMNS):
        return _gpqa_choices(row, question)
    name = first_column(row, CHOICE_COLUMNS)
    columns = (name,) if name else tuple(letter for letter in LETTERS if not is_empty(row.get(letter)))
    if name is None and columns[:2] != ("A", "B"):
        return None
    choices = row[name] if name else {column: row[column] for column in columns}
    texts, labels, are_numbers = _texts_and_labels(name or "choices", choices)
    said = [column for column in RIGHT_COLUMNS if not is_empty(row.get(column))]
    right = {}
    for column in said:
        try:
            right[column] = _index(column, row[column], texts, labels, are_numbers)
        except UserError:
            # These names are used for other things too.
            if column not in ("correct", "label"):
                raise
    if not right:
        raise UserError(f"no {' or '.join(RIGHT_COLUMNS[:4])} says which of the choices is right")
    if len(set(right.values())) > 1:
        raise UserError(f"columns {', '.join(right)} name different choices")
    return Choices(texts, LETTERS[next(iter(right.values()))], columns)


def _gpqa_choices(row: dict[str, Any], question: str) -> Choices:
    choices = [filled_text_of(name, row[name], number=True).strip() for name in GPQA_COLUMNS]
    choices, right = shuffled(choices, 0, question)
    return Choices(choices, right, GPQA_COLUMNS)


def shuffled(choices: list[Any], right: int, question: str) -> tuple[list[Any], str]:
    """Return the choices in a random order, and the letter of the right one, whose index among them is given."""
    # The question is the seed, so that neither other rows nor the machine change the letters.
    rng = random.Random(f"choices of {question.strip()}")
    order = sorted(range(len(choices)), key=lambda _: rng.random())
    return [choices[i] for i in order], LETTERS[order.index(right)]


def _texts_and_labels(name: str, value: Any) -> tuple[list[str], list[str], bool]:
    """Return the texts of the choices, their labels in the row, and whether the texts are numbers."""
    if isinstance(value, dict) and all(isinstance(value.get(key), list) for key in ("text", "label")):
        value = dict(zip(value["label"], value["text"], strict=False))
    if isinstance(value, list):
        value = dict(zip(LETTERS, value, strict=False)) if len(value) <= len(LETTERS) else None
    if not isinstance(value, dict):
        raise UserError(f"{name} is not a list of at most {len(LETTERS)} choices")
    texts = [
        filled_text_of(f"a choice of {name}", text, number=True).strip()
        for text in value.values()
        if not is_missing(text)
    ]
    labels = [str(label).strip().upper() for label, text in value.items() if not is_missing(text)]
    if len(texts) < 2:
        raise UserError(f"{name} has fewer than two choices")
    if all(label in LETTERS for label in labels) and labels != list(LETTERS[: len(labels)]):
        raise UserError(f"the choices of {name} are not lettered A, B, and so on in order")
    own_letters = [rf"\(?{letter}[).:]\s*" for letter in LETTERS[: len(texts)]]
    if all(re.match(letter, text) for letter, text in zip(own_letters, texts, strict=True)):
        texts = [re.sub(rf"^{letter}", "", text) for letter, text in zip(own_letters, texts, strict=True)]
    return texts, labels, any(isinstance(text, int | float) for text in value.values())


def _index(column: str, value: Any, texts: list[str], labels: list[str], are_numbers: bool) -> int:
    """Return the index of the choice that a column names."""
    text = text_of(column, value, number=True).strip()
    label = re.sub(r"^\(?(\w+)[).:]?$", r"\1", text).upper()
    both = [rf"\(?{re.escape(letter)}[).:]\s*{re.escape(choice)}" for letter, choice in zip(labels, texts, strict=True)]
    found = {i for i in range(len(texts)) if label == labels[i] or re.fullmatch(both[i], text)}
    is_own_label = bool(found) and labels[0] != LETTERS[0]
    is_index = not isinstance(value, str) and value in range(len(texts))
    if is_index and not is_own_label:
        found.add(int(value))
    if not is_own_label and (are_numbers or not is_index):
        found |= {i for i in range(len(texts)) if text == texts[i]}
    if len(found) != 1:
        what = "several of the choices" if found else "none of the choices"
        is_quoted = not found and isinstance(value, str) and text.isdigit()
        hint = ": give a letter, or a number that counts from 0 (without quotes)" if is_quoted else ""
        raise UserError(f"{column} {shortened(text)} names {what}{hint}")
    return found.pop()
