"""`condition.py`: the settings under which a problem is answered."""

import pytest

from s1jax.data.condition import Condition


def test_conditions_are_equal_however_their_int8_is_written():
    assert Condition(5, int8=("weights", "cache", "weights")) == Condition(5, int8=("cache", "weights"))


def test_a_model_that_does_not_think_has_no_wrap_up_so_that_equal_conditions_are_equal_columns():
    assert Condition(0, thinking_format="none") == Condition(0, thinking_format="none", wrap_up="")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_ignore=3_000_000_000), "num_ignore is 3000000000; it must be from 0 to 2147483647"),
        (dict(temperature=float("nan")), "temperature is nan; it must be finite and not negative"),
        (dict(temperature=float("inf")), "temperature is inf; it must be finite"),
        (dict(max_answer_tokens=0), "max_answer_tokens is 0"),
        (dict(top_k=100_000_000_000), "top_k is 100000000000; it must be from 0 to 2147483647"),
        (dict(top_p=float("nan")), "top_p is nan"),
        (dict(min_p=float("inf")), "min_p is inf"),
        (dict(dtype="float16"), "dtype is 'float16': it must be one of bfloat16, float32"),
        (dict(top_k=5), "top_k 5 has no effect at temperature 0: leave it out, or give a temperature above 0"),
        (dict(top_p=0.9), "top_p 0.9 has no effect"),
        (dict(min_p=0.1, temperature=0), "min_p 0.1 has no effect"),
        (dict(method="none"), "method is 'none'"),
        (
            dict(thinking_format="thinking"),
            "thinking_format is 'thinking': it must be auto, s1, think, openthinker, steps, steps_forced, none or",
        ),
        (dict(thinking_format="none"), "max_thinking_tokens is 8; it must be 0 under the thinking format none"),
        (dict(thinking_format="none", min_thinking_tokens=4), "max_thinking_tokens is 8; it must be 0"),
        (dict(thinking_format="none", max_thinking_tokens=0, num_ignore=2), "num_ignore is 2; it must be 0 under"),
        (
            dict(thinking_format="none", max_thinking_tokens=0, method="token_conditional", requested="9"),
            "method is token_conditional: under the thinking format none there is no thinking to control",
        ),
        (
            dict(thinking_format="none", max_thinking_tokens=0, wrap_up="So:"),
            "wrap_up has no effect under the thinking",
        ),
        (dict(wrap_up="{end}{end}"), "wrap_up is '{end}{end}'; it may hold {end} once"),
        (dict(wrap_up="\ud800"), "wrap_up is not valid Unicode"),
        (dict(system_prompt="\ud800"), "system_prompt is not valid Unicode"),
        (dict(prompt_suffix="\ud800"), "prompt_suffix is not valid Unicode"),
        (dict(int8=("weight",)), r"int8 is \('weight',\): it must be a tuple, each item one of weights, cache"),
    ],
)
def test_a_bad_condition_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        Condition(**{"max_thinking_tokens": 8, **changes})
