"""`prefill.py`: prompts are read once, in pieces."""

import jax
import numpy as np
import pytest

from s1jax.decode import batch, prefill
from tests.support.decoding import (
    CONFIG,
    START,
    THINK,
    make_request,
)

pytestmark = pytest.mark.integration


def test_samples_of_one_prompt_are_prefilled_once_and_share_one_copy_of_its_cache(engine, monkeypatch):
    """64 samples of 200 tokens: no array but the prompt's one cache is long enough to hold the prompt."""
    prefilled, held = [], []
    prefill_once, advance = prefill.prefill, batch.advance
    monkeypatch.setattr(prefill, "prefill", lambda *a, **k: prefilled.append(a[2].shape) or prefill_once(*a, **k))

    def count(*args, **how):
        state = advance(*args, **how)
        held.append(sum(max(x.shape[2:]) >= 200 for x in jax.live_arrays() if x.ndim == 4))
        assert args[3][0].positions.shape[0] == 1 and state.cache.positions.shape == (64, 64)
        return state

    monkeypatch.setattr(batch, "advance", count)
    prompt = (*np.random.default_rng(2).integers(8, 40, size=198).tolist(), START, THINK)
    samples = [
        make_request(prompt=prompt, max_thinking_tokens=9, max_answer_tokens=9, temperature=1.0, sample=i)
        for i in range(64)
    ]
    completions = engine.decode(samples)
    assert prefilled == [(1, 256)] and len(set(completions)) > 32 and set(held) == {2 * CONFIG.num_layers}
    monkeypatch.undo()
    assert completions[::16] == [engine.decode([sample])[0] for sample in samples[::16]]


def test_prompts_are_prefilled_in_pieces_of_few_lengths(engine, monkeypatch):
    rng = np.random.default_rng(1)
    several = [
        make_request(
            prompt=(*rng.integers(8, 40, size=n).tolist(), START, THINK), max_thinking_tokens=9, max_answer_tokens=9
        )
        for n in (14, 46, 130)
    ]
    at_once = [engine.decode([request])[0] for request in several]
    pieces = []
    prefill_once = prefill.prefill
    monkeypatch.setattr(prefill, "prefill", lambda *a, **k: pieces.append(a[2].shape[1]) or prefill_once(*a, **k))
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", 64)
    assert [engine.decode([request])[0] for request in several] == at_once
    assert pieces == [16, 48, 64, 64, 64]
