"""`rejection.py`: traces are drawn until one is short enough, against drawing them one after another."""

import dataclasses

import pytest

from s1jax.data.condition import Limits
from s1jax.decode import scheduler
from s1jax.decode.rejection import SAMPLES, Search
from tests.support.decoding import DELIMITERS, START, THINK, at_point, changed, make_engine, make_request

pytestmark = pytest.mark.integration

BUDGETS = (2, 5, 12, 40)
MAX_TRIES = 6


# With one token that ends the thinking, and with an end of two tokens.
ENDS = {"token": DELIMITERS.end_thinking, "text": ("<start>L", "<end>", "<eot>")}


@pytest.fixture(scope="module", params=ENDS)
def engine(request):
    return make_engine(delimiters=dataclasses.replace(DELIMITERS, end_thinking=ENDS[request.param]))


def search_request(problem, budgets=BUDGETS, max_tries=MAX_TRIES, sample=0, max_answer_tokens=6):
    return make_request(
        (8 + problem, 9, START, THINK),
        method="rejection_sampling",
        max_thinking_tokens=max(budgets),
        max_tries=max_tries,
        max_answer_tokens=max_answer_tokens,
        temperature=1.0,
        problem=problem,
        sample=sample,
        seed=1,
        points=tuple(Limits(budget) for budget in budgets),
    )


def one_after_another(engine, request, budget):
    """Draw whole traces until one has at most `budget` tokens: (tries, thinking tokens of each, the accepted completion or None)."""
    lengths = []
    for number in range(request.condition.max_tries):
        plain = changed(at_point(request, Limits(200)), method="budget_forcing", max_tries=1)
        (trace,) = engine.decode([changed(plain, sample=request.sample + number * SAMPLES)])
        lengths.append(trace.num_thinking)
        if trace.num_thinking <= budget:
            return lengths, trace
    return lengths, None


def test_each_budget_gets_the_first_trace_that_is_short_enough(engine):
    requests = [search_request(problem, sample=problem % 2) for problem in range(6)]
    results = dict(engine.stream(requests, num_rows=4))
    tries = set()
    for index, request in enumerate(requests):
        for budget, got in zip(BUDGETS, results[index], strict=True):
            lengths, expected = one_after_another(engine, request, budget)
            tries.add((got.num_tries, got.finish_reason == "rejected"))
            assert got.num_tries == len(lengths)
            assert got.num_rejected_tokens == sum(budget + 1 for length in lengths if length > budget)
            if expected is not None:
                assert got.tokens == expected.tokens and got.finish_reason == expected.finish_reason
            else:
                assert got.finish_reason == "rejected" and got.num_answer == 0
                assert len(got.tokens) == got.num_thinking == budget + 1
    # The bound was reached, and so were the first, a later and the last try.
    assert (MAX_TRIES, True) in tries and (1, False) in tries and any(n > 1 and not bad for n, bad in tries)


def test_budgets_together_equal_each_alone_and_ordinary_requests_are_not_changed(engine):
    searches = [search_request(problem) for problem in range(3)]
    plain = [changed(at_point(s, Limits(12)), method="budget_forcing", max_tries=1) for s in searches]
    together = dict(engine.stream([*searches, *plain], num_rows=3))
    for index, request in enumerate(searches):
        for place, budget in enumerate(BUDGETS):
            alone = changed(request, max_thinking_tokens=budget, points=(Limits(budget),))
            assert dict(engine.stream([alone]))[0] == (together[index][place],)
    assert [together[3 + i] for i in range(3)] == [(completion,) for completion in engine.decode(plain)]


def test_another_try_makes_no_new_buffers(engine, monkeypatch):
    made = []
    row_batch = scheduler.RowBatch
    monkeypatch.setattr(scheduler, "RowBatch", lambda *shapes: made.append(shapes[1:]) or row_batch(*shapes))
    requests = [search_request(problem, sample=sample) for problem in range(8) for sample in range(2)]
    results = dict(engine.stream(requests, num_rows=4))
    assert len(results) == 16 and any(completion.num_tries > 2 for found in results.values() for completion in found)
    assert len(made) == 1


def test_submit_refuses_what_needs_several_traces_and_check_counts_the_token_past_the_budget(engine):
    with pytest.raises(ValueError, match="use `stream`"):
        engine.submit(search_request(0))
    longest = next(
        n for n in range(256, 0, -1) if engine.model.num_new_tokens(at_point(search_request(0), Limits(n))) + 4 <= 256
    )
    engine.check(changed(at_point(search_request(0), Limits(longest)), method="budget_forcing", max_tries=1))
    with pytest.raises(ValueError, match="need 257 positions"):
        engine.check(search_request(0, budgets=(longest,)))


def test_a_trace_that_is_too_long_is_not_finished(engine, monkeypatch):
    cancelled = []
    monkeypatch.setattr(type(engine), "cancel", _recording(type(engine).cancel, cancelled))
    ((_, (completion,)),) = engine.stream([search_request(0, budgets=(1,), max_tries=3, max_answer_tokens=60)])
    assert completion.finish_reason == "rejected" or completion.num_tries > 1
    assert cancelled


def _recording(cancel, cancelled):
    def record(engine, ticket):
        cancelled.append(ticket)
        cancel(engine, ticket)

    return record


def test_a_sample_whose_number_would_be_that_of_another_try_is_refused():
    with pytest.raises(ValueError, match=f"sample {SAMPLES} is too large for rejection sampling"):
        Search(search_request(0, sample=SAMPLES))
