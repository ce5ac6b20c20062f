"""A model's text and the gold answer -> the extracted answer, and whether it is right."""

from __future__ import annotations

from s1jax.grading.equivalence import is_equivalent
from s1jax.grading.extract import extract_answer


def grade(text: str, gold: str) -> tuple[str | None, bool]:
    """Return the answer extracted from a model's text, and whether it equals the gold answer."""
    extracted = extract_answer(text)
    return extracted, is_equivalent(extracted, gold)
