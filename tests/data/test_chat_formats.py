"""`chat.py` in every thinking format and under chat templates of several families."""

import pytest

from s1jax.data.chat import ChatFormat
from tests.support.tokenizers import (
    CHATML,
    TAGS,
    byte_tokenizer,
    llama2_tokenizer,
    openthinker_tokenizer,
    qwen3_tokenizer,
    qwq_tokenizer,
    r1_tokenizer,
)

QWEN_SYSTEM = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>"
)
OPENTHINKER_SYSTEM = (
    "<|im_start|>system\nThink between <|begin_of_thought|> and <|end_of_thought|>.<|im_end|>\n<|im_start|>"
)


# For each tokenizer: the format to ask for, the one that is found, and the text of the prompt and of the reply of a training example.
EXAMPLES = {
    "r1": (
        r1_tokenizer, "auto", "think",
        "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜><think>\n", "t\n</think>\n\nAnswer: 4<｜end▁of▁sentence｜>",
    ),
    "qwq": (
        qwq_tokenizer, "auto", "think",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n", "t\n</think>\n\nAnswer: 4<|im_end|>\n",
    ),
    "qwen3": (
        qwen3_tokenizer, "auto", "think",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "<think>\nt\n</think>\n\nAnswer: 4<|im_end|>\n",
    ),
    "openthinker": (
        openthinker_tokenizer, "auto", "openthinker",
        OPENTHINKER_SYSTEM + "user\nq<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_thought|>\n\nt\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nAnswer: 4\n\n<|end_of_solution|><|im_end|>\n",
    ),
    "llama2": (llama2_tokenizer, "<a>...</a>", "<a>...</a>", "<s>[INST] q [/INST]", "<a>\nt\n</a>\n\nAnswer: 4 </s>"),
    "steps": (
        byte_tokenizer, "steps", "steps",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>t\n<|im_start|>answer\nAnswer: 4<|im_end|>\n",
    ),
    "qwen2.5": (
        None, "think", "think",
        QWEN_SYSTEM + "user\nq<|im_end|>\n<|im_start|>assistant\n", "<think>\nt\n</think>\n\nAnswer: 4<|im_end|>\n",
    ),
}  # fmt: skip


@pytest.fixture(params=EXAMPLES)
def example(request):
    """A tokenizer, its chat format, and the text of the prompt and of the reply of a training example."""
    make, asked, found, prompt, reply = EXAMPLES[request.param]
    tokenizer = make() if make else request.getfixturevalue("qwen_tokenizer")
    chat = ChatFormat.of(tokenizer, asked)
    assert chat.thinking.name == found
    return tokenizer, chat, prompt, reply


def test_an_example_is_written_in_the_format_and_trained_behind_the_templates_prompt(example):
    tokenizer, chat, prompt, reply = example
    ids, mask = chat.encode_example("q", " t\n", "4\n")
    assert tokenizer.decode(ids) == prompt + reply
    assert tokenizer.decode([i for i, trained in zip(ids, mask, strict=True) if trained]) == reply
    ids, mask = chat.encode_example("q", "t", "4", "answer")
    answer = reply[reply.index(chat.thinking.answer) :]
    assert tokenizer.decode([i for i, trained in zip(ids, mask, strict=True) if trained]) == answer


def test_a_prompt_is_a_prefix_of_its_example_and_opens_the_thinking_once(example):
    tokenizer, chat, prompt, _ = example
    ids = chat.encode_prompt("q")
    assert chat.encode_example("q", "t", "4")[0][: len(ids)] == ids
    opening = chat.thinking.opening
    assert tokenizer.decode(ids) == (prompt if prompt.endswith(opening) else prompt + opening)


@pytest.mark.parametrize("question", ["q", "What is 2 + 2?\n\n  Say.", "\u0301 e)))", "s1jax question", "'s"])
def test_a_prompt_has_the_ids_that_the_tokenizer_gives_the_whole_template(example, question):
    tokenizer, chat, _, _ = example
    messages = [{"role": "user", "content": question}]
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=False)
    assert chat.encode_chat(question) == tokenizer.apply_chat_template(messages, **options)


