r"""Multiple choice: a model's text -> the letter that it chooses, or None. No letter is a default.

A gold answer is a choice if it is one capital letter (`choice_letter`). The text of a choice may follow its letter ("C) 5 m") but does not
replace it. A text that names two letters chooses none.
"""

from __future__ import annotations

import re

from s1jax.grading.extract import answer_part, boxed_answer, labelled_answer

_GOLD = re.compile(r"[\s$(]*([A-Z])[\s$).]*")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|boxed|fbox)\s*\{([^{}]*)\}")
_CHOICE = re.compile(
    r"[*\s$]*(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?(?:"
    r"([A-Z])(?:\)|[.:](?=[\s*])|\*\*(?=[\s.,:;]|$)|[.$\s]*$|,(?= (?!or |and )[a-z])|(?= [-–—] )|(?= is (?:correct|right|the )))"
    r"|(?<=\()([a-z])\)$)(.*)",
    re.DOTALL,
)
# A second letter, or a word that takes the first one back.
_OTHER_CHOICE = re.compile(r"(?:^|[\s,;])\(?[A-Z](?:\)|[.:](?=\s|$))|^ [-–—] [A-Z]\b|^\W*(?i:not?|wrong|false)\b")
_STATED = re.compile(r"\b(?i:answer|option|choice) is:? +[*$]*(?:\\boxed\{)?(\(?[A-Z]\b\)?)")


def choice_letter(gold: str) -> str | None:
    r"""Return the letter of a gold answer that is a choice, such as "C", "(C)" or "\text{(C)}"; None for any other gold answer."""
    found = _GOLD.fullmatch(_TEXT_COMMAND.sub(r"\1", gold))
    return found[1] if found else None


def chosen_letter(answer: str) -> str | None:
    """Return the letter at the start of an answer such as "C) 5 m" or "Option C"; None if there is none, or if the answer names two."""
    found = _CHOICE.match(_TEXT_COMMAND.sub(r"\1", answer.strip()))
    return (found[1] or found[2]).upper() if found and not _OTHER_CHOICE.search(found[3]) else None


def extract_letter(text: str) -> str | None:
    """Return the letter that a model's text chooses, or None.

    It is the letter in the last box, else behind the last "Answer:". A text without an "Answer:" may also end in "the answer is (C)", or be
    the letter alone.
    """
    answer = answer_part(text)
    boxed, labelled = boxed_answer(answer), labelled_answer(answer)
    for stated in (boxed, labelled):
        if stated is not None and (letter := chosen_letter(stated)):
            return letter
    if labelled is not None:
        return None
    said = _STATED.findall(answer)
    return chosen_letter(said[-1] if said else answer)
