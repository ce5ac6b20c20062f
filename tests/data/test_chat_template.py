"""`chat_template.py`: templates of several families taken apart, and templates that cannot be."""

import pytest

from s1jax.data.chat_template import ChatTemplate
from tests.support.tokenizers import (
    CHATML,
    byte_tokenizer,
    llama2_tokenizer,
    openthinker_tokenizer,
    qwen3_tokenizer,
    qwq_tokenizer,
    r1_tokenizer,
)

FAMILIES = {
    "chatml": (byte_tokenizer, "<|im_end|>\n"),
    "r1": (r1_tokenizer, "<｜end▁of▁sentence｜>"),
    "qwq": (qwq_tokenizer, "<|im_end|>\n"),
    "qwen3": (qwen3_tokenizer, "<|im_end|>\n"),
    "openthinker": (openthinker_tokenizer, "<|im_end|>\n"),
    "llama2": (llama2_tokenizer, " </s>"),
}


@pytest.mark.parametrize("system", ["", "Answer in \\boxed{}.", "<think>"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_segments_of_a_prompt_are_the_template_with_the_texts_marked_as_such(family, system):
    make, end = FAMILIES[family]
    tokenizer = make()
    template = ChatTemplate.of(tokenizer, system)
    segments = template.segments("1 + 1 = s1jax?")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "1 + 1 = s1jax?"})
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "".join(text for text, _ in segments) == whole
    assert [text for text, is_template in segments if not is_template] == [*filter(None, [system]), "1 + 1 = s1jax?"]
    assert template.end == end


def test_a_template_may_strip_what_it_is_given():
    template = ChatTemplate.of(
        byte_tokenizer(template=CHATML.replace("m['content']", "m['content'] | trim")), " be brief "
    )
    assert [text for text, is_template in template.segments(" q\n") if not is_template] == ["be brief", "q"]


RAISING = [
    "{{ raise_exception('the first message must be\\na system message') }}",
    "{% if messages[0].role == 'tool' %}",
    "{{ messages[0].content.missing.field }}",
    "{{ messages[3].content + 1 }}",
    "{{ 1 / 0 }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
]
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, "", "lacks a chat template: use"),
        ("<|im_start|>user<|im_end|>\n<|im_start|>assistant\n", "", "does not write a user's turn"),
        ("{{ messages[0].content }}", "", "does not write an answer"),
        ("{{ messages[-1].content }}", "be brief", "does not write a system prompt before a user's turn"),
        (
            NO_SYSTEM,
            "be brief",
            r"cannot apply its chat template to a system prompt and a user's turn \(.*no system role",
        ),
        *((raising, "", r"cannot apply its chat template to a user's turn \(\w+: .*\): use") for raising in RAISING),
    ],
)
def test_a_template_that_cannot_be_used_is_one_error(template, system, message):
    with pytest.raises(ValueError, match=message) as caught:
        ChatTemplate.of(byte_tokenizer(template=template), system)
    assert "\n" not in str(caught.value)


def test_a_template_that_repeats_the_question_is_refused():
    template = ChatTemplate.of(byte_tokenizer(template=CHATML.replace("m['content']", "m['content'] + m['content']")))
    with pytest.raises(ValueError, match="writes more than the text in its place where it is given 'q'"):
        template.segments("q")