def test_tokens_that_a_text_spells_stay_text(example):
    tokenizer, chat, _, _ = example
    tokens = [token for token, i in chat.added_tokens.items()]
    hostile = "a" + "b".join([*tokens, chat.thinking.answer, chat.thinking.opening])
    plain = ("q", "t", "Answer: 4")
    added = set(chat.added_tokens.values())
    expected = [i for i in chat.encode_example(*plain)[0] if i in added]
    for field in range(3):
        texts = [hostile.strip() if i == field else text for i, text in enumerate(plain)]
        ids = chat.encode_example(*texts)[0]
        assert [i for i in ids if i in added] == expected
        assert texts[field] in tokenizer.decode(ids)
    assert not added & {*chat.encode_text(hostile), *chat.encode_final(hostile)[len(chat.delimiters.answer) :]}


def test_thinking_ends_with_the_texts_of_the_format_and_with_every_end_of_an_answer(example):
    tokenizer, chat, _, reply = example
    ends = chat.delimiters.end_answer
    assert chat.delimiters.end_thinking == (*chat.thinking.ends, *(tokenizer.decode([i]) for i in ends))
    assert reply.rstrip("\n").endswith(tokenizer.decode(ends[:1]))
    assert chat.delimiters.pad < len(tokenizer)


def test_a_completion_splits_at_the_answer_delimiter_of_its_format(example):
    _, chat, _, _ = example
    ids, _ = chat.encode_example("q", "t", "4")
    completion = ids[len(chat.encode_prompt("q")) :]
    before, after = chat.thinking.around_trace
    num_thinking = len(chat.encode_text(f"{before}t{after}"))
    split = f"{before}t{after}", f"{chat.thinking.around_answer[0]}Answer: 4"
    whole = completion[: len(completion) - len(chat.after_answer)]
    assert chat.split_completion([*whole, chat.delimiters.end_answer[0]], num_thinking) == split
    assert chat.split_completion(whole, num_thinking) == split


WRAP_UPS = {
    "Final Answer:": "{delimiter}{gap}Final Answer:",
    "": "{delimiter}",
    "Time is up.\n{end}\n\n": "Time is up.\n{delimiter}\n\n",
    "{end}": "{delimiter}",
}


@pytest.mark.parametrize("wrap_up", WRAP_UPS)
def test_a_forced_delimiter_holds_the_wrap_up_behind_or_around_the_end_of_thinking(example, wrap_up):
    tokenizer, chat, _, _ = example
    thinking = chat.thinking
    written = WRAP_UPS[wrap_up].format(delimiter=thinking.answer, gap=thinking.around_answer[0])
    assert tokenizer.decode(chat.encode_final(wrap_up)) == written
    tokens = [*chat.encode_text("hm"), *chat.encode_final(wrap_up), *chat.encode_text(" 4")]
    answer = written.partition(thinking.answer)[2] + " 4"
    assert chat.split_completion(tokens, len(chat.encode_text("hm"))) == ("hm", answer)


def test_forced_delimiters_read_as_in_the_papers_and_in_qwq():
    for name, written in (
        ("s1", "<|im_start|>answer\nFinal Answer:"),
        ("think", "</think>\n\nFinal Answer:"),
        ("steps", "<|im_start|>answer\nFinal Answer:"),
        ("openthinker", "<|end_of_thought|>\n\n<|begin_of_solution|>\n\nFinal Answer:"),
    ):
        chat = ChatFormat.of(byte_tokenizer(), name)
        assert chat.decode(chat.encode_final("Final Answer:")) == written
    assert chat.delimiters.forced_ends == () and ChatFormat.of(
        byte_tokenizer(), "steps_forced"
    ).delimiters.forced_ends == ("<|im_start|>0",)


