"""Grade a model's text: find its final answer, in time linear in the text, and compare it with the gold answer.

The rules are those of the paper, section 4.1, in the order of the released code.
"""

from __future__ import annotations

import re

from s1jax.data.chat import END_OF_TEXT, IM_END, IM_START
from s1jax.grading.equivalence import is_equivalent

_END_OF_ANSWER = re.compile(f"{re.escape(IM_END)}|{re.escape(END_OF_TEXT)}")

# A run of backslashes with the command or brace after it, or a bare brace. An odd number of backslashes escapes a brace.
_BOX_TOKENS = re.compile(r"(\\+)(boxed[ \t]*\{|fbox[ \t]*\{|boxed[ \t]*[0-9]+|[{}])?|[{}]")
_LABEL = re.compile(r"(?:Answer|[Ff]inal answer)\*{0,2}:")
_DISPLAY = re.compile(r"(?:\$\$|\\\[)[ \t]*\n\s*")  # opens a formula on lines of its own
# Each run of spaces follows a word that must be there, so no text is read twice.
_ANSWER_IS = re.compile(
    r"(?:so,?\s+)?(?:(?:the|my)\s+)?(?:(?:final|correct)\s+)?(?:answer|option|choice)\s+is\b\s*:?\s*", re.IGNORECASE
)


def grade(text: str, gold: str) -> tuple[str | None, bool]:
    """Return the answer in a model's text (or None), and whether it equals the gold answer."""
    extracted = extract_answer(text)
    return extracted, is_equivalent(extracted, gold)


def extract_answer(text: str) -> str | None:
    r"""Return the final answer that a model's text states, or None.

    `text` holds thinking and answer, or the answer alone. The part after the last answer delimiter counts, up to the first end-of-text
    token. The answer is the last non-empty `\boxed{...}` with matched braces in it; if there is none, the first non-empty line after the
    last "Answer:", without words around it such as "The answer is".
    """
    answer = _END_OF_ANSWER.split(text.rpartition(f"{IM_START}answer")[2], maxsplit=1)[0]
    if (boxed := _last_boxed(answer)) is not None:
        return boxed
    ends = [label.end() for label in _LABEL.finditer(answer)]
    if not ends:
        return None
    rest = answer[ends[-1] :].lstrip("* \t\r\n")
    if display := _DISPLAY.match(rest):
        rest = rest[display.end() :]
    line = rest.split("\n", 1)[0].strip("* \t\r")
    if said := _ANSWER_IS.match(line):
        line = line[said.end() :]
    return line.removesuffix("I hope it is correct.").strip() or None


def _last_boxed(text: str) -> str | None:
    r"""Return the content of the last box, by its opening brace, that is closed and not empty. Takes one pass over the text."""
    open_braces: list[tuple[int, bool]] = []  # (start of the content, whether it is a box)
    best: tuple[int, int] | None = None
    for token in _BOX_TOKENS.finditer(text):
        backslashes, what = token.group(1), token.group(2)
        if backslashes and what is None:
            continue
        if what and what[-1].isdigit():  # \boxed5
            best = (token.end() - len(what.removeprefix("boxed").lstrip()), token.end())
            continue
        if what and "box" in what:
            open_braces.append((token.end(), True))
            continue
        if backslashes and len(backslashes) % 2 == 1:  # \{ and \} print braces and group nothing
            continue
        if text[token.end() - 1] == "{":
            open_braces.append((token.end(), False))
        elif open_braces:
            start, is_box = open_braces.pop()
            end = token.end() - 1
            # The content of a box around the best one is not looked at, so that nested boxes take linear time.
            if is_box and (best is None or start > best[0]) and text[start:end].strip():
                best = (start, end)
    return None if best is None else text[best[0] : best[1]].strip()
