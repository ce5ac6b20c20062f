"""`thinking_format.py`: names of formats, which one a tokenizer is made for, and which do not fit it."""

import pytest

from s1jax.data.thinking_format import FORMATS, find_format, misfit, recognise

CHATML_PROMPT = "<|im_end|>\n<|im_start|>assistant\n"
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def test_a_pair_of_texts_is_a_format_that_behaves_like_think():
    pair, think = find_format("<reasoning>...</reasoning>"), FORMATS["think"]
    assert (pair.opening, pair.ends, pair.answer) == ("<reasoning>\n", ("</reasoning>",), "</reasoning>")
    assert (pair.around_trace, pair.around_answer) == (think.around_trace, think.around_answer)


def test_a_format_has_one_name():
    assert find_format("<think>...</think>") is find_format("think")


@pytest.mark.parametrize("name", ["", "thinking", "...", "<a>...", "... </a>", "<a>...b...</a>", " ... "])
def test_a_name_that_is_no_format_is_refused(name):
    with pytest.raises(
        ValueError,
        match=r"thinking_format is .*: it must be auto, s1, think, openthinker, steps, steps_forced, none or a pair",
    ):
        find_format(name)


@pytest.mark.parametrize(
    ("prompt", "template", "tokens", "name"),
    [
        ("<｜Assistant｜><think>\n", "", (), "think"),
        (CHATML_PROMPT + "<think>", "", CHATML_TOKENS, "think"),
        (CHATML_PROMPT, "", (*CHATML_TOKENS, "<think>", "</think>"), "think"),
        (CHATML_PROMPT, "in <|begin_of_thought|>", CHATML_TOKENS, "openthinker"),
        (CHATML_PROMPT, "", CHATML_TOKENS, "s1"),
        (CHATML_PROMPT, "", (*CHATML_TOKENS, "<think>"), "s1"),
        (CHATML_PROMPT, "", ("<|im_start|>",), None),
        ("<|im_end|>\n<|im_start|>model\n", "", CHATML_TOKENS, None),
        (" [/INST]", "", ("<s>",), None),
    ],
)
def test_a_format_is_recognised_only_where_it_is_certain(prompt, template, tokens, name):
    assert recognise(prompt, template, tokens) == (name and FORMATS[name])


@pytest.mark.parametrize(
    ("prompt", "rest"),
    [
        ("<a>", "<think>\n"),
        ("<a><think>", "\n"),
        ("<a><think>\n", ""),
        ("<a><think>\n\n", ""),
        ("<think>\nx", "<think>\n"),
    ],
)
def test_what_a_template_has_opened_is_not_opened_again(prompt, rest):
    assert FORMATS["think"].rest_of_opening(prompt) == rest


@pytest.mark.parametrize(
    ("name", "prompt", "tokens", "why"),
    [
        ("s1", CHATML_PROMPT, CHATML_TOKENS, None),
        ("think", " [/INST]", (), None),
        ("s1", " [/INST]", (), r"lacks the token <|im_start|>"),
        ("steps", " [/INST]", (), r"lacks the token <|im_start|>"),
        ("s1", CHATML_PROMPT + "<think>\n", CHATML_TOKENS, "opens the thinking in the format think"),
        ("<a>...</a>", "<think>\n", (), "opens the thinking in the format think"),
        ("<think>...</done>", "<think>\n", (), None),
        ("none", CHATML_PROMPT, CHATML_TOKENS, None),
        ("none", " [/INST]", (), None),
        ("none", "<think>\n", (), "opens the thinking in the format think"),
    ],
)
def test_a_format_fits_where_its_tokens_are_and_nothing_else_is_open(name, prompt, tokens, why):
    found = misfit(find_format(name), prompt, tokens)
    assert found is why or why in found
