"""Where the answers of two runs to one problem begin to differ: in their texts, and in their tokens where both runs recorded them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s1jax.results.samples import SampleRow
from s1jax.runtime.terminal import visible

TokenReader = Callable[[Path, SampleRow], Any]
"""Returns the recorded tokens of a row of a file: an array with the fields `token` and `logprob`, one entry per token."""

_BEFORE, _BEHIND = 20, 40
"""Characters of an excerpt before and behind the first difference."""


def first_divergence(a_tokens: Sequence[Any] | np.ndarray, b_tokens: Sequence[Any] | np.ndarray) -> int | None:
    """Return the index, from 0, of the first token that differs. None if all are equal.

    If one sequence is the beginning of the other, it is the length of the shorter one.
    """
    shorter = min(len(a_tokens), len(b_tokens))
    differing = np.flatnonzero(np.asarray(a_tokens[:shorter]) != np.asarray(b_tokens[:shorter]))
    if len(differing):
        return int(differing[0])
    return None if len(a_tokens) == len(b_tokens) else shorter


def _characters(row: SampleRow) -> np.ndarray:
    text = row["thinking"] + row["answer_text"]
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _excerpt(row: SampleRow, at: int) -> str:
    """Return what stands around a character, on one line and with its control characters escaped."""
    text = row["thinking"] + row["answer_text"]
    excerpt = text[max(at - _BEFORE, 0) : at + _BEHIND]
    return visible(excerpt.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t"))


def compare_texts(
    pairs: Sequence[tuple[SampleRow, SampleRow]], files: tuple[Path, Path], read_tokens: TokenReader | None = None
) -> dict[str, Any]:
    """Compare the thinking and the answer of each pair of rows, the first of file `files[0]`, the second of `files[1]`.

    Returns the number of pairs `num_pairs`, `num_equal` of equal text, `first_character` and `median_character` (places of the first
    difference, from 0; None if there is none), `divergences`, and `num_with_tokens`, the pairs of which both rows have recorded tokens.
    A divergence has `problem_id`, `seed`, `sample_index`, `character`, and the excerpts `text_a` and `text_b`. With tokens it also has
    `token` (the place, None if all tokens are equal), and for both sides `token_a` and `logprob_a` (None behind the end).
    """
    divergences, num_with_tokens = [], 0
    for a, b in pairs:
        at = first_divergence(_characters(a), _characters(b))
        recorded = read_tokens is not None and all(row.get("tokens_at") is not None for row in (a, b))
        num_with_tokens += recorded
        if at is None:
            continue
        found = {"problem_id": a["problem_id"], "seed": a["seed"], "sample_index": a["sample_index"], "character": at}
        found |= {"text_a": _excerpt(a, at), "text_b": _excerpt(b, at)}
        if recorded and read_tokens is not None:
            found |= _token_columns(read_tokens(files[0], a), read_tokens(files[1], b))
        divergences.append(found)
    places = [found["character"] for found in divergences]
    return {
        "num_pairs": len(pairs), "num_equal": len(pairs) - len(places), "num_with_tokens": num_with_tokens,
        "first_character": min(places, default=None), "median_character": statistics.median(places) if places else None,
        "divergences": divergences,
    }  # fmt: skip


def _token_columns(a: Any, b: Any) -> dict[str, Any]:
    at = first_divergence(a["token"], b["token"])
    columns: dict[str, Any] = {"token": at}
    for side, records in (("a", a), ("b", b)):
        is_there = at is not None and at < len(records)
        columns[f"token_{side}"] = int(records["token"][at]) if is_there else None
        is_drawn = is_there and not records["forced"][at]  # a forced token has no log-probability
        columns[f"logprob_{side}"] = float(records["logprob"][at]) if is_drawn else None
    return columns
