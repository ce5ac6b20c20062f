r"""A model's text -> its final answer, in time linear in the text.

The rules are those of the paper, section 4.1, in the order of the released code: the last `\boxed{...}` of the answer, else the line after
the last "Answer:". `letters.py` has rules of its own for multiple choice.
"""

from __future__ import annotations

import re

from s1jax.data.thinking_format import END_OF_TEXT, IM_END, IM_START

_ANSWER_BEGINS = re.compile(f"{re.escape(IM_START)}answer|</think>|<\\|end_of_thought\\|>")
_ANSWER_ENDS = re.compile(
    f"{re.escape(IM_END)}|{re.escape(END_OF_TEXT)}|{re.escape(IM_START)}user|<\\|end_of_solution\\|>"
)

# A run of backslashes with the command or brace after it, or a bare brace. An odd number of backslashes escapes a brace.
_BOX_TOKENS = re.compile(r"(\\+)((?:boxed|fbox|framebox)[ \t]*\{|boxed[ \t]*[0-9]+|[{}])?|[{}]")
# What may stand between boxes that hold one answer together. The first group says that they are a list.
_BETWEEN_BOXES = re.compile(r"(?:[\s$]|\\q?quad|\\[,; ()\[\]]|\\text\s*\{|\}|([,;]|\band\b|\bor\b))*")
_LONGEST_BETWEEN = 60
_LABEL = re.compile(r"(?:Answer|[Ff]inal answer)\*{0,2}:")
_DISPLAY = re.compile(r"(?:\$\$|\\\[)[ \t]*\n\s*")  # opens a formula on lines of its own
# Each run of spaces follows a word that must be there, so no text is read twice.
_ANSWER_IS = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|my)\s+)?(?:(?:final|correct)\s+)?(?:answer|option|choice)\s+is\b\s*:?\s*",
    re.IGNORECASE,
)


def extract_answer(text: str) -> str | None:
    r"""Return the final answer that a model's text states, or None.

    `text` holds thinking and answer, or the answer alone (`answer_part`). The answer is the last non-empty `\boxed{...}` with matched
    braces. Boxes that only commas, "and" or "or" separate are one list. Without a box it is the first non-empty line after the last
    "Answer:", without words around it such as "The answer is". Without that, it is a last line that begins with "A:" or "####".
    """
    answer = answer_part(text)
    return boxed_answer(answer) or labelled_answer(answer) or _answer_in_last_line(answer)


def answer_part(text: str) -> str:
    """Return what follows the last answer delimiter of any thinking format, up to the first token that ends an answer."""
    begins = [found.end() for found in _ANSWER_BEGINS.finditer(text)]
    return _ANSWER_ENDS.split(text[begins[-1] if begins else 0 :], maxsplit=1)[0]


def labelled_answer(text: str) -> str | None:
    """Return the first non-empty line after the last "Answer:"; None if there is none."""
    ends = [label.end() for label in _LABEL.finditer(text)]
    if not ends:
        return None
    rest = text[ends[-1] :].lstrip("* \t\r\n")
    if display := _DISPLAY.match(rest):
        rest = rest[display.end() :]
    line = rest.split("\n", 1)[0].partition("I hope it is correct")[0].strip("* \t\r")
    if said := _ANSWER_IS.match(line):
        line = line[said.end() :]
    return line or None


def _answer_in_last_line(text: str) -> str | None:
    """Return what follows "A:" or "####" in the last line, as in answers in the form of GSM8K; None if the line does not begin so."""
    line = text.strip().rpartition("\n")[2]
    label = next((label for label in ("A:", "####") if line.startswith(label)), "")
    return line.removeprefix(label).strip() or None if label else None


def boxed_answer(text: str) -> str | None:
    r"""Return the content of the last box, by its opening brace, that is closed and not empty. Takes one pass over the text.

    If only list separators stand between it and the boxes before it, all their contents are returned, each once, with commas between.
    """
    boxes = _closed_boxes(text)
    first = len(boxes) - 1  # of the boxes that are one list
    while first > 0 and _is_list(text, boxes[first - 1][2], boxes[first][0]):
        first -= 1
    return ", ".join(dict.fromkeys(text[start:end].strip() for _, start, end in boxes[first:])) or None


def _is_list(text: str, end: int, begin: int) -> bool:
    """Return whether only list separators stand between the end of a box's content and the begin of the next box."""
    between = _BETWEEN_BOXES.fullmatch(text, end, begin) if begin - end <= _LONGEST_BETWEEN else None
    return between is not None and between[1] is not None


def _closed_boxes(text: str) -> list[tuple[int, int, int]]:
    """Return (begin, begin of the content, end of the content) of each closed box that is not empty and not around another, in order."""
    open_braces: list[tuple[int, int, bool]] = []  # (begin, begin of the content, whether it is a box)
    boxes: list[tuple[int, int, int]] = []
    for token in _BOX_TOKENS.finditer(text):
        backslashes, what = token.group(1), token.group(2)
        if backslashes and what is None:
            continue
        if what and what[-1].isdigit():  # \boxed5
            boxes.append((token.start(), token.end() - len(what.removeprefix("boxed").lstrip()), token.end()))
        elif what and "box" in what:
            open_braces.append((token.start(), token.end(), True))
        elif backslashes and len(backslashes) % 2 == 1:  # \{ and \} print braces and group nothing
            continue
        elif text[token.end() - 1] == "{":
            open_braces.append((token.start(), token.end(), False))
        elif open_braces:
            begin, start, is_box = open_braces.pop()
            is_around = bool(boxes) and boxes[-1][0] > begin
            if is_box and not is_around and text[start : token.start()].strip():
                boxes.append((begin, start, token.start()))
    return boxes
