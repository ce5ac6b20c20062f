r"""Grade model text against a gold answer.

In: what a model wrote, and the gold answer of its problem. Out: the extracted answer (or None), and whether they are equal.

The idea (paper, section 4.1; the order in which the released code looks): only the text after the last answer delimiter
counts; there the last `\boxed{...}` is the answer, else the line that follows the last `Answer:`. Two answers are equal
when their normalised LaTeX is, when both are numbers of exactly equal value (integers, decimals, fractions, mixed
numbers), or when both are tuples, lists, sets or matrices whose entries are. Units, `$`, `%` and degree signs are
dropped: 50% equals 50, not 0.5. Where the gold answer is a choice's letter, its text may follow the letter ("C) 5 m"), but
not replace it.

The invariants: no text is ever executed, extraction takes time linear in the text and comparison works on bounded
strings only, so no text can hang or crash a grader; and nothing equals a missing or an empty answer.
"""

from __future__ import annotations

import re

from s1jax.data.chat import END_OF_TEXT, IM_END, IM_START

_ANSWER_DELIMITER = f"{IM_START}answer"
_END_OF_ANSWER = re.compile(f"{re.escape(IM_END)}|{re.escape(END_OF_TEXT)}")

# A run of backslashes with what it may introduce, or a bare brace. An odd run before a brace escapes it.
_BOX_TOKENS = re.compile(r"(\\+)(boxed[ \t]*\{|fbox[ \t]*\{|[{}])?|[{}]")
_ANSWER_IS = re.compile(r"(?:the|my|so the)?\s*(?:final|correct)?\s*answer\s+is\s*:?\s*", re.IGNORECASE)


def extract_answer(text: str) -> str | None:
    r"""Return the final answer a model's text states, or None.

    `text` may hold thinking and answer, or the answer alone (with its "Final Answer:", where the budget wrote one).
    Only what follows the last answer delimiter counts, up to the first end-of-text token; there the last non-empty
    `\boxed{...}` with matched braces, else the first non-empty line after the last "Answer:".
    """
    answer = _END_OF_ANSWER.split(text.rpartition(_ANSWER_DELIMITER)[2], maxsplit=1)[0]
    boxed = _last_boxed(answer)
    if boxed is not None:
        return boxed
    _, found, rest = answer.rpartition("Answer:")
    if not found:
        return None
    line = rest.lstrip("* \t\r\n").split("\n", 1)[0].strip("* \t\r")
    line = line[prefix.end() :] if (prefix := _ANSWER_IS.match(line)) else line
    return line.strip() or None


def _last_boxed(text: str) -> str | None:
    r"""Return the content of the box that opens last among the closed, non-empty ones, in one pass over the text."""
    open_braces: list[tuple[int, bool]] = []  # (where its content starts, whether it is a box)
    best: tuple[int, int] | None = None
    for token in _BOX_TOKENS.finditer(text):
        backslashes, what = token.group(1), token.group(2)
        if backslashes and what is None:
            continue
        if what and "box" in what:
            open_braces.append((token.end(), True))
            continue
        if backslashes and len(backslashes) % 2 == 1:  # \{ and \} are printed braces, they group nothing
            continue
        if text[token.end() - 1] == "{":
            open_braces.append((token.end(), False))
        elif open_braces:
            start, is_box = open_braces.pop()
            end = token.end() - 1
            if is_box and text[start:end].strip() and (best is None or start > best[0]):
                best = (start, end)
    return None if best is None else text[best[0] : best[1]].strip()


# ---- normal form of an answer ----


# ---- values ----
