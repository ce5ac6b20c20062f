"""Grade a model's text: text and gold answer -> extracted answer and verdict."""

from __future__ import annotations

from s1jax.grading.equivalence import is_equivalent
from s1jax.grading.extract import extract_answer


def grade(text: str, gold: str) -> tuple[str | None, bool]:
    """Return the answer in a model's text (or None), and whether it equals the gold answer."""
    extracted = extract_answer(text)
    return extracted, is_equivalent(extracted, gold)
