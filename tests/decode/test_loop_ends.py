"""Decoding with ends of thinking of several tokens: against one full forward per token, and against itself under other batches."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s1jax.data.condition import Limits
from s1jax.decode import sampling
from s1jax.decode.batch import capacity_for
from s1jax.decode.engine import Engine
from s1jax.decode.request import PER_TOKEN, SCORES
from s1jax.model.qwen2 import graphdef
from s1jax.runtime.sharding import MeshConfig
from tests.support.decoding import (
    COMMA,
    CONFIG,
    DELIMITERS,
    FINAL_IDS,
    NEWLINE,
    NUM_TOKENS,
    RULES,
    START,
    THINK,
    WAIT,
    at_point,
    changed,
    make_engine,
    make_request,
)
from tests.support.ends_reference import Language, Row, Settings, reference_step

pytestmark = pytest.mark.integration

# Few texts, so that ends come up often. The capital letters stand for the three added tokens.
TEXTS = [("a", "b", "xa", "c", "bx", "ba")[i % 6] for i in range(NUM_TOKENS - 3)] + ["S", "N", "T"]
TEXTS[NEWLINE] = "\n"
SPELLED = {"S": "<start>", "N": "<end>", "T": "<eot>"}
ENDS, FORCED_ENDS = ("ab", "bxa", "Sa", "Sb", "N", "T"), ("Sa", "ab")
BEGINS_END = [any(text[i:] == end[: len(text) - i] for end in ENDS for i in range(len(text))) for text in TEXTS]

DRAW = jax.jit(sampling.draw)


def spelled(text):
    return "".join(SPELLED.get(character, character) for character in text)


def engine_on(mesh_config=None):
    texts, ends, forced = (tuple(map(spelled, some)) for some in (TEXTS, ENDS, FORCED_ENDS))
    delimiters = dataclasses.replace(DELIMITERS, end_thinking=ends, forced_ends=forced)
    return make_engine(mesh_config, delimiters=delimiters, texts=texts)


@pytest.fixture(scope="module")
def engine():
    return engine_on()


def asked(i, **changes):
    fields = dict(
        prompt=(9 + i, 21, START, THINK),
        max_thinking_tokens=40,
        min_thinking_tokens=[12, 0, 25][i % 3],
        num_ignore=[3, 2, 8][i % 3],
        ignore_ids=[(), (WAIT,), (WAIT, COMMA)][i // 2 % 3],
        max_answer_tokens=4,
        temperature=[1.0, 0.0][i % 2],
        problem=i,
        seed=7,
    )
    return make_request(**fields | changes)


@pytest.fixture(scope="module")
def forward(engine):
    model_of = graphdef(CONFIG, RULES, "per_layer")

    @jax.jit
    def last(tokens, length):
        model = nnx.merge(model_of, engine.model.params)
        positions = jnp.arange(tokens.shape[0])[None]
        hidden, _ = model(tokens[None], positions, jnp.ones_like(positions))
        return hidden[0, length - 1], model.logits(hidden)[0, length - 1]

    return lambda ids: last(jnp.zeros(256, jnp.int32).at[: len(ids)].set(jnp.array(ids)), len(ids))


def decode_plainly(forward, request):
    """Decode by the reference, with one full forward per token; return the tokens and the rows after each step."""
    condition = request.condition
    settings = Settings(
        *condition.limits, ignore=request.ignore_ids, max_answer=condition.max_answer_tokens, last_prompt_token=THINK
    )
    exists = np.arange(CONFIG.vocab_size) < NUM_TOKENS
    begins = np.pad(BEGINS_END, (0, CONFIG.vocab_size - NUM_TOKENS))
    masks = jnp.array([exists, exists & ~begins])
    values = [jnp.array([condition.temperature]), jnp.array([0]), jnp.array([1.0]), jnp.array([0.0])]
    key = sampling.row_keys(*(jnp.array([x]) for x in (request.seed, request.problem, request.sample)))
    tokens, rows = [], [Row("think", THINK)]
    while rows[-1].phase != "done":
        _, logits = forward([*request.prompt, *tokens])
        keys = jax.random.fold_in(key[0], len(tokens))[None]
        sampled, redraw = DRAW(logits[None], masks, keys, sampling.SamplingSettings(*values))[:, 0].tolist()
        words = Language(
            tuple(TEXTS), ENDS, FORCED_ENDS, {sampled: redraw}, frozenset(DELIMITERS.end_answer),
            DELIMITERS.newline, DELIMITERS.answer, FINAL_IDS,
        )  # fmt: skip
        now = reference_step(words, settings, rows[-1], sampled)
        tokens[now.place :] = [] if now.token is None else [now.token]
        rows.append(now.row)
    return tuple(tokens), rows


def test_tokens_and_the_cache_are_those_of_one_full_forward_per_token(engine, forward):
    taken_back, kinds, voids = 0, set(), 0
    for i in range(12):
        request = asked(i)
        tokens, rows = decode_plainly(forward, request)
        rowed = Engine(engine.model, num_rows=1)
        ticket = rowed.submit(request)
        ((_, (completion,)),) = rowed.step()
        assert completion.tokens == tokens and ticket == 0
        assert (completion.num_thinking, completion.num_ignored) == (rows[-1].counted, rows[-1].ignored)
        # What the row's cache holds at the end is what a fresh forward of its tokens computes.
        hidden, _ = forward([*request.prompt, *tokens])
        np.testing.assert_allclose(rowed.scheduler.traces.state.hidden[0, -1], hidden, atol=1e-4)
        assert len(rows) - 1 == rowed.scheduler.traces.ages[0]
        taken_back += len(rows) - 1 - len(tokens)
        voids += sum(row.may_not_begin and not request.ignore_ids for row in rows)
        after = tokens[completion.num_thinking :]
        kinds.add((FINAL_IDS in (after[:5], after[1:6]), completion.num_thinking < 40))
    assert taken_back > 20 and voids > 5
    assert kinds == {(True, True), (False, True), (True, False)}, "all of: forced end, natural end, end of the budget"


def test_log_probabilities_are_those_of_the_tokens_that_stay(engine, forward):
    checked = 0
    for i in range(6):
        request = asked(i)
        (completion,) = engine.decode([request], scores=True)
        for place, (token, forced, logprob, of_end, confidence) in enumerate(
            zip(*(getattr(completion, name) for name in PER_TOKEN), strict=True)
        ):
            _, logits = forward([*request.prompt, *completion.tokens[:place]])
            logprobs = jax.nn.log_softmax(logits[:NUM_TOKENS])
            assert abs(logprob - (0 if forced else logprobs[token])) < 1e-4
            assert abs(confidence - np.sort(logprobs)[-20:].mean()) < 1e-4, place
            if place == 0:
                completes = jnp.array([TEXTS.index("N"), TEXTS.index("T")])
                assert abs(of_end - jax.nn.logsumexp(logprobs[completes])) < 1e-4
                checked += 1
    assert checked == 6


def test_batch_mates_and_returns_to_the_host_change_no_token(engine):
    alone = [engine.decode([asked(i)])[0] for i in range(9)]
    assert engine.decode([asked(i) for i in range(9)], num_rows=4) == alone
    for steps in (1, 3):
        seen, completions, rows = [], {}, Engine(engine.model, num_rows=4)
        for i in range(9):
            rows.submit(asked(i))
        while rows.num_unfinished:
            completions |= dict(rows.step(steps))
            seen.append(rows.progress())
        assert [completions[ticket][0] for ticket in range(9)] == alone
        # Tokens that are shown are never taken back.
        for shown in seen:
            for ticket, completion in shown.items():
                assert alone[ticket].tokens[: len(completion.tokens)] == completion.tokens


@pytest.mark.parametrize("num_rows", [2, 6])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forked_answers_equal_single_runs_token_for_token(engine, temperature, num_rows):
    grid = [
        Limits(*point)
        for point in itertools.product((0, 1, 2, 7, 15, 40), (0, 5, 20), (0, 1, 3))
        if point[1] <= point[0]
    ]
    sweeps = [
        asked(
            i, num_ignore=3, min_thinking_tokens=20, ignore_ids=[(), (WAIT,), (WAIT, COMMA)][i % 3], points=tuple(grid),
            temperature=temperature,
        )
        for i in range(6)
    ]  # fmt: skip
    forked = dict(engine.stream(sweeps, num_rows=num_rows, scores=True))
    kinds = set()
    for i, request in enumerate(sweeps):
        single = engine.decode([at_point(request, point) for point in grid], scores=True)
        for point, one, other in zip(grid, forked[i], single, strict=True):
            logprobs = {name: getattr(other, name) for name in SCORES}
            for name, values in logprobs.items():
                np.testing.assert_allclose(getattr(one, name), values, atol=1e-4)
            assert dataclasses.replace(one, **logprobs) == other
            after = one.tokens[one.num_thinking :]
            kinds.add((FINAL_IDS in (after[:5], after[1:6]), one.num_thinking == point.max_thinking_tokens))
    assert len(kinds) == 3


def test_a_request_cancelled_inside_a_match_changes_no_other(engine):
    rows = Engine(engine.model, num_rows=2)
    stays = rows.submit(asked(1))
    cancelled = rows.submit(changed(asked(0), max_thinking_tokens=100, min_thinking_tokens=100))
    results = dict(rows.step(1))
    while not rows.scheduler.traces.state.row.match[rows.scheduler.logs.index(rows.scheduler.unfinished[cancelled])]:
        results |= dict(rows.step(1))
    rows.cancel(cancelled)
    later = rows.submit(asked(2))
    while rows.num_unfinished:
        results |= dict(rows.step(2))
    assert results == {ticket: tuple(engine.decode([asked(i)])) for ticket, i in ((stays, 1), (later, 2))}


def test_a_row_that_takes_back_more_than_its_cache_was_made_for_keeps_all_its_tokens(engine, forward):
    request = asked(0, max_thinking_tokens=100, min_thinking_tokens=100, ignore_ids=())
    rows = Engine(engine.model, num_rows=1)
    rows.submit(request)
    results = []
    while rows.num_unfinished:
        results += rows.step()
    ((_, (completion,)),) = results
    assert rows.scheduler.traces.ages[0] > capacity_for(engine.model.num_new_tokens(request))
    assert completion.tokens == decode_plainly(forward, request)[0]


@pytest.mark.slow
def test_eight_devices_decode_what_one_does(engine):
    points = (Limits(40, 12, 3), Limits(9))
    requests = [asked(i, min_thinking_tokens=25, num_ignore=8, points=points) for i in range(8)]
    sharded = dict(engine_on(MeshConfig(data=4, fsdp=1, tensor=2)).stream(requests))
    assert sharded == dict(engine.stream(requests))
    assert any(completion.num_ignored for completions in sharded.values() for completion in completions)