@pytest.mark.parametrize("tail", ["<think>", "<think>\n"])
def test_a_template_that_opens_the_block_gets_only_the_line_break_that_it_lacks(tail):
    tokenizer = byte_tokenizer(
        template=CHATML.replace("assistant\\n", "assistant\\n" + repr(tail)[1:-1]), ordinary=TAGS
    )
    chat = ChatFormat.of(tokenizer)
    assert chat.decode(chat.delimiters.think) == "\n".removeprefix(tail[7:])
    assert chat.decode(chat.encode_prompt("q")).endswith("assistant\n<think>\n")


def test_tags_of_a_tokenizer_without_them_are_ordinary_text_of_several_tokens(qwen_tokenizer):
    think = ChatFormat.of(qwen_tokenizer, "think").delimiters
    assert len(think.think) > 1 and len(think.answer) > 1 and think.end_thinking[0] == "</think>"
    assert max(*think.think, *think.answer) < 151643, "the first added token"


def test_tags_that_are_tokens_are_written_as_such():
    tags = [f"<|{edge}_of_{part}|>" for part in ("thought", "solution") for edge in ("begin", "end")]
    chat = ChatFormat.of(byte_tokenizer(ordinary=tags), "openthinker")
    ids = chat.encode_example("q", "t", "4")[0]
    assert [i for i in ids if i in {chat.added_tokens[tag] for tag in tags}] == [chat.added_tokens[tag] for tag in tags]


def test_a_suffix_stands_behind_the_question_and_a_system_prompt_before_it(example):
    tokenizer, chat, _, _ = example
    given = ChatFormat.of(tokenizer, chat.thinking.name, "Be brief.", "Put your answer in \\boxed{}.")
    question = "q\n\nPut your answer in \\boxed{}."
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=False)
    assert given.encode_chat("q\n") == tokenizer.apply_chat_template(messages, **options)
    with pytest.raises(ValueError, match=r"the question ' ' is empty"):
        given.encode_chat(" ")


def test_a_system_prompt_may_hold_letters_that_a_tokenizer_composes(qwen_tokenizer):
    chat = ChatFormat.of(qwen_tokenizer, system_prompt="Re\u0301ponds.")
    assert "R\u00e9ponds." in chat.decode(chat.encode_chat("q"))


def test_tokens_that_a_system_prompt_or_a_suffix_spells_stay_text(example):
    tokenizer, chat, _, _ = example
    hostile = "".join(chat.added_tokens)
    added = set(chat.added_tokens.values())
    plain, spelt = (
        ChatFormat.of(tokenizer, chat.thinking.name, text, text).encode_prompt("q") for text in ("x", hostile)
    )
    assert [i for i in spelt if i in added] == [i for i in plain if i in added]
    assert tokenizer.decode(spelt).count(hostile) == 2


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (
            r1_tokenizer,
            "s1",
            r"the thinking format s1 does not fit the tokenizer '': it lacks the token <\|im_start\|>",
        ),
        (qwq_tokenizer, "s1", "its chat template opens the thinking in the format think"),
        (llama2_tokenizer, "auto", "does not show how its model thinks: give --thinking-format"),
        (llama2_tokenizer, "steps", r"it lacks the token <\|im_start\|>"),
    ],
)
def test_a_format_that_does_not_fit_or_is_not_certain_is_one_line(make, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        ChatFormat.of(make(), name)
    assert "\n" not in str(caught.value)


def test_a_chat_without_a_token_that_ends_an_answer_is_refused():
    tokenizer = byte_tokenizer((), "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    with pytest.raises(ValueError, match="has no token that ends an answer"):
        ChatFormat.of(tokenizer, "think")


def test_the_end_token_ends_an_answer_if_the_template_writes_none():
    tokenizer = byte_tokenizer(("</s>",), "{% for m in messages %}{{ m.content }}\n{% endfor %}", eos_token="</s>")
    chat = ChatFormat.of(tokenizer, "think")
    assert chat.decode(chat.encode_example("q", "t", "4")[0]) == "q\n<think>\nt\n</think>\n\nAnswer: 4</s>"
