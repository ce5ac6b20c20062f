"""`loaded.py`: a model in an engine, and the requests that fit it."""

import pytest

from s1jax.checkpoint.source import resolve_source
from s1jax.decode.engine import load_engine
from tests.support.decoding import changed, make_request


@pytest.mark.parametrize("num_rows", [0, -1])
def test_an_engine_without_rows_is_refused(tiny_model, num_rows):
    loaded, _ = load_engine(resolve_source(tiny_model), "float32")
    with pytest.raises(ValueError, match=f"num_rows is {num_rows}"):
        loaded.decode([make_request(prompt=(1,))], num_rows=num_rows)


def test_a_request_past_the_context_names_what_to_lower(tiny_model):
    loaded, _ = load_engine(resolve_source(tiny_model), "float32")
    fitting = make_request(prompt=(1,), max_thinking_tokens=400, max_answer_tokens=8)
    spare = 512 - 1 - loaded.model.num_new_tokens(fitting)
    loaded.check(changed(fitting, max_thinking_tokens=400 + spare))
    message = "has 512, its context length: lower max_thinking_tokens or max_answer_tokens, by 1 together"
    with pytest.raises(ValueError, match=message):
        loaded.check(changed(fitting, max_thinking_tokens=401 + spare))
