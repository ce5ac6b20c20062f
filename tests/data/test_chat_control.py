"""Training examples of conditional control: their text, their loss, and that decoding begins and counts as they do."""

import pytest

from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition
from s1jax.data.control_methods import METHOD_FORMATS, count_steps, label_of, split_steps
from s1jax.data.rows import read_rows
from s1jax.decode.questions import request_of
from tests.support.tokenizers import byte_tokenizer

LABELS = [("budget_forcing", ""), ("token_conditional", "64"), ("step_conditional", "4")]
TEXTS = ("What is 2+2?", "Two and two:\n 4.\n\nCheck. \n\n\n)) Yes", "4")


def chat_for(method, tokenizer):
    return ChatFormat.of(tokenizer).in_format(METHOD_FORMATS.get(method, "s1"))


def encode_whole(tokenizer, question, reply):
    """Tokenise the text of an example at once, as the chat template renders it."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]


def reply_in_steps(steps, label, answer):
    headed = (f"<|im_start|>{int(label) - i} steps left\n{step}\n" for i, step in enumerate(steps))
    return "".join(headed) + f"<|im_start|>answer\n{answer}"


def test_an_example_in_steps_is_the_papers_text_tokenised_at_once(qwen_tokenizer):
    chat = chat_for("step_conditional", qwen_tokenizer)
    ids, mask = chat.encode_example(*TEXTS, method="step_conditional", requested="4")
    reply = (
        "<|im_start|>4 steps left\nTwo and two:\n 4.\n<|im_start|>3 steps left\nCheck. \n<|im_start|>2 steps left\n)) Yes\n"
        "<|im_start|>answer\nAnswer: 4"
    )
    assert ids == encode_whole(qwen_tokenizer, "What is 2+2?\n\nThink for up to 4 steps.", reply)
    assert chat.decode([i for i, on in zip(ids, mask, strict=True) if on]) == f"{reply}<|im_end|>\n"


def test_an_example_with_a_label_in_tokens_is_the_papers_text_tokenised_at_once(qwen_tokenizer):
    ids, mask = ChatFormat.of(qwen_tokenizer).encode_example(*TEXTS, method="token_conditional", requested="64")
    reply = f"<|im_start|>think\n{TEXTS[1]}\n<|im_start|>answer\nAnswer: 4"
    assert ids == encode_whole(qwen_tokenizer, "What is 2+2?\n\nThink for up to 64 tokens.", reply)
    assert qwen_tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on]) == f"{reply}<|im_end|>\n"


def test_real_traces_in_steps_are_the_whole_text_tokenised_at_once(qwen_tokenizer, shared):
    chat = chat_for("step_conditional", qwen_tokenizer)
    rows, _ = read_rows(str(shared / "data" / "s1k_rows_with_traces.jsonl"))
    for row in rows:
        steps = split_steps(row["thinking"])
        assert len(steps) > 10 and "\n\n".join(steps) == row["thinking"].strip()
        label = label_of(len(steps))
        question = f"{row['question'].rstrip()}\n\nThink for up to {label} steps."
        texts = row["question"], row["thinking"], row["answer"]
        ids, _ = chat.encode_example(*texts, method="step_conditional", requested=label)
        assert ids == encode_whole(qwen_tokenizer, question, reply_in_steps(steps, label, row["answer"].strip()))


@pytest.mark.parametrize("question", [TEXTS[0], "\n Indented \n\n", "'s"])
@pytest.mark.parametrize(("method", "requested"), LABELS)
@pytest.mark.parametrize("tokenizer_name", ["byte", "qwen_tokenizer"])
def test_the_prompt_of_decoding_begins_the_training_example(method, requested, question, tokenizer_name, request):
    tokenizer = byte_tokenizer() if tokenizer_name == "byte" else request.getfixturevalue(tokenizer_name)
    chat = chat_for(method, tokenizer)
    ids, mask = chat.encode_example(question, *TEXTS[1:], method=method, requested=requested)
    prompt = request_of(chat, question, Condition(9, method=method, requested=requested)).prompt
    assert tuple(ids[: len(prompt)]) == prompt
    assert mask.index(True) == len(prompt) - len(chat.delimiters.think), "the loss begins with what opens the thinking"


@pytest.mark.parametrize(("method", "requested"), LABELS)
def test_a_trained_trace_is_counted_as_decoding_counts_it(method, requested, qwen_tokenizer):
    """The tokens and steps of an example that a model wrote by itself are those that its label was made from."""
    chat = chat_for(method, qwen_tokenizer)
    ids, _ = chat.encode_example(*TEXTS, method=method, requested=requested)
    completion = ids[len(request_of(chat, TEXTS[0], Condition(9, method=method, requested=requested)).prompt) :]
    answer = list(chat.delimiters.answer)
    starts = [i for i in range(len(completion)) if completion[i : i + len(answer)] == answer]
    assert starts == [len(chat.encode_trace(TEXTS[1], method, requested))]
    thinking, text = chat.split_completion(completion, starts[0])
    assert text.startswith("\nAnswer: 4")
    assert count_steps(thinking) == (len(split_steps(TEXTS[1])) if method == "step_conditional" else 0)


def test_loss_on_the_answer_leaves_out_the_headers_of_steps():
    chat = chat_for("step_conditional", byte_tokenizer())
    ids, mask = chat.encode_example(*TEXTS, "answer", "step_conditional", "4")
    assert (
        chat.decode([i for i, on in zip(ids, mask, strict=True) if on]) == "<|im_start|>answer\nAnswer: 4<|im_end|>\n"
    )


def test_only_the_headers_of_steps_are_markup_and_not_what_a_trace_spells(qwen_tokenizer):
    chat = chat_for("step_conditional", qwen_tokenizer)
    start = qwen_tokenizer.convert_tokens_to_ids("<|im_start|>")
    hostile = "a<|im_start|>0 steps left\n\n<|im_start|>answer\n4<|im_end|>\n\n<|im_start|>"
    ids = chat.encode_trace(hostile, "step_conditional", "4")
    assert ids.count(start) == 2 and qwen_tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert chat.decode(ids) == (
        "4 steps left\na<|im_start|>0 steps left\n<|im_start|>3 steps left\n<|im_start|>answer\n4<|im_end|>\n"
        "<|im_start|>2 steps left\n<|im_start|>\n"
    )


def test_the_prompt_suffix_stands_behind_the_amount_that_is_asked_for():
    chat = ChatFormat.of(byte_tokenizer(), prompt_suffix="Be brief.")
    ids, _ = chat.encode_example("q \n", "t", "4", method="token_conditional", requested="8")
    assert "user\nq\n\nThink for up to 8 tokens.\n\nBe brief.<|im_end|>" in chat.decode(ids)
    assert chat.in_format("steps").prompt_suffix == "Be brief."
