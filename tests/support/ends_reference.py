"""A slow reference of the budget rules for ends of several tokens, written from the rules in words: one row and one token at a time.

It works on text and knows nothing of the package. An added token is one character of its own. The text that does not count yet is
searched from its start at each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tests.support.budget_reference import Settings


class Language(NamedTuple):
    """Tokens as their texts; the ids are their places."""

    texts: tuple[str, ...]
    ends: tuple[str, ...]
    forced_ends: tuple[str, ...]
    redraw: Mapping[int, int]
    """For each sampled token, the one that is drawn if it may not begin an end."""
    ends_answer: frozenset[int]
    newline: tuple[int, ...]
    answer: tuple[int, ...]
    final: tuple[int, ...]

    def ids(self, *texts: str) -> tuple[int, ...]:
        return tuple(map(self.texts.index, texts))


class Row(NamedTuple):
    """The reference's state."""

    phase: str
    last: int
    """The last token that counts, or the last token of the prompt."""
    counted: int = 0
    loose: tuple[int, ...] = ()
    """Tokens after those that count."""
    queue: tuple[int, ...] = ()
    may_not_begin: bool = False
    after_thinking: int = 0
    ignored: int = 0
    answer: int = 0
    stopped: bool = False


class Step(NamedTuple):
    token: int | None
    """None if nothing is emitted."""
    place: int
    forced: bool
    attempt: str
    """Empty, `natural` or `forced`."""
    row: Row


def reference_step(language: Language, settings: Settings, row: Row, sampled: int) -> Step:
    """One token of the rules in words."""
    place = row.counted + len(row.loose) + row.after_thinking
    if row.phase == "done":
        return Step(None, place, False, "", row)

    if row.phase == "answer":
        row = row._replace(after_thinking=row.after_thinking + 1)
        if sampled in language.ends_answer:
            return Step(sampled, place, False, "", row._replace(phase="done", stopped=True))
        row = row._replace(answer=row.answer + 1)
        phase = "done" if row.answer == settings.max_answer else "answer"
        return Step(sampled, place, False, "", row._replace(phase=phase))

    attempt = ""
    if row.phase == "think":
        if row.counted == settings.maximum:
            place = row.counted
            row = _delimiter(language, row, language.final, with_newline=True)
        elif not row.queue:
            token = language.redraw[sampled] if row.may_not_begin else sampled
            row = row._replace(may_not_begin=False)
            tokens = (*row.loose, token)
            end, first = _first_end(language, tokens)
            tried_at = row.counted + first
            if end is None or tried_at >= settings.maximum:
                return Step(token, place, False, "", _think(language, settings, row, tokens, is_over=end is not None))
            attempt = "forced" if end in language.forced_ends else "natural"
            place = tried_at
            row = _count(row, tokens[:first])
            if row.ignored < settings.num_ignore or row.counted < settings.minimum:
                row = row._replace(ignored=row.ignored + 1, queue=settings.ignore)
                if not settings.ignore:
                    if first < len(tokens) - 1:
                        return Step(None, place, False, attempt, row._replace(may_not_begin=True))
                    redrawn = language.redraw[token]
                    return Step(redrawn, place, False, attempt, _count(row, (redrawn,)))
            elif attempt == "forced":
                row = _delimiter(language, row, language.final, with_newline=True)
            else:
                row = _delimiter(language, row, language.answer, with_newline=False)

    emitted, *rest = row.queue
    row = row._replace(queue=tuple(rest))
    if row.phase == "delimiter":
        row = row._replace(after_thinking=row.after_thinking + 1, phase="delimiter" if rest else "answer")
    else:
        row = _count(row, (emitted,))._replace(may_not_begin=not rest)
    return Step(emitted, place, True, attempt, row)


def _count(row: Row, tokens: tuple[int, ...]) -> Row:
    """Count these tokens; what was loose is settled."""
    return row._replace(counted=row.counted + len(tokens), loose=(), last=(row.last, *tokens)[-1])


def _delimiter(language: Language, row: Row, ids: tuple[int, ...], with_newline: bool) -> Row:
    newline = language.newline if with_newline and not language.texts[row.last].endswith("\n") else ()
    return row._replace(phase="delimiter", loose=(), queue=newline + ids)


def _think(language: Language, settings: Settings, row: Row, tokens: tuple[int, ...], is_over: bool) -> Row:
    """Count the tokens that can no longer belong to an end, up to the budget; the others stay loose.

    A place where no end begins now is a place where none will begin later, so the counted tokens are never looked at again.
    """
    text = "".join(language.texts[token] for token in tokens)
    begins = [i for i in range(len(text)) if any(end.startswith(text[i:]) and end != text[i:] for end in language.ends)]
    num_settled = _token_at(language, tokens, begins[0]) if begins and not is_over else len(tokens)
    num_settled = min(num_settled, settings.maximum - row.counted)
    return _count(row, tokens[:num_settled])._replace(loose=tokens[num_settled:])


def _first_end(language: Language, tokens: tuple[int, ...]) -> tuple[str | None, int]:
    """The end that is complete first, and the index of the token that it begins in; of several, the longest."""
    text = "".join(language.texts[token] for token in tokens)
    for stop in range(1, len(text) + 1):
        for end in sorted(language.ends, key=len, reverse=True):
            if text[:stop].endswith(end):
                return end, _token_at(language, tokens, stop - len(end))
    return None, 0


def _token_at(language: Language, tokens: tuple[int, ...], character: int) -> int:
    stop = 0
    for index, token in enumerate(tokens):
        stop += len(language.texts[token])
        if character < stop:
            return index
    raise AssertionError("no such character")
