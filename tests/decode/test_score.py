"""`score.py`: log-probabilities of given text, against the full forward and Hugging Face transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint.source import resolve_source
from s1jax.decode import prefill, score
from s1jax.decode.engine import load_engine
from s1jax.model.qwen2 import Qwen2
from s1jax.runtime.sharding import MeshConfig
from tests.support.decoding import CONFIG, make_engine
from tests.support.models import full_logits

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def pairs_of(shapes, vocab_size=CONFIG.vocab_size, seed=0):
    """Random pairs; a shape is the length of a prompt and the lengths of its continuations."""
    rng = np.random.default_rng(seed)
    pairs = []
    for length, continuations in shapes:
        prompt = rng.integers(0, vocab_size, length).tolist()
        pairs += [(prompt, rng.integers(0, vocab_size, n).tolist()) for n in continuations]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def full(engine, prompt, continuation):
    """The log-probabilities and the likeliest ids by one full forward, ids past the tokenizer's end included."""
    ids = np.zeros((1, -(-(len(prompt) + len(continuation)) // 128) * 128), int)  # few lengths, so few programs
    ids[0, : len(prompt) + len(continuation)] = [*prompt, *continuation]
    logits = full_logits(engine.model.config, "per_layer", engine.model.params, ids)
    logits = logits[0, len(prompt) - 1 : len(prompt) + len(continuation) - 1]
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    of_ids = jnp.take_along_axis(logprobs, jnp.array(continuation)[:, None], axis=1)[:, 0]
    return np.asarray(of_ids), np.asarray(logprobs.argmax(axis=-1))


def check(engine, pairs, scores):
    for (prompt, continuation), found in zip(pairs, scores, strict=True):
        assert found.logprobs.dtype == np.float32 and found.logprobs.shape == (len(continuation),)
        logprobs, likeliest = full(engine, prompt, continuation)
        np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-5)
        assert found.is_greedy.tolist() == (likeliest == continuation).tolist()


def test_scores_equal_the_log_probabilities_of_the_full_forward(engine):
    pairs = pairs_of([(1, (1, 4)), (7, (3, 1, 16, 17, 2)), (40, (9, 9, 30)), (90, (100,))])
    check(engine, pairs, engine.score_all(pairs))
    np.testing.assert_array_equal(engine.score(*pairs[3]).logprobs, engine.score_all([pairs[3]])[0].logprobs)


def test_the_likeliest_continuation_is_greedy_and_stops_being_so_at_one_other_id(engine):
    prompt, continuation = [5, 9, 2], []
    for _ in range(6):
        likeliest = full(engine, prompt + continuation, [0])[1]
        continuation.append(int(likeliest[0]))
    assert engine.score(prompt, continuation).is_greedy.all()
    other = [*continuation[:3], (continuation[3] + 1) % CONFIG.vocab_size]
    assert engine.score(prompt, other).is_greedy.tolist() == [True, True, True, False]


def test_a_pair_may_fill_the_context_and_one_id_more(engine):
    pairs = pairs_of([(1, (CONFIG.max_position_embeddings,))])
    check(engine, pairs, engine.score_all(pairs))


def test_long_pairs_are_scored_in_pieces(engine, monkeypatch):
    pairs = pairs_of([(45, (70, 40))])
    whole = engine.score_all(pairs)
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", 32)
    monkeypatch.setattr(score, "PREFILL_TOKENS", 32)
    for found, wanted in zip(engine.score_all(pairs), whole, strict=True):
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-5)


def test_a_shared_prompt_is_read_once_for_eight_continuations(engine, monkeypatch):
    read = []
    prefill_prompts = score.prefill_prompts
    monkeypatch.setattr(score, "prefill_prompts", lambda *a: read.append(len(a[1])) or prefill_prompts(*a))
    pairs = pairs_of([(20, [3] * 11)])
    check(engine, pairs, engine.score_all(pairs))
    assert sum(read) == 2


def test_logits_exist_for_few_positions_at_a_time(engine, monkeypatch):
    sizes, logits = [], Qwen2.logits
    monkeypatch.setattr(Qwen2, "logits", lambda self, x: sizes.append(x.shape[0] * x.shape[1]) or logits(self, x))
    monkeypatch.setattr(score, "MAX_LOGITS", 8)
    engine.score_all(pairs_of([(5, (120, 110))]))
    assert sizes == [8]  # traced once, and called for one piece after another


def test_an_empty_continuation_has_no_scores_and_no_pairs_are_no_work(engine):
    assert engine.score([3, 4], []).logprobs.shape == (0,)
    assert engine.score_all([]) == []


@pytest.mark.parametrize(
    ("prompt", "continuation", "message"),
    [
        ([], [1], "the prompt is empty"),
        ([1] * 200, [2] * 58, "need 257 positions; the model has 256"),
        ([1], [48], "ids from 0 to 47; 48 is none of them"),
    ],
)
def test_pairs_that_the_model_cannot_score_are_refused(engine, prompt, continuation, message):
    with pytest.raises(ValueError, match=message):
        engine.score(prompt, continuation)


@pytest.mark.slow
def test_eight_devices_score_as_one(engine):
    pairs = pairs_of([(7, (3, 1, 16)), (40, (9, 30))])
    sharded = make_engine(MeshConfig(data=4, fsdp=1, tensor=2))
    for found, wanted in zip(sharded.score_all(pairs), engine.score_all(pairs), strict=True):
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-5)


def check_against_torch(directory, texts):
    import torch
    from transformers import AutoModelForCausalLM

    engine, chat = load_engine(resolve_source(directory), "float32")
    pairs = [tuple(chat.encode_text(text) for text in pair) for pair in texts]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for (prompt, continuation), found in zip(pairs, engine.score_all(pairs), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + continuation])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.log_softmax(logits, -1).gather(1, torch.tensor(continuation)[:, None])[:, 0]
        np.testing.assert_allclose(found.logprobs, wanted.numpy(), atol=1e-4)


TEXTS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is", " Berlin, which is a city in Germany."),
    ("Two and two are four. Three and three are", " six."),
]


def test_scores_equal_those_of_hugging_face_transformers(tiny_model):
    check_against_torch(tiny_model, TEXTS)


@pytest.mark.slow
def test_a_real_models_scores_equal_those_of_hugging_face_transformers(real_model):
    check_against_torch(real_model, TEXTS)
