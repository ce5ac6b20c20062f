"""Questions in a form that ignores how they are spelled, and how similar two of them are.

The form of a question: Unicode NFKC, case folded, all spacing removed, also LaTeX's (`\\,` `\\quad` `~`). Two questions differ only in
spelling if their forms and their numbers are equal: "1 2" is not "12".

Similarity is the Jaccard index of the sets of runs of five characters (shingles) of two forms. Pairs worth comparing come from MinHash and
locality-sensitive hashing (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3; the library datasketch); the exact index
then decides.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from s1jax.runtime.errors import UserError

_SPACING = re.compile(r"(?<!\\)\\(?:[,;:!> ]|q?quad(?![a-z]))|~")
_NUMBER_WORDS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|"
    "hundred|thousand|million|half|quarter|first|second|third|fourth|fifth|once|twice|thrice|double|triple"
)
_NUMBER = re.compile(rf"\d+(?:\.\d+)?|(?<![a-z\\])(?:{_NUMBER_WORDS})(?![a-z])")
_SHINGLE = 5
_PERMUTATIONS = 128
_MISSED = 1e-4


@dataclass(frozen=True)
class Spelled:
    """The form of a question."""

    text: str
    starts: tuple[int, ...]
    """Where each word of the question begins in `text`."""
    numbers: tuple[str, ...]
    """The numbers of the question, in order: digits, and words such as "three"."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The form and the numbers. Two questions that differ only in spelling share it."""
        return (self.text, *self.numbers)

    @cached_property
    def shingles(self) -> frozenset[str]:
        """The runs of five characters. A shorter text is one run."""
        return frozenset(self.text[i : i + _SHINGLE] for i in range(max(1, len(self.text) - _SHINGLE + 1)))


def spell(question: str) -> Spelled:
    """Return the form of a question."""
    words = _SPACING.sub(" ", unicodedata.normalize("NFKC", question).casefold()).split()
    starts = itertools.accumulate(map(len, words[:-1]), initial=0)
    return Spelled("".join(words), tuple(starts), numbers_of(" ".join(words)))


def numbers_of(text: str) -> tuple[str, ...]:
    """Return the numbers in a case-folded text, in order: digits, and words such as "three"."""
    return tuple(_NUMBER.findall(text))


def jaccard(a: Spelled, b: Spelled) -> float:
    """Return the size of the intersection of two questions' shingles over that of their union."""
    shared = len(a.shingles & b.shingles)
    return shared / (len(a.shingles) + len(b.shingles) - shared)


def signatures(questions: Sequence[Spelled]) -> np.ndarray:
    """Return the MinHash of each question's shingles, uint32[questions, 128]. It is the same on every machine."""
    shingles = ([shingle.encode() for shingle in q.shingles] for q in questions)
    from datasketch import MinHash

    hashes = MinHash.generator(shingles, num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
    return np.array([minhash.hashvalues for minhash in hashes], np.uint32).reshape(-1, _PERMUTATIONS)


class Neighbours:
    """An index of questions. It names those that may be similar to a given one; it misses 1 of 10,000 whose similarity is the threshold."""

    def __init__(self, threshold: float):
        from datasketch import LeanMinHash, MinHashLSH

        # With r rows per band and b bands, a pair of similarity t is missed with probability (1 - t^r)^b.
        rows = [r for r in range(1, _PERMUTATIONS // 2 + 1) if (1 - threshold**r) ** (_PERMUTATIONS // r) <= _MISSED]
        bands = (_PERMUTATIONS // rows[-1], rows[-1])
        self._index = MinHashLSH(num_perm=_PERMUTATIONS, params=bands)
        self._minhash = partial(LeanMinHash, seed=1, scheme="affine32")

    def add(self, key: int, signature: np.ndarray) -> None:
        """Add a question."""
        self._index.insert(key, self._minhash(hashvalues=signature))

    def of(self, signature: np.ndarray) -> list[int]:
        """Return the keys of questions that may be similar, in ascending order."""
        return sorted(self._index.query(self._minhash(hashvalues=signature)))


def check_threshold(name: str, threshold: float) -> None:
    """Raise UserError unless a threshold of similarity is 0 (off) or from 0.5 to 1."""
    if threshold != 0 and not 0.5 <= threshold <= 1:
        raise UserError(f"{name} is {threshold}: it must be from 0.5 to 1, or 0 to switch this check off")


def check_installed(name: str) -> None:
    """Raise UserError if the library of similarity is missing; `name` is the setting that needs it."""
    if importlib.util.find_spec("datasketch") is None:
        raise UserError(f'{name} needs datasketch: pip install -e ".[curation]", or set it to 0')
