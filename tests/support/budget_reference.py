"""A slow reference of the budget rules, written from the rules in words: one row and one token at a time, in plain Python.

It knows nothing of the package: its vocabulary is a handful of made-up ids, its state a tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PAD, END_THINKING, END_BOTH, NEWLINE, PLAIN, OTHER = range(6)  # 1..4 are the alphabet of the scripts
NL_1, NL_2, ANSWER_1, ANSWER_2, ANSWER_3, FINAL_1, FINAL_2, FINAL_3, WAIT_1, WAIT_2, WAIT_NL = range(6, 17)
VOCAB_SIZE = 20
ALPHABET = (END_THINKING, END_BOTH, NEWLINE, PLAIN)
# What the sampler draws from the same logits when it may not end thinking.
REDRAW = {END_THINKING: OTHER, END_BOTH: NEWLINE, NEWLINE: NEWLINE, PLAIN: PLAIN}
ENDS_THINKING = {END_THINKING, END_BOTH}
ENDS_ANSWER = {END_BOTH}
ENDS_IN_NEWLINE = {NEWLINE, NL_1, NL_2, WAIT_NL}


class Delimiters(NamedTuple):
    newline: tuple[int, ...]
    answer: tuple[int, ...]
    final_answer: tuple[int, ...]


SHORT = Delimiters((NL_1,), (ANSWER_1,), (FINAL_1,))
LONG = Delimiters((NL_1,), (ANSWER_1, ANSWER_2), (FINAL_1, FINAL_2, FINAL_3))
# As in Qwen2.5, the delimiters begin with the very id that ends thinking.
REAL = Delimiters((NL_1, NL_2), (END_THINKING, ANSWER_2, ANSWER_3), (END_THINKING, FINAL_2))


class Settings(NamedTuple):
    maximum: int
    minimum: int
    num_ignore: int
    ignore: tuple[int, ...]
    max_answer: int
    last_prompt_token: int


class Row(NamedTuple):
    """The reference's state."""

    phase: str
    at_newline: bool
    pending: tuple[int, ...] = ()
    injected: bool = False
    thinking: int = 0
    ignored: int = 0
    answer: int = 0
    stopped: bool = False


class Step(NamedTuple):
    emitted: int
    forced: bool
    row: Row


def reference_step(words: Delimiters, settings: Settings, row: Row, sampled: int) -> Step:
    """One token of the rules in words."""
    if row.phase == "done":
        return Step(PAD, False, row)

    if row.phase == "answer":
        if sampled in ENDS_ANSWER:
            return Step(sampled, False, row._replace(phase="done", stopped=True))
        row = row._replace(answer=row.answer + 1)
        return Step(sampled, False, row._replace(phase="done" if row.answer == settings.max_answer else "answer"))

    if row.phase == "think":
        if row.thinking == settings.maximum:
            # The budget ended the thinking. What is left of an ignore string is dropped.
            newline = () if row.at_newline else words.newline
            row = row._replace(phase="delimiter", pending=newline + words.final_answer)
        elif not row.pending and not row.injected and sampled in ENDS_THINKING:
            if row.ignored < settings.num_ignore or row.thinking < settings.minimum:
                row = row._replace(ignored=row.ignored + 1, pending=settings.ignore)
            else:
                row = row._replace(phase="delimiter", pending=words.answer)

    if row.pending:
        emitted, *rest = row.pending
        row = row._replace(pending=tuple(rest))
        if row.phase == "delimiter":
            return Step(emitted, True, row if rest else row._replace(phase="answer"))
        row = row._replace(injected=not rest)
        forced = True
    else:
        # An empty ignore string, or the step after an injected one, draws again; elsewhere the redraw is the token itself.
        emitted, forced = REDRAW[sampled], False
        row = row._replace(injected=False)
    return Step(emitted, forced, row._replace(thinking=row.thinking + 1, at_newline=emitted in ENDS_IN_NEWLINE))


def reference_run(words: Delimiters, settings: Settings, script: Sequence[int]) -> list[Step]:
    row = Row("think", settings.last_prompt_token in ENDS_IN_NEWLINE)
    steps = []
    for sampled in script:
        steps.append(reference_step(words, settings, row, sampled))
        row = steps[-1].row
    return steps
