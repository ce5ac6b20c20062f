"""The quality stage of curation: a row's texts -> their fault, if any.

The grader decides whether two answers are equal, so that their spelling does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from s1jax.data.chat import with_label
from s1jax.data.rows import TrainingRow
from s1jax.grading.equivalence import compare
from s1jax.grading.extract import extract_answer
from s1jax.grading.pool import Grader

# No pattern here takes more than linear time.
_CODE_OR_MATHEMATICS = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|\$\$[^$]+\$\$|\$(?!\s)[^$\n]+(?<!\s)\$(?!\d)|\\\((?:(?!\\\().)*?\\\)|\\\[(?:(?!\\\[).)*?\\\]",
    re.DOTALL,
)
_PIECE = re.compile(r"\$([^$\n]{1,200})\$|(\([^()]{1,80}\)|\[[^][]{1,80}\])")


def quality_reason(row: TrainingRow, grader: Grader) -> str | None:
    """Return the fault of a row's text, None if it has none."""
    text = f"{row['question']}\n{row['thinking']}\n{row['answer']}"
    if "![Image]" in text or "[asy]" in text:
        return "refers to an image"
    if any(has_torn_bold(part) for part in (row["question"], row["thinking"], row["answer"])):
        return "torn bold markup"
    if not row["reference"].strip():
        return "no reference to grade against"
    answers = [answer for answer in stated_answers(row["answer"]) if _is_reference(answer, row["reference"], grader)]
    if not answers:
        return "the answer disagrees with the reference"
    if not any(_occurs(answer, row["thinking"]) for answer in answers):
        return "the trace does not reach the answer"
    return None


def agrees(text: str, other: str, grader: Grader) -> bool:
    """Return whether two texts state the same answer."""
    return any(grader.are_equal(one, another) for one in stated_answers(text) for another in stated_answers(other))


def stated_answers(text: str) -> list[str]:
    """Return the answer in a text: in its last box, or after "Answer:" or "####". Without these, its first and its last line may be it."""
    if (answer := extract_answer(text)) is not None:
        return [answer]
    if "####" in text:
        return [text.rpartition("####")[2].strip()]
    first, last = extract_answer(with_label(text)), text.strip().rpartition("\n")[2].strip("* \t")
    return [line for line in (first, last) if line]


def has_torn_bold(text: str) -> bool:
    """Return whether a bold marker `**` lacks its partner.

    Code and mathematics have none. A marker begins bold text if no space follows, and ends it if no space comes before. Where both or
    neither holds, as in `2**3`, it may also be an operator.
    """
    text = _CODE_OR_MATHEMATICS.sub("x", text)
    inside = {False}  # whether bold text may be open, by any reading so far
    for marker in re.finditer(r"\*\*", text):
        start, end = marker.span()
        begins, ends = bool(text[end : end + 1].strip()), bool(text[max(0, start - 1) : start].strip())
        read = {True for is_open in inside if begins and not is_open} | {
            False for is_open in inside if ends and is_open
        }
        inside = read | inside if begins == ends else read
    return False not in inside


def _is_reference(answer: str, reference: str, grader: Grader) -> bool:
    """Return whether an answer is the one that a reference states, or occurs in the last line of prose that states none."""
    if agrees(answer, reference, grader):
        return True
    last = reference.strip().rpartition("\n")[2]
    is_prose = len(re.findall("[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", "", last))) >= 3
    states_one = extract_answer(reference) is not None or "####" in reference
    return is_prose and not states_one and not re.fullmatch("[A-Za-z '-]+", answer) and _occurs(answer, last)


def _occurs(answer: str, text: str) -> bool:
    """Return whether an answer stands in a text as it is, or near its end in another spelling."""
    if re.search(rf"(?<![\w.,/^{{(-]){re.escape(answer)}(?![\w/]|[.,]\d)", text):
        return True
    has_digit = bool(re.search(r"\d", answer))
    pieces = {
        piece for piece in _pieces(text[-20_000:]) if len(piece) <= 200 and (not has_digit or re.search(r"\d", piece))
    }
    return any(compare(piece, answer) for piece in pieces)


def _pieces(text: str) -> Iterator[str]:
    """Yield the parts of a text that may be an answer: words, formulas, groups in brackets, right sides of equations."""
    yield from (answer for answer in stated_answers(text))
    for piece in _PIECE.finditer(text):
        yield piece[1] or piece[2]
        yield (piece[1] or piece[2]).rpartition("=")[2]
    for line in text.split("\n"):
        yield line.rpartition("=")[2]
        for word in line.split():
            word = word.strip("*.,;:!?\"'`$")
            yield word
            yield word.rpartition("=")[2]
