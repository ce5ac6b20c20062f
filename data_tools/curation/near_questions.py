"""Questions that are nearly a known question: one word differs, or the two are similar.

Both rules compare forms (`spelling.py`), so that spelling never counts as a difference.

1. One word differs: the two stretches in which the forms differ each lie within one word. A stretch is empty if a word is new or left
   out. Either both stretches are prose, or neither is more than half of its question.
2. The Jaccard index of the two sets of runs of five characters is at least the threshold.

A short question has fewer than `short` words. There, one other number makes another problem, so the rules are stricter if one of the two
questions is short:

1. The two stretches do not hold two different numbers. (A number may still stand for a word, such as 37 for "thirty-seven".)
2. The numbers of both questions are the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from data_tools.curation.ngrams import words_of
from data_tools.curation.spelling import Neighbours, Spelled, jaccard, numbers_of, signatures, spell

_ENDS = 8
"""Characters at the start or the end of a form by which those that differ in one word are found."""
_LONGEST_WORD = 24
_VERY_SHORT = _LONGEST_WORD + 2 * _ENDS
"""Below this length, a form can lose so much with one word that neither end has `_ENDS` characters left."""
_PROSE = re.compile(rf"[(\"']*[^\W\d_]{{0,{_LONGEST_WORD}}}[.,;:?!)\"']*")


class NearQuestions:
    """An index of known questions."""

    def __init__(self, questions: Sequence[str], short: int, threshold: float):
        """A question of fewer than `short` words is short."""
        self._short, self._threshold = short, threshold
        self._known = [spell(question) for question in questions]
        self._is_short = [len(words_of(question)) < short for question in questions]
        self._similar = Neighbours(threshold)
        # If one word differs, most forms have the same start or the same end as the known form.
        self._by_start: dict[str, list[int]] = defaultdict(list)
        self._by_end: dict[str, list[int]] = defaultdict(list)
        self._very_short: list[int] = []
        for i, (known, signature) in enumerate(zip(self._known, signatures(self._known), strict=True)):
            self._similar.add(i, signature)
            self._by_start[known.text[:_ENDS]].append(i)
            self._by_end[known.text[-_ENDS:]].append(i)
            if len(known.text) < _VERY_SHORT:
                self._very_short.append(i)

    def of(self, questions: Sequence[str]) -> list[int | None]:
        """Return for each question the number of the first known question that it nearly is, or None."""
        spelled = [spell(question) for question in questions]
        found = []
        for question, form, signature in zip(questions, spelled, signatures(spelled), strict=True):
            short = len(words_of(question)) < self._short
            similar = (i for i in self._similar.of(signature) if self._is_similar(form, short, i))
            one_word = (i for i in self._with_equal_end(form) if self._differs_in_one_word(form, short, i))
            found.append(min((i for i in (next(similar, None), next(one_word, None)) if i is not None), default=None))
        return found

    def _with_equal_end(self, form: Spelled) -> list[int]:
        starts, ends = self._by_start.get(form.text[:_ENDS], ()), self._by_end.get(form.text[-_ENDS:], ())
        return sorted({*starts, *ends, *(self._very_short if len(form.text) < 2 * _VERY_SHORT else ())})

    def _is_similar(self, form: Spelled, short: bool, i: int) -> bool:
        known = self._known[i]
        if (short or self._is_short[i]) and form.numbers != known.numbers:
            return False
        return jaccard(form, known) >= self._threshold

    def _differs_in_one_word(self, form: Spelled, short: bool, i: int) -> bool:
        known = self._known[i]
        if (stretches := differ_in_one_word(form, known)) is None:
            return False
        if (short or self._is_short[i]) and _hold_different_numbers(*stretches):
            return False
        mine, other = stretches
        is_prose = bool(_PROSE.fullmatch(mine) and _PROSE.fullmatch(other))
        return is_prose or (2 * len(mine) <= len(form.text) and 2 * len(other) <= len(known.text))


def _hold_different_numbers(a: str, b: str) -> bool:
    """Return whether two stretches have other numbers. Digits may have the same value as words, so these are not compared."""
    in_digits = [any(map(str.isdigit, text)) for text in (a, b)]
    numbers, others = numbers_of(a), numbers_of(b)
    return bool(numbers and others) and numbers != others and in_digits[0] == in_digits[1]


def differ_in_one_word(a: Spelled, b: Spelled) -> tuple[str, str] | None:
    """Return the two stretches in which the questions differ, if each lies within one word, and otherwise None.

    A stretch is empty if the other question has one word more. At least one of the two stretches is a whole word.
    """
    if (found := _without_one_word(a, b)) is not None:
        return found
    found = _without_one_word(b, a)
    return None if found is None else (found[1], found[0])


def _without_one_word(a: Spelled, b: Spelled) -> tuple[str, str] | None:
    """Return a word of `a`, and the stretch within one word of `b` that stands in its place, if all else is equal."""
    start = _equal_at_start(a.text, b.text)
    end = _equal_at_start(a.text[::-1], b.text[::-1])
    for first, last in zip(a.starts, (*a.starts[1:], len(a.text)), strict=True):
        begin, stop = first, len(b.text) - (len(a.text) - last)
        # A word of `b` begins inside the stretch: it is more than one word.
        if first <= start and len(a.text) - last <= end and begin <= stop:
            if not any(begin < other < stop for other in b.starts):
                return a.text[first:last], b.text[begin:stop]
        elif first > start:
            break
    return None


def _equal_at_start(a: str, b: str) -> int:
    """Return the number of characters that two texts share at their start."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
