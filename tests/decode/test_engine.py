"""`engine.py`: requests that come and go while others decode, and stop strings."""

import dataclasses
from enum import Enum

import numpy as np
import pytest

from s1jax.data.condition import Limits
from s1jax.decode import batch, loop, prefill
from s1jax.decode.budget import Phase
from s1jax.decode.engine import Engine
from tests.support.decoding import COMMA, START, THINK, WAIT, make_engine, make_request, to_text

pytestmark = pytest.mark.integration

COMPILED = (prefill.prefill, prefill.put_prompts, loop.change_rows, loop.advance)
POINTS = (Limits(4), Limits(11, 5), Limits(24, 5, 2))


@pytest.fixture(scope="module")
def model():
    return make_engine().model


def request(i, **changes):
    """One of many requests that differ in prompt, limits, ignore string, sampling and points; all prompts are of one bucket."""
    rng = np.random.default_rng(i // 2)
    prompt = (*rng.integers(8, 40, size=3 + i // 2 % 8).tolist(), START, THINK)
    fields = dict(
        prompt=prompt,
        max_thinking_tokens=24,
        min_thinking_tokens=[0, 5, 12][i % 3],
        num_ignore=2,
        ignore_ids=[(), (WAIT,), (WAIT, COMMA)][i % 3],
        max_answer_tokens=[5, 9][i % 2],
        temperature=[1.0, 0.0, 0.7][i % 3],
        top_k=[0, 0, 9][i % 3],
        points=POINTS if i % 3 == 1 else (),
        problem=i,
        seed=5,
    )
    return make_request(**fields | changes)


def alone(model, asked):
    ((_, completions),) = Engine(model).stream([asked], scores=False)
    return completions


def run(engine, results=None, max_steps=loop.MAX_STEPS):
    """Step until nothing is unfinished; return all results by ticket."""
    results = {} if results is None else results
    while engine.num_unfinished:
        results |= dict(engine.step(max_steps))
    return results


class State(Enum):
    WAITING, THINKING, ANSWERING, WAITING_TO_FORK = range(4)


def state_of(engine, ticket):
    """Where an unfinished request is: its row tells."""
    log = engine.scheduler.unfinished[ticket]
    if log not in engine.scheduler.logs:
        return State.WAITING
    in_row = {Phase.THINK: State.THINKING, Phase.DONE: State.WAITING_TO_FORK}
    return in_row.get(log.phase, State.ANSWERING)


def step_until(engine, ticket, state):
    """Step until a request is in a state; return what finished before."""
    results = {}
    while state_of(engine, ticket) != state:
        results |= dict(engine.step(1))
    return results


def come_and_go(engine, first):
    """Submit requests in waves while others decode, and cancel one of them; return the requests and the results, by ticket."""
    asked, results = {}, {}

    def submit(i):
        asked[ticket := engine.submit(request(i))] = request(i)
        return ticket

    for i in range(first, first + 5):
        submit(i)
    for wave in range(first + 5, first + 17, 4):
        results |= dict(engine.step(6))
        cancelled = [submit(i) for i in range(wave, wave + 4)][1]
        results |= dict(engine.step(3))
    if cancelled in engine.scheduler.unfinished:
        engine.cancel(cancelled)
    return asked, run(engine, results, max_steps=7), cancelled


def test_requests_that_arrive_while_others_decode_get_the_completions_they_have_alone(model):
    engine = Engine(model, num_rows=4)
    asked, results, cancelled = come_and_go(engine, first=0)
    assert results.keys() == asked.keys() - {cancelled} and len(asked) == 17
    for ticket, completions in results.items():
        assert completions == alone(model, asked[ticket]), ticket


def test_arrivals_of_known_shapes_compile_nothing(model):
    engine = Engine(model, num_rows=4)
    # It keeps its row, so shapes stay as they are.
    engine.submit(request(0, max_thinking_tokens=100, min_thinking_tokens=100, num_ignore=100))
    results = {}
    for i in range(4):
        engine.step(1)
        engine.submit(request(i, points=()))
    while len(results) < 4:
        results |= dict(engine.step(5))
    before = [f._cache_size() for f in COMPILED]
    assert state_of(engine, 0) == State.THINKING
    for i in range(4, 12):
        engine.submit(request(i, points=(), seed=7, temperature=0.4, top_p=0.8))
        results |= dict(engine.step(2))
    run(engine, results)
    assert len(results) == 13 and [f._cache_size() for f in COMPILED] == before


def test_a_longer_prompt_budget_and_ignore_string_may_arrive_while_others_decode(model):
    engine = Engine(model, num_rows=2)
    short = request(0, max_thinking_tokens=60, min_thinking_tokens=60)
    rng = np.random.default_rng(3)
    long = request(
        1, prompt=(*rng.integers(8, 40, size=60).tolist(), START, THINK), max_thinking_tokens=90, num_ignore=4,
        ignore_ids=(WAIT, COMMA) * 5, min_thinking_tokens=70,
    )  # fmt: skip
    first = engine.submit(short)
    engine.step(5)
    second = engine.submit(long)
    engine.step(5)
    assert state_of(engine, first) == state_of(engine, second) == State.THINKING
    results = run(engine)
    assert results == {first: alone(model, short), second: alone(model, long)}


def test_a_request_waits_thinks_waits_to_fork_and_answers(model):
    engine = Engine(model, num_rows=2)
    forks = engine.submit(request(1))
    thinks = engine.submit(request(2, max_thinking_tokens=100, min_thinking_tokens=100, num_ignore=50))
    waits = engine.submit(request(4))
    assert {state_of(engine, ticket) for ticket in (forks, thinks, waits)} == {State.WAITING}
    engine.step(1)
    assert [state_of(engine, ticket) for ticket in (forks, thinks, waits)] == [State.THINKING] * 2 + [State.WAITING]
    engine.cancel(waits)
    step_until(engine, forks, State.ANSWERING)
    step_until(engine, forks, State.WAITING_TO_FORK)
    assert run(engine).keys() == {forks, thinks}


@pytest.mark.parametrize("state", [State.WAITING, State.THINKING, State.ANSWERING, State.WAITING_TO_FORK])
def test_a_cancelled_request_frees_its_row_in_every_state_and_changes_no_other(model, state):
    engine = Engine(model, num_rows=1 if state == State.WAITING else 2)
    other = request(0, max_thinking_tokens=60, min_thinking_tokens=60, num_ignore=30)
    stays = engine.submit(other)
    cancelled = engine.submit(request(1))
    engine.step(1)
    results = step_until(engine, cancelled, state)
    engine.cancel(cancelled)
    assert cancelled not in engine.progress()
    later = engine.submit(request(3))
    run(engine, results)
    assert results == {stays: alone(model, other), later: alone(model, request(3))}
    for ticket in (cancelled, stays, 99):
        with pytest.raises(ValueError, match=f"ticket {ticket} is no unfinished request"):
            engine.cancel(ticket)


def test_an_idle_engine_takes_more_work_and_keeps_its_prompts_if_shapes_are_the_same(model, monkeypatch):
    prefilled = []
    read = prefill.prefill
    monkeypatch.setattr(prefill, "prefill", lambda *a, **k: prefilled.append(a[2].shape) or read(*a, **k))
    engine = Engine(model, num_rows=2)
    assert engine.step() == []
    for sample in range(3):
        ticket = engine.submit(request(0, sample=sample))
        assert run(engine) == {ticket: alone(model, request(0, sample=sample))}
    assert len(prefilled) == 1 + 3  # once here, and once for each that was alone


def stopping(model, asked):
    """The request with a stop string of two letters that its answer contains, and the cut answer's length."""
    completion = alone(model, dataclasses.replace(asked, points=()))[0]
    begin = len(completion.tokens) - completion.num_answer - (completion.finish_reason == "stop")
    answer = completion.tokens[begin : begin + completion.num_answer]
    assert len(answer) >= 4
    text = to_text(answer)
    stop = text[2:4]
    return dataclasses.replace(asked, stop=("never", stop)), text.index(stop) + 2, completion


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stop_string_cuts_the_answer_after_its_last_token_wherever_calls_end(model, temperature):
    # Seed and problem are such that the model writes a long answer.
    asked = next(
        candidate
        for i in range(20)
        if (
            candidate := request(
                3, temperature=temperature, problem=i, max_answer_tokens=12, prompt=(9 + i, START, THINK)
            )
        )
        and alone(model, dataclasses.replace(candidate, points=()))[0].num_answer >= 8
    )
    asked, num_answer, whole = stopping(model, asked)
    cut_off = whole.num_answer + (whole.finish_reason == "stop") - num_answer
    assert cut_off > 0
    for max_steps in (1, 2, 3, 5, loop.MAX_STEPS):
        engine = Engine(model, num_rows=2)
        mate = engine.submit(request(2))
        ticket = engine.submit(asked)
        results = run(engine, max_steps=max_steps)
        (completion,) = results[ticket]
        assert completion.finish_reason == "stop_string" and completion.num_answer == num_answer
        assert completion.tokens == whole.tokens[:-cut_off] and completion.forced == whole.forced[:-cut_off]
        assert results[mate] == alone(model, request(2))


def test_stop_strings_cut_forked_answers_as_those_of_single_runs(model):
    letters = tuple(to_text([i]) for i in range(10, 30))
    cut = 0
    for i in (1, 4, 7):
        asked = request(i, stop=letters, max_answer_tokens=12)
        completions = alone(model, asked)
        for completion, point in zip(completions, POINTS, strict=True):
            condition = dataclasses.replace(asked.condition, **point._asdict())
            assert (completion,) == alone(model, dataclasses.replace(asked, points=(), condition=condition))
            cut += completion.finish_reason == "stop_string"
    assert cut > 2


def test_a_row_that_a_stop_string_ended_takes_the_next_request_at_once(model, monkeypatch):
    steps, advance = [], batch.advance

    def count(*args, **options):
        state = advance(*args, **options)
        steps.append(int(state.num_steps))
        return state

    monkeypatch.setattr(batch, "advance", count)
    engine = Engine(model, num_rows=1)
    every = tuple(to_text([i]) for i in range(43))
    for i in range(3):
        engine.submit(request(0, thinks=False, stop=every, max_answer_tokens=100, sample=i))
    results = run(engine, max_steps=4)
    assert [c.num_answer for (c,) in results.values() if c.finish_reason == "stop_string"]
    assert sum(steps) <= 3 * 4


def test_stop_strings_that_nothing_can_find_are_refused(model):
    for stop in ("", "\ufffd"):
        with pytest.raises(ValueError, match="no text can end with it"):
            request(0, stop=(stop,))
    engine = Engine(dataclasses.replace(model, to_text=None))
    with pytest.raises(ValueError, match="no tokenizer to read text with"):
        engine.submit(request(0, stop=("x",)))
    assert engine.num_unfinished == 0
