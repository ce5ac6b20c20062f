"""`batch.py`: the caches of a batch grow and shrink with its rows."""

import pytest

from s1jax.decode import batch
from tests.support.decoding import (
    START,
    THINK,
    make_request,
    mixed_requests,
)

pytestmark = pytest.mark.integration


def test_a_cache_that_grows_and_shrinks_and_a_ring_that_wraps_change_no_token(engine, monkeypatch):
    long = mixed_requests(6, max_thinking_tokens=200, num_ignore=40, min_thinking_tokens=180, max_answer_tokens=2)
    asked = [*long, *mixed_requests(12)]
    alone = [engine.decode([row])[0] for row in asked]
    capacities, advance = [], batch.advance
    monkeypatch.setattr(batch, "advance", lambda *a, **k: capacities.append(a[4].cache.capacity) or advance(*a, **k))
    assert engine.decode(asked, num_rows=3) == alone
    grown = capacities.index(256)
    assert 128 in capacities[:grown] and capacities[-1] == 128


def test_a_limit_takes_no_room_before_it_is_used(engine, monkeypatch):
    capacities = []
    advance = batch.advance
    monkeypatch.setattr(batch, "advance", lambda *a, **k: capacities.append(a[4].cache.capacity) or advance(*a, **k))
    ends_early = make_request(prompt=(9, 21, START, THINK), max_thinking_tokens=230, max_answer_tokens=6)
    (completion,) = engine.decode([ends_early])
    assert len(completion.tokens) <= 128 and set(capacities) == {128}
