"""`control_methods.py`: what each control method asks for in the prompt, which settings it accepts, and the labels of training rows."""

import pytest

from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition
from s1jax.data.control_methods import METHODS, control_prompt, count_steps, label_of, split_steps
from s1jax.decode.questions import request_of
from tests.support.tokenizers import byte_tokenizer

PROMPTS = {
    ("token_conditional", "2048"): "Think for up to 2048 tokens.",
    ("step_conditional", "64"): "Think for up to 64 steps.",
    ("class_conditional", "short"): (
        "Answer after a short amount of thinking. Do not spend excessive time double-checking your work."
    ),
    ("class_conditional", "long"): (
        "Answer after a long amount of thinking. If you feel like you are finished early, spend the extra time trying to double-check "
        "your work until you are absolutely sure that you have the correct answer."
    ),
}


@pytest.mark.parametrize(("method", "requested"), PROMPTS)
@pytest.mark.parametrize("forced", ["", "_forced"])
def test_the_prompt_asks_for_the_amount_behind_the_question(method, requested, forced):
    budget = 2048 if forced else 9
    condition = Condition(budget, method=method + forced, requested=requested)
    chat_format = ChatFormat.of(byte_tokenizer(), condition.thinking_format)
    request = request_of(chat_format, "What is 2 + 2?\n", condition)
    text = chat_format.decode(request.prompt)
    assert f"What is 2 + 2?\n\n{PROMPTS[method, requested]}<|im_end|>" in text


def test_budget_forcing_and_rejection_sampling_ask_for_nothing():
    assert control_prompt("budget_forcing", "") == control_prompt("rejection_sampling", "") == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(method="token_conditional"), "requested is '': token_conditional needs a number of tokens, such as 64"),
        (dict(method="token_conditional", requested="0"), "requested is '0'"),
        (dict(method="token_conditional", requested="016"), "requested is '016'"),
        (
            dict(method="step_conditional", requested="-3"),
            "requested is '-3': step_conditional needs a number of steps",
        ),
        (dict(method="step_conditional", requested="٣"), "needs a number of steps"),
        (dict(method="step_conditional", requested="9" * 5000), "needs a number of steps"),
        (dict(method="class_conditional", requested="16"), "class_conditional needs short or long"),
        (dict(requested="16"), "requested is '16': budget_forcing asks the model for nothing"),
        (dict(method="class_conditional", requested="long", num_ignore=1), "have no effect under class_conditional"),
        (dict(method="token_conditional", requested="8", min_thinking_tokens=1), "have no effect under token_cond"),
        (dict(method="token_conditional_forced", requested="9"), "max_thinking_tokens is 8: token_conditional_forced"),
        (dict(method="step_conditional", requested="9", thinking_format="s1"), "step_conditional needs steps"),
        (dict(method="step_conditional_forced", requested="9", thinking_format="steps"), "needs steps_forced"),
        (dict(max_tries=2), "max_tries 2 has no effect under budget_forcing"),
        (dict(method="rejection_sampling", max_tries=9), "rejection_sampling at temperature 0"),
        (dict(method="rejection_sampling", temperature=1.0), "rejection_sampling needs max_tries above 1"),
        (dict(method="rejection_sampling", temperature=1.0, max_tries=10**6), "max_tries is 1000000"),
    ],
)
def test_a_setting_that_does_not_belong_to_the_method_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Condition(8, **settings)


def test_every_method_has_settings_that_are_accepted():
    for method in METHODS:
        requested = {"class": "long", "budget": "", "rejection": ""}.get(method.partition("_")[0], "8")
        tries = dict(max_tries=2, temperature=1.0) if method == "rejection_sampling" else {}
        condition = Condition(8, method=method, requested=requested, **tries)
        steps = {"step_conditional": "steps", "step_conditional_forced": "steps_forced"}
        assert condition.thinking_format == steps.get(method, "auto")


def test_steps_are_counted_by_their_headers():
    assert count_steps("") == count_steps("I think there are 3 steps left") == 0
    assert count_steps("16 steps left\nAdd.\n<|im_start|>15 steps left\nDone: 2 steps left of me.") == 2
    assert count_steps("2 steps left\na<|im_start|>1 step left\nb") == 2


def test_a_label_is_the_smallest_power_of_two_that_is_not_below():
    powers = [2**k for k in range(24)]
    for amount in range(1, 5000):
        assert int(label_of(amount)) == min(power for power in powers if power >= amount)
    assert [label_of(2**20 + change) for change in (-1, 0, 1)] == ["1048576", "1048576", "2097152"]


def test_steps_lie_between_blank_lines():
    assert split_steps("one") == ["one"]
    assert split_steps("\n\none\nstill one\n\n  two\n\n\n\nthree \n \t\nfour\n\n") == [
        "one\nstill one", "  two", "three ", "four"
    ]  # fmt: skip
    assert split_steps("one\r\n\r\ntwo") == ["one\r", "two"]
