"""`scheduler.py`: which request has which row, and that this changes no token."""

import dataclasses

import numpy as np
import pytest

from s1jax.decode import batch, prefill
from s1jax.decode.engine import Engine
from tests.support.decoding import (
    START,
    THINK,
    changed,
    make_request,
    mixed_requests,
)

pytestmark = pytest.mark.integration


def test_a_request_longer_than_the_context_is_refused(engine):
    with pytest.raises(ValueError, match="the model has 256"):
        engine.decode([make_request(prompt=(1,) * 200, max_thinking_tokens=60)])


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8])
def test_the_number_of_rows_and_the_order_of_requests_change_no_token(engine, num_rows):
    wanted = engine.decode(mixed_requests(16))
    assert engine.decode(mixed_requests(16), num_rows=num_rows) == wanted
    assert engine.decode(mixed_requests(16)[::-1], num_rows=num_rows)[::-1] == wanted


def test_a_finished_row_is_refilled_while_the_others_go_on(engine):
    long = make_request(
        prompt=(9, 21, START, THINK), max_thinking_tokens=150, min_thinking_tokens=150, max_answer_tokens=1
    )
    short = [
        changed(request, max_answer_tokens=4)
        for request in mixed_requests(4, max_thinking_tokens=8, min_thinking_tokens=0)
    ]
    order = [index for index, _ in engine.stream([long, *short], num_rows=2)]
    assert order[-1] == 0 and sorted(order) == list(range(5))


def test_no_row_idles_while_a_prompt_has_samples_left(engine, monkeypatch):
    """A prompt of many samples is prefilled again for the rows of those that have no more."""
    base = make_request(prompt=(9, START, THINK), max_thinking_tokens=20, min_thinking_tokens=20, max_answer_tokens=1)
    asked = [changed(base, temperature=1.0, sample=i) for i in range(14)]
    asked += [changed(base, prompt=(9, i, START, THINK)) for i in (21, 33)]
    prefilled, steps = [], []
    prefill_once, advance = prefill.prefill, batch.advance

    def count(*args, **how):
        state = advance(*args, **how)
        steps.append(int(state.num_steps))
        return state

    monkeypatch.setattr(prefill, "prefill", lambda *a, **k: prefilled.append(a[2].shape) or prefill_once(*a, **k))
    monkeypatch.setattr(batch, "advance", count)
    together = engine.decode(asked, num_rows=3)
    assert prefilled == [(1, 16)] * 5
    length = max(len(completion.tokens) for completion in together)
    assert sum(steps) <= 6 * length
    monkeypatch.undo()
    assert together == engine.decode(asked)


def test_a_model_that_gives_nan_is_refused(engine):
    params = engine.model.params | {"norm": {"weight": engine.model.params["norm"]["weight"] * np.nan}}
    damaged = Engine(dataclasses.replace(engine.model, params=params))
    with pytest.raises(ValueError, match="NaN or infinity for request 0"):
        damaged.decode(mixed_requests(1, max_thinking_tokens=9))
