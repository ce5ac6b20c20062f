"""`scheduler.py`: forked answers equal single runs, and read their traces' caches in place."""

import itertools

import numpy as np
import pytest

from s1jax.checkpoint.source import resolve_source
from s1jax.data.condition import Limits
from s1jax.decode.engine import load_engine
from s1jax.decode.request import SCORES
from s1jax.ops import attention
from tests.support.decoding import COMMA, START, THINK, WAIT, at_point, make_engine, make_request, mixed_requests

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("num_rows", [2, 6])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_forked_answers_equal_single_runs_token_for_token(engine, temperature, num_rows, dtype):
    engine = engine if dtype == "float32" else make_engine(dtype=dtype)
    grid = [
        Limits(*point) for point in itertools.product((0, 1, 7, 30, 60), (0, 5, 20), (0, 1, 3)) if point[1] <= point[0]
    ]
    rng = np.random.default_rng(1)
    shapes = [((), 0), ((WAIT,), 1), ((WAIT, COMMA, WAIT), 2)]
    sweeps = [
        make_request(
            prompt=(*rng.integers(8, 40, size=4).tolist(), START, THINK), max_thinking_tokens=60, min_thinking_tokens=20,
            num_ignore=3, ignore_ids=ignore, max_answer_tokens=7, points=tuple(grid), temperature=temperature, problem=i,
        )
        for ignore, i in shapes * 2
    ]  # fmt: skip
    forked = dict(engine.stream(sweeps, num_rows=num_rows))
    for i, request in enumerate(sweeps):
        single = engine.decode([at_point(request, point) for point in grid])
        assert list(forked[i]) == single


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_models_curve_equals_its_points_one_at_a_time(real_model, temperature):
    real, chat = load_engine(resolve_source(real_model), "float32")
    grid = [Limits(*p) for p in ((0,), (16,), (40, 24), (64,), (64, 48), (96, 0, 1), (96, 32, 2), (96, 96), (96, 0, 4))]
    sweeps = [
        make_request(
            tuple(chat.encode_prompt(f"What is {17 + i} times {12 + i}?")), max_thinking_tokens=96, min_thinking_tokens=96,
            num_ignore=4, ignore_ids=tuple(chat.encode_text("Wait")), max_answer_tokens=16, points=tuple(grid),
            temperature=temperature, problem=i, sample=sample, final_ids=tuple(chat.encode_final("Final Answer:")),
        )
        for i in range(3) for sample in range(2)
    ]  # fmt: skip
    forked = dict(real.stream(sweeps, num_rows=4))
    assert all(len({point.tokens for point in points}) > 3 for points in forked.values())
    for point in grid:  # together, in other rows and in another order
        backwards = [at_point(request, point) for request in reversed(sweeps)]
        single = real.decode(backwards)[::-1]
        assert [forked[i][grid.index(point)] for i in range(len(sweeps))] == single


@pytest.mark.slow
def test_the_kernel_over_caches_computes_prompts_rows_and_forks(engine, monkeypatch):
    traced = set()
    kernel = attention.cached_attention
    monkeypatch.setattr(
        attention,
        "cached_attention",
        lambda q, segment_ids, caches, *more, **how: (
            traced.add((q.shape[1] > 1, len(caches))) or kernel(q, segment_ids, caches, *more, **how)
        ),
    )
    asked = [
        make_request(
            prompt=(9, 21, START, THINK), max_thinking_tokens=12, min_thinking_tokens=5, num_ignore=1, ignore_ids=(WAIT,),
            max_answer_tokens=4, points=(Limits(3), Limits(12, 5, 1)), temperature=1.0, problem=i,
        )
        for i in range(2)
    ]  # fmt: skip
    assert dict(make_engine(attention="pallas").stream(asked)) == dict(engine.stream(asked))
    # A prompt sees itself. A row also sees its prompt. A fork also sees its trace.
    assert traced == {(True, 1), (False, 2), (False, 3)}


def test_a_trace_that_waits_for_its_answers_while_other_rows_go_round_the_ring_is_kept(engine):
    waits = make_request(
        prompt=(9, 21, START, THINK), max_thinking_tokens=12, min_thinking_tokens=12, max_answer_tokens=7,
        points=(Limits(5, 5), Limits(12, 12)),
    )  # fmt: skip
    others = mixed_requests(60, max_thinking_tokens=30, min_thinking_tokens=30, max_answer_tokens=7)
    forked = dict(engine.stream([waits, *others], num_rows=8))
    assert list(forked[0]) == engine.decode([at_point(waits, point) for point in waits.points])
    assert [forked[i + 1][0] for i in range(60)] == engine.decode(others)


def test_log_probabilities_are_the_models_whoever_decoded_the_token(engine):
    request = make_request(
        prompt=(9, 21, START, THINK), max_thinking_tokens=40, num_ignore=2, ignore_ids=(WAIT,), max_answer_tokens=6,
        points=(Limits(40, 0, 2), Limits(9), Limits(40)), temperature=1.0,
    )  # fmt: skip
    ((_, forked),) = engine.stream([request], scores=True)
    for completion, point in zip(forked, request.points, strict=True):
        (single,) = engine.decode([at_point(request, point)], scores=True)
        for name in SCORES:
            np.testing.assert_allclose(getattr(completion, name), getattr(single, name), atol=1e-5)
        assert all((p == 0) == f for p, f in zip(single.logprobs, single.forced, strict=True))
