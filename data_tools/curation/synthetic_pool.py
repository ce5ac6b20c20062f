"""A synthetic pool of the size of s1's: 59,029 rows of sixteen sources, to measure curation with.

The number of rows of each source is the paper's. Real questions may be given, and come first. The others are random sentences. The traces
are random sentences, too: their lengths in characters follow a log-normal distribution whose mean is about that of s1K's traces. One row
in fifty is a copy of an earlier one, one in fifty has a fault, and two answers in five disagree with the reference. Everything is a
function of the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from s1jax.runtime import jsonl
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable
from s1jax.runtime.lock import Lock

SIZES = {
    "NuminaMATH": 30_660, "MATH": 11_999, "OlympicArena": 4_250, "OmniMath": 4_238, "AGIEval": 2_385, "xword": 999, "OlympiadBench": 896,
    "AIME": 890, "TheoremQA": 747, "USACO": 519, "JEEBench": 515, "GPQA": 348, "SciEval": 227, "s1-prob": 182, "LiveCodeBench": 151,
    "s1-teasers": 23,
}  # fmt: skip
"""Rows of each source (paper, table 7)."""
_NOUNS = [
    "triangle", "circle", "integer", "sequence", "polynomial", "matrix", "graph", "function", "angle", "radius", "prime", "divisor",
    "vertex", "particle", "charge", "field", "wave", "solution", "reaction", "mole", "gene", "cell", "orbit", "planet", "market", "price",
    "vote", "word", "letter", "clue", "array", "string", "node", "path", "cycle", "weight", "force",
]  # fmt: skip
_VERBS = [
    "contains", "equals", "divides", "meets", "exceeds", "bounds", "maps", "covers", "leaves", "reaches", "splits", "joins", "moves",
]  # fmt: skip
_ADJECTIVES = [
    "first", "second", "largest", "smallest", "only", "every", "some", "given", "fixed", "random", "equal", "distinct", "positive",
    "real", "possible", "right", "left", "inner", "outer", "final",
]  # fmt: skip


@dataclass(frozen=True)
class SyntheticPoolConfig:
    """Size and place of the pool."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT.jsonl")]
    """JSONL file for the pool."""
    questions: tuple[Path, ...] = ()
    """JSONL files with real questions, which come first: a question, and perhaps an answer, per line."""
    mean_characters: int = 13_000
    """Mean length of a trace. 1,000 rows of s1K have 4.7 million tokens, about 13,000 characters per trace."""
    divide: int = 1
    """Divisor of all sizes, for a small pool."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        if self.divide < 1 or self.mean_characters < 100:
            raise UserError("--divide must be at least 1, and --mean-characters at least 100")


def make_rows(config: SyntheticPoolConfig, real: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows; `real` are rows with a question and perhaps an answer."""
    rng = random.Random(f"synthetic pool {config.seed}")
    sentences = [_sentence(rng) for _ in range(4000)]
    numpy_rng = np.random.default_rng(config.seed)
    earlier: list[str] = []
    taken = iter(real)
    for source, size in SIZES.items():
        for _ in range(max(1, size // config.divide)):
            given = next(taken, None)
            question = (
                " ".join(_sentence(rng) for _ in range(rng.randint(2, 6))) if given is None else given["question"]
            )
            if given is None and earlier and rng.random() < 0.02:
                question = rng.choice(earlier)
            earlier.append(question)
            answer = (
                str(rng.randint(0, 999)) if given is None else str(given.get("answer", 0)).rpartition("####")[2].strip()
            )
            length = config.mean_characters * float(numpy_rng.lognormal(-0.18, 0.6))
            trace = "".join(sentences[i] for i in numpy_rng.integers(0, len(sentences), 1 + int(length / 80)))
            row = {
                "question": question,
                "thinking": f"{trace}\nSo the answer is {answer}.",
                "answer": f"The result is \\boxed{{{answer}}}.",
                "reference": answer if rng.random() < 0.6 else f"{answer}1",
                "source": source,
                "domain": f"{rng.randint(0, 60):02d}",
            }
            yield _spoilt(row, rng) if rng.random() < 0.02 else row


def _sentence(rng: random.Random) -> str:
    a, b, c = (rng.randint(2, 9999) for _ in range(3))
    words = (
        rng.choice(_ADJECTIVES),
        rng.choice(_NOUNS),
        rng.choice(_VERBS),
        rng.choice(_ADJECTIVES),
        rng.choice(_NOUNS),
    )
    return rng.choice(
        (
            f"The {words[0]} {words[1]} {words[2]} the {words[3]} {words[4]} of $x_{{{a}}} = {b}$.\n",
            f"Since ${a} + {b} = {a + b}$, the {words[1]} {words[2]} {c} times.\n",
            f"Let $f(x) = x^{a % 9} - {b}x + {c}$; then its {words[3]} {words[4]} {words[2]} {a}. ",
            f"We check: {a} * {c % 100} = {a * (c % 100)}, so no {words[1]} is {words[0]}. Wait, {b} needs the {words[4]}.\n",
        )
    )


def _spoilt(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    return row | rng.choice(
        (
            {"thinking": ""},
            {"question": None},
            {"question": f"![Image](a.png) {row['question']}"},
            {"thinking": f"**{row['thinking']}"},
            {"question": 17},
        )
    )


def main() -> None:
    """Write the pool."""
    config = parse_arguments(__doc__ or "", SyntheticPoolConfig)
    check_writable(config.out)
    if config.out.exists():
        raise UserError(f"{config.out} exists: remove it, or give another file")
    real = [row for path in config.questions for _, row in jsonl.read(path)]
    with Lock(config.out), jsonl.Appender(config.out) as file:
        for row in make_rows(config, real):
            file.append([row])


if __name__ == "__main__":
    run_command(main)
