"""Runs of words that a text shares with known texts.

Words are those of the paper's rule: lowercase, separated by white space, punctuation kept. A text of under n words has no run of n words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """Consecutive words that a text shares with a known text."""

    known: int
    """The number of the known text."""
    words: list[str]


class Ngrams:
    """The runs of `n` words of a text."""

    def __init__(self, text: str, n: int):
        self.n, self.words = n, words_of(text)
        self.hashes = _hashes(self.words, n)


class NgramIndex:
    """All runs of `n` words of known texts."""

    def __init__(self, texts: Sequence[Ngrams]):
        self._texts = [text.words for text in texts]
        hashes = [text.hashes for text in texts]
        everything = np.concatenate([np.zeros(0, np.uint64), *hashes])
        order = np.argsort(everything, kind="stable")
        self._hashes = everything[order]
        self._known = np.repeat(np.arange(len(texts)), [len(part) for part in hashes])[order]
        self._position = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(part)) for part in hashes)])[order]

    def longest_run(self, text: Ngrams, boilerplate: Sequence[str] = ()) -> Run | None:
        """Return the longest run of `n` or more words that a text shares with a known one, or None.

        A run of `n` words does not count if more than half of its words lie inside phrases of `boilerplate`. The longest run consists of
        runs that count. Of equally long ones it is that of the first known text, and there the first in `text`.
        """
        words, n = text.words, text.n
        first = np.searchsorted(self._hashes, text.hashes, "left")
        last = np.searchsorted(self._hashes, text.hashes, "right")
        if not len(places := np.flatnonzero(first < last)):
            return None
        inside = np.concatenate([[0], np.cumsum(_inside(words, boilerplate))])
        # For each known text and shift against it: the places in `text` where a shared run of n words begins.
        shared: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place in places.tolist():
            if 2 * (inside[place + n] - inside[place]) > n:
                continue
            for i in range(first[place], last[place]):
                known, position = int(self._known[i]), int(self._position[i])
                # Hashes of different words may be equal.
                if self._texts[known][position : position + n] == words[place : place + n]:
                    shared[known, place - position].append(place)
        runs = [
            (-length, known, begin) for (known, _), begins in shared.items() for begin, length in _stretches(begins)
        ]
        if not runs:
            return None
        length, known, begin = min(runs)
        return Run(known, words[begin : begin - length + n - 1])


def words_of(text: str) -> list[str]:
    """Return the words of a text, as the paper's rule compares them."""
    return text.lower().split()


def _stretches(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the begin and the length of each stretch of consecutive numbers in an ascending sequence."""
    for stretch in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
        yield int(stretch[0]), len(stretch)


def _hashes(words: Sequence[str], n: int) -> np.ndarray:
    """Return a 64-bit hash of each run of `n` words. It differs from process to process."""
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    count = max(0, len(words) - n + 1)
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[k : k + count]
    return total


def _inside(words: Sequence[str], phrases: Sequence[str]) -> np.ndarray:
    """Return for each word whether it lies inside one of the phrases. `*` is any word; punctuation at the ends of words is ignored."""
    inside = np.zeros(len(words), bool)
    bare = [_bare(word) for word in words] if phrases else []
    for phrase in phrases:
        wanted = [None if word == "*" else _bare(word) for word in words_of(phrase)]
        for i in range(len(bare) - len(wanted) + 1):
            if all(word in (None, found) for word, found in zip(wanted, bare[i:], strict=False)):
                inside[i : i + len(wanted)] = True
    return inside


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word)
