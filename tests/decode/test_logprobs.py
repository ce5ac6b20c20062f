"""`logprobs.py`: what is recorded of a token, against sorted values, and against Hugging Face torch."""

import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint.source import resolve_source
from s1jax.data.condition import Condition
from s1jax.decode import logprobs
from s1jax.decode.ends import Ends
from s1jax.decode.engine import load_engine
from s1jax.decode.questions import request_of


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("size", [20, 64, 65, 1279, 1281, 5000])
def test_the_largest_values_are_those_of_a_sort_with_equal_values_too(size, k, rng):
    for x in (rng.normal(size=(5, size)), rng.integers(0, 4, (5, size)), np.sort(rng.normal(size=(2, size)))[:, ::-1]):
        x = x.astype(np.float32)
        x[0, : size // 2] = -1e30
        np.testing.assert_array_equal(logprobs.largest_values(jnp.asarray(x), k), -np.sort(-x)[:, :k])


@pytest.mark.parametrize(("num_exist", "size"), [(7, 48), (43, 48), (20, 20), (3000, 3100)])
def test_ids_that_the_tokenizer_lacks_count_nowhere(num_exist, size, rng):
    logits = rng.normal(scale=4, size=(3, size)).astype(np.float32)
    logits[:, num_exist:] = 50
    tables = jnp.zeros((2, 2, size), jnp.int16)
    ends = Ends(*tables, jnp.ones(size, jnp.int32), completing=jnp.array([[3, -1], [2, 5]]))
    token, match = np.array([1, 6, 0]), np.array([0, 1, 1])
    found = logprobs.of_step(
        jnp.asarray(logits), jnp.arange(size) < num_exist, ends, jnp.asarray(match), jnp.asarray(token)
    )
    exact = logits[:, :num_exist].astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found[0], exact[range(3), token], atol=1e-5)
    np.testing.assert_allclose(found[1], [exact[0, 3], *np.logaddexp(exact[1:, 2], exact[1:, 5])], atol=1e-5)
    np.testing.assert_allclose(found[2], np.sort(exact)[:, -20:].mean(axis=1), atol=1e-5)


@pytest.mark.integration
def test_confidences_are_those_of_hugging_face_torch(tiny_model):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    engine, chat = load_engine(resolve_source(tiny_model), "float32")
    condition = Condition(30, num_ignore=2, max_answer_tokens=6, dtype="float32")
    requests = [request_of(chat, f"{i} + 1?", condition) for i in range(3)]
    hf = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    exists = np.asarray(engine.model.vocabulary.exists)
    for request, completion in zip(requests, engine.decode(requests, scores=True), strict=True):
        with torch.no_grad():
            logits = hf(torch.tensor([[*request.prompt, *completion.tokens[:-1]]])).logits[0]
        scores = torch.log_softmax(logits[len(request.prompt) - 1 :, torch.tensor(exists)], dim=-1)
        means = scores.topk(20).values.mean(dim=-1).numpy()
        np.testing.assert_allclose(completion.confidences, means, atol=1e-4)
        assert len(completion.confidences) == len(completion.tokens) > 30
