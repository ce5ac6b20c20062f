"""`request.py`: what a request may ask."""

import pytest

from tests.support.decoding import make_request


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_thinking_tokens=-1), "max_thinking_tokens is -1"),
        (dict(num_ignore=-2), "num_ignore is -2"),
        (dict(max_thinking_tokens=3, min_thinking_tokens=4), "min_thinking_tokens 4 is above"),
        (dict(max_answer_tokens=0), "max_answer_tokens is 0"),
        (dict(top_p=0.0), "top_p is 0.0"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(prompt=()), "prompt is empty"),
        (dict(final_ids=()), "final_ids are empty"),
        (dict(num_ignore=1, ignore_text="Wait"), r"ignore_ids \(\) are not the ids of .* 'Wait'"),
        (dict(num_ignore=1, ignore_text="", ignore_ids=(7,)), r"ignore_ids \(7,\) are not the ids of .* ''"),
    ],
)
def test_a_bad_request_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make_request(**{"prompt": (1,), **changes})


@pytest.mark.parametrize("name", ["max_thinking_tokens", "num_ignore", "max_answer_tokens", "top_k", "seed", "sample"])
def test_no_integer_of_a_request_is_larger_than_the_devices(name):
    with pytest.raises(ValueError, match=f"{name} is 2147483648; it must be from . to 2147483647"):
        make_request(**{"prompt": (1,), name: 2**31})
