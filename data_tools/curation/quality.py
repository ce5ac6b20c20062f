"""The quality stage of curation: a row's texts -> their fault, if any.

The grader decides whether two answers are equal, so that their spelling does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Literal

import pyarrow as pa

from data_tools.curation.stage import Stage, verdicts
from s1jax.data.chat import with_label
from s1jax.grading.equivalence import compare
from s1jax.grading.extract import extract_answer
from s1jax.grading.pool import Grader
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types

# No pattern here takes more than linear time.
_CODE_OR_MATHEMATICS = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|\$\$[^$]+\$\$|\$(?!\s)[^$\n]+(?<!\s)\$(?!\d)|\\\((?:(?!\\\().)*?\\\)|\\\[(?:(?!\\\[).)*?\\\]",
    re.DOTALL,
)
_NUMBERED_PART = re.compile(r"\bp[1-9]\d{0,2}\.")  # as in "p1. Find x. p2. Find y."
_PIECE = re.compile(r"\$([^$\n]{1,200})\$|(\([^()]{1,80}\)|\[[^][]{1,80}\])")


QualityRule = Literal["missing", "image", "numbered_parts", "bold", "reference", "answer", "trace"]
"""What a row may be rejected for; `reason_of_rule` says how each of them is found."""
VERSION = 1


@dataclass(frozen=True)
class QualityConfig:
    """Which rows have usable texts."""

    rules: tuple[QualityRule, ...] = ("missing", "image", "numbered_parts", "bold", "reference", "answer", "trace")
    """The first of these rules that a row breaks is its reason. The paper's are missing, image, numbered_parts and bold. The others are
    `reference` (there is one), `answer` (it agrees with the reference) and `trace` (it reaches the answer)."""
    diagram_sources: tuple[str, ...] = ("AIME",)
    """Sources whose names begin so may have drawings in Asymptote, `[asy]`. The paper excepts those of AIME."""

    def __post_init__(self) -> None:
        check_types(self)
        if len(set(self.rules)) < len(self.rules):
            raise UserError(f"quality rules {', '.join(self.rules)}: one is there twice")


def stage(config: QualityConfig) -> Stage:
    """Return the stage. It adds `correct`: whether the answer agrees with the reference; null if there is no reference."""
    judge = partial(_judge_part, config)
    columns = ("question", "thinking", "answer", "reference", "source")
    return Stage("quality", VERSION, asdict(config), lambda rows: rows.map(judge, *columns))


def _judge_part(config: QualityConfig, rows: pa.Table) -> pa.Table:
    reasons, correct = [], []
    for row in rows.to_pylist():
        reason, is_correct = quality_reason(row, config, grader_of_process())
        reasons.append(reason)
        correct.append(is_correct)
    return verdicts(rows, reasons, correct=pa.array(correct, pa.bool_()))


@cache
def grader_of_process() -> Grader:
    """Return the grader of this process. Its workers end with the process."""
    return Grader(1)


def quality_reason(row: Mapping[str, str], config: QualityConfig, grader: Grader) -> tuple[str | None, bool | None]:
    """Return the first fault of a row's texts, None if it has none; and whether its answer agrees with its reference, if it has one."""
    answers: list[str] = []
    is_correct = None
    if row["reference"].strip():
        answers = [answer for answer in stated_answers(row["answer"]) if is_reference(answer, row["reference"], grader)]
        is_correct = bool(answers)
    faults = (_reason_of_rule(rule, row, config, answers, is_correct) for rule in config.rules)
    return next(filter(None, faults), None), is_correct


def _reason_of_rule(
    rule: QualityRule, row: Mapping[str, str], config: QualityConfig, answers: Sequence[str], is_correct: bool | None
) -> str | None:
    """Return how a row breaks a rule, None if it does not. `answers` are those of the row that agree with its reference."""
    texts = (row["question"], row["thinking"], row["answer"])
    if rule == "missing":
        return next((f"no {name}" for name in ("thinking", "answer") if not row[name].strip()), None)
    if rule == "image":
        is_drawn = any("[asy]" in text for text in texts) and not row["source"].startswith(config.diagram_sources)
        return "refers to an image" if is_drawn or any("![Image]" in text for text in texts) else None
    if rule == "numbered_parts":
        return "a question of numbered parts" if _NUMBERED_PART.search(row["question"]) else None
    if rule == "bold":
        return "torn bold markup" if any(has_torn_bold(text) for text in texts) else None
    if rule == "reference":
        return None if row["reference"].strip() else "no reference to grade against"
    if is_correct is None:
        return None
    if rule == "answer":
        return None if is_correct else "the answer disagrees with the reference"
    reaches = any(_occurs(answer, row["thinking"]) for answer in answers)
    return None if reaches or not is_correct else "the trace does not reach the answer"


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


def is_reference(answer: str, reference: str, grader: Grader) -> bool:
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
