"""`loop.py`: decoding with a tiny random model against one full forward per token, and against itself under other batches."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from s1jax.decode import batch, loop, prefill
from s1jax.decode.engine import Engine
from s1jax.model.qwen2 import graphdef
from s1jax.runtime.sharding import MeshConfig
from tests.support.decoding import (
    FINAL_IDS,
    NUM_TOKENS,
    RULES,
    START,
    THINK,
    WAIT,
    changed,
    make_engine,
    make_request,
    mixed_requests,
)

pytestmark = pytest.mark.integration

both_families = pytest.mark.parametrize("engine", ["qwen2", "qwen3"], indirect=True)
COMPILED = (prefill.prefill, prefill.put_prompts, loop.change_rows, loop.advance)


@both_families
def test_greedy_decode_without_ignores_equals_one_full_forward_per_token(engine):
    prompt = (9, 21, 33, START, THINK)
    (completion,) = engine.decode([make_request(prompt=prompt, max_thinking_tokens=20, max_answer_tokens=10)])
    model_of = graphdef(engine.model.config, RULES, "per_layer")

    @jax.jit
    def last_logits(params, tokens, length):
        model = nnx.merge(model_of, params)
        positions = jnp.arange(tokens.shape[0])[None]
        hidden, _ = model(tokens[None], positions, jnp.ones_like(positions))
        return model.logits(hidden)[0, length - 1]

    ids = list(prompt)
    for token, forced in zip(completion.tokens, completion.forced, strict=True):
        logits = last_logits(engine.model.params, jnp.zeros(64, jnp.int32).at[: len(ids)].set(jnp.array(ids)), len(ids))
        greedy = int(jnp.argmax(logits[:NUM_TOKENS]))
        if not forced:
            assert token == greedy
        ids.append(token)
    assert not all(completion.forced) and any(completion.forced)


def test_batch_mates_and_padding_change_no_token(engine):
    together = engine.decode(mixed_requests())
    alone = [engine.decode([request])[0] for request in mixed_requests()]
    padded = engine.decode(mixed_requests(), num_rows=11)
    shuffled = engine.decode(mixed_requests()[::-1])[::-1]
    assert together == alone == padded == shuffled
    assert len({completion.tokens for completion in together}) == len(together)


def test_returning_to_the_host_between_steps_changes_no_token_and_shows_growing_prefixes(engine):
    whole = engine.decode(mixed_requests())
    seen, completions, rows = [], {}, Engine(engine.model, num_rows=8)
    for request in mixed_requests():
        rows.submit(request)
    while rows.num_unfinished:
        completions |= dict(rows.step(7))
        seen.append(rows.progress())
    assert [completions[ticket][0] for ticket in range(8)] == whole
    assert len(seen) > 3
    for earlier, later in itertools.pairwise(seen):
        for index in earlier.keys() & later.keys():
            assert later[index].tokens[: len(earlier[index].tokens)] == earlier[index].tokens


@both_families
def test_thinking_never_passes_the_budget_and_meets_it_where_the_budget_ended_it(engine):
    for request, completion in zip(mixed_requests(16), engine.decode(mixed_requests(16)), strict=True):
        after = completion.tokens[completion.num_thinking :]
        out_of_budget = FINAL_IDS in (after[:5], after[1:6])
        assert completion.num_thinking <= request.condition.max_thinking_tokens
        assert out_of_budget == (completion.num_thinking == request.condition.max_thinking_tokens)
        assert completion.num_forced == sum(completion.forced)
        assert completion.num_answer <= request.condition.max_answer_tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_trace_of_a_smaller_budget_is_a_prefix_of_the_larger_ones(engine, temperature):
    base = make_request(
        prompt=(9, 21, START, THINK), num_ignore=9, ignore_ids=(WAIT,), temperature=temperature, max_answer_tokens=4
    )
    budgets = (0, 1, 4, 9, 30, 60)
    completions = engine.decode([changed(base, max_thinking_tokens=b) for b in budgets])
    traces = [c.tokens[: c.num_thinking] for c in completions]
    for small, large in itertools.pairwise(traces):
        assert large[: len(small)] == small
    assert len(traces[-1]) > 9


def test_ids_without_text_are_never_drawn(engine):
    completions = engine.decode(mixed_requests(16, temperature=30.0))
    assert max(max(c.tokens) for c in completions) < NUM_TOKENS


def test_budgets_counts_strings_and_sampling_recompile_nothing(engine):
    engine.decode(mixed_requests(8))
    before = [f._cache_size() for f in COMPILED]
    engine.decode(
        mixed_requests(8, max_thinking_tokens=33, min_thinking_tokens=2, num_ignore=5, temperature=0.3, top_p=0.5)
    )
    engine.decode(
        mixed_requests(
            8, max_thinking_tokens=7, min_thinking_tokens=0, ignore_ids=(8, 9, 10), temperature=0.7, top_k=3, seed=8
        )
    )
    assert [f._cache_size() for f in COMPILED] == before


@pytest.mark.parametrize("mesh", [None, pytest.param(MeshConfig(data=4, fsdp=1, tensor=2), marks=pytest.mark.slow)])
def test_the_loop_is_compiled_once_for_a_shape(mesh):
    """However its state was made: empty, begun by `change_rows`, grown, shrunk, or as the loop before left it."""
    engine = make_engine(mesh)
    batch.advance.clear_cache()  # other tests decode with the same shapes
    capacities = []
    with pytest.MonkeyPatch.context() as patch:
        advance = batch.advance
        patch.setattr(batch, "advance", lambda *a, **k: capacities.append(a[4].cache.capacity) or advance(*a, **k))
        list(engine.stream(mixed_requests(8), num_rows=3))
        long = mixed_requests(3, max_thinking_tokens=150, min_thinking_tokens=140, num_ignore=40)
        list(engine.stream([*long, *mixed_requests(5, max_thinking_tokens=40)], num_rows=3))
    assert capacities.count(64) > 3 and capacities.count(192) > 0
    assert batch.advance._cache_size() == len(set(capacities))


def test_the_loop_ends_when_every_row_is_done(engine, monkeypatch):
    steps = []
    advance = batch.advance
    monkeypatch.setattr(batch, "advance", lambda *a, **k: steps.append(advance(*a, **k)) or steps[-1])
    completions = engine.decode(mixed_requests(4, max_thinking_tokens=6, min_thinking_tokens=0))
    assert int(steps[-1].num_steps) == max(len(c.tokens) for c in completions) < steps[-1].emitted.tokens.shape[1]


def test_rows_that_do_not_think_answer_at_once(engine):
    (completion,) = engine.decode([make_request(prompt=(9, 21, 33), thinks=False, max_answer_tokens=6)])
    assert completion.num_thinking == completion.num_forced == 0
    assert completion.num_answer + (completion.finish_reason == "stop") == len(completion.tokens)


@pytest.mark.parametrize(
    "sizes", [dict(data=4, fsdp=1, tensor=2), pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow)]
)
def test_eight_devices_emit_what_one_does(engine, sizes):
    sharded = make_engine(MeshConfig(**sizes))
    assert sharded.decode(mixed_requests(8)) == engine.decode(mixed_requests(8))
