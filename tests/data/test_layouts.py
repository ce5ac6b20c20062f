"""`layouts.py`: question, trace and answer of a row in each layout."""

import pytest

from s1jax.data.layouts import find_parts, find_pool_parts

R1 = "<think>\nt\n</think>\n\na"
SKY = "<|begin_of_thought|>\n\nt\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\na\n\n<|end_of_solution|>"


def turns(*texts, keys=("role", "content"), names=("user", "assistant")):
    return [dict(zip(keys, (names[i % 2], text), strict=True)) for i, text in enumerate(texts)]


SHAREGPT = dict(keys=("from", "value"), names=("human", "gpt"))
SYSTEM = {"role": "system", "content": "s"}
FITS = {
    "own": {"question": "q", "thinking": "t", "answer": "a"},
    "own, problem": {"problem": "q", "thinking": "t", "answer": "a"},
    "own, tags": {"question": "q", "thinking": "<think>\nt\n</think>", "answer": "<answer>a</answer>"},
    "own, last tag": {"question": "q", "thinking": "t</think>\n", "answer": "a"},
    "lines": {"question": "q", "thinking_trajectories": ["t"], "attempt": "a"},
    "messages": {"messages": turns("q", R1)},
    "messages, no first tag": {"messages": turns("q", R1.removeprefix("<think>"))},
    "messages, parts": {"messages": turns([{"type": "text", "text": "q"}], [{"type": "text", "text": R1}])},
    "messages, field": {"messages": [*turns("q"), {"role": "assistant", "content": "a", "reasoning_content": "t"}]},
    "messages, nulls": {
        "messages": [{**turn, "reasoning_content": None, "tool_calls": None} for turn in turns("q", R1)]
    },
    "sharegpt": {"conversations": turns("q", SKY, **SHAREGPT)},
    "messages beside nulls": {"question": None, "thinking": None, "answer": None, "messages": turns("q", R1)},
    "prompt": {"prompt": "q", "completion": R1},
    "null trace": {"question": "q", "thinking": None, "answer": R1},
    "prompt, turns": {"prompt": turns("q"), "completion": [{"role": "assistant", "content": R1}]},
    "alpaca": {"instruction": "q", "input": "", "output": R1},
    "answer with tags": {"question": "q", "answer": SKY, "solution": "no"},
}


@pytest.mark.parametrize("name", FITS)
def test_each_layout_gives_question_trace_and_answer(name):
    assert find_parts(FITS[name]) == ("q", "t", "a", False)


@pytest.mark.parametrize("trace", ["Write <think> first.", "</think> ends it, so I write </think>: done", "<b> a </b>"])
def test_a_tag_within_a_trace_is_text(trace):
    assert find_parts({"question": "q", "thinking": trace, "answer": "a"}).thinking == trace
    assert find_parts({"question": "q", "thinking": f"<think>\n{trace}\n</think>", "answer": "a"}).thinking == trace


def test_system_prompts_are_noticed_and_an_input_belongs_to_its_instruction():
    assert find_parts({"messages": [SYSTEM, *turns("q", R1)]}).has_system_prompt
    assert not find_parts({"messages": [SYSTEM | {"content": ""}, *turns("q", R1)]}).has_system_prompt
    assert find_parts({"system": "s", "conversations": turns("q", SKY, **SHAREGPT)}).has_system_prompt
    assert find_parts({"instruction": "q", "input": "i", "output": R1}).question == "q\n\ni"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "all"}, "no trace is found in the columns text "),
        ({"question": "q", "answer": "a"}, "no trace is found in the columns question, answer "),
        ({"chosen": R1} | {f"c{i}": 1 for i in range(99)}, r"in the columns chosen, c0, .*\.\.\.95, "),
        ({"messages": R1}, "messages is not a list of turns"),
        ({"messages": turns("q", R1, "q", R1)}, "not one question and its answer: it has 2 x user, 2 x assistant"),
        ({"messages": turns("q")}, "not one question and its answer: it has 1 x user"),
        ({"messages": [*turns("q", R1), {"role": "tool", "content": "5"}]}, "1 x assistant, 1 x other"),
        ({"messages": turns("q", "a")}, "messages has no trace before the answer"),
        ({"messages": turns(" ", R1)}, "the question in messages is empty"),
        ({"messages": turns(5, R1)}, "the question in messages is not text but a number"),
        ({"messages": turns([{"type": "image"}], R1)}, "messages has a part that is not text"),
        ({"messages": [*turns("q"), *({**turn, "tool_calls": [1]} for turn in turns("x", R1)[1:])]}, "messages has tool_calls"),
        ({"messages": turns("q", "<think>t")}, "messages has a trace that is not closed"),
        ({"messages": turns("q", f"Well. {R1}")}, "messages has text before its trace"),
        ({"messages": turns("q", R1 + R1)}, "messages has several traces"),
        ({"messages": turns("q", "<think> </think>a")}, "the trace in messages is empty"),
        ({"messages": turns("q", "<think>t</think>\n")}, "the answer in messages is empty"),
        ({"messages": turns("q", SKY.removesuffix("<|end_of_solution|>"))}, r"a tag that does not match: <\|begin_of_sol"),
        ({"prompt": "q", "completion": "<think>t</thinking>a"}, "completion has several traces, or tags that do not match"),
        ({"question": "q", "thinking": "<think>t", "answer": "a"}, "thinking has a trace that is not closed"),
        ({"question": "q", "thinking": "<think>t</think>u", "answer": "a"}, "thinking has text after its trace"),
        ({"question": "q", "thinking": "<think></think>", "answer": "a"}, "thinking is empty"),
        ({"question": "q", "thinking": "t", "answer": R1}, "answer has a tag that does not match: <think>"),
        ({"question": 5, "thinking": "t", "answer": "a"}, "question is not text but a number"),
        ({"question": "q", "thinking": "t", "answer": "a", "options": ["x", "y"]}, "column options would be left out"),
        ({"messages": turns("q", R1), "context": "c"}, "column context would be left out"),
    ],
)  # fmt: skip
def test_a_row_whose_parts_are_not_certain_has_a_reason(row, reason):
    with pytest.raises(ValueError, match=reason):
        find_parts(row)


POOL = {
    "question alone": ({"question": "q"}, ("", "", "")),
    "turns, question alone": ({"messages": turns("q")}, ("", "", "")),
    "turns, no trace": ({"messages": turns("q", "r")}, ("", "", "r")),
    "sharegpt, no trace": ({"conversations": turns("q", "r", **SHAREGPT)}, ("", "", "r")),
    "turns beside columns": ({"problem": "q", "solution": "r", "messages": turns("no", "no")}, ("", "", "r")),
    "turns beside a reference": ({"messages": turns("q", "no"), "answer": 5}, ("", "", "5")),
    "prompt of turns": ({"prompt": turns("q"), "answer": "r"}, ("", "", "r")),
    "prompt and completion of turns": (
        {"prompt": turns("q"), "completion": [{"role": "assistant", "content": "r"}]},
        ("", "", "r"),
    ),
    "prompt": ({"prompt": "q", "completion": "r"}, ("", "", "r")),
    "alpaca": ({"instruction": "q", "input": "", "output": "r"}, ("", "", "r")),
    "gsm8k": ({"question": "q", "answer": "1 + 1\n#### 2"}, ("", "", "1 + 1\n#### 2")),
    "aime": ({"Problem": "q", "Answer": 7}, ("", "", "7")),
    "solution before answer": ({"problem": "q", "answer": "4", "solution": "r"}, ("", "", "r")),
    "reference before solution": ({"question": "q", "solution": "s", "reference": "r"}, ("", "", "r")),
    "missing trace": ({"question": "q", "thinking": None, "answer": "r"}, ("", "", "r")),
    "empty trace": ({"question": "q", "thinking": " ", "answer": "a", "solution": "r"}, ("", "", "r")),
    "empty trace, tags": ({"question": "q", "thinking": "", "answer": R1, "reference": "r"}, ("t", "a", "r")),
    "missing answer": (
        {"question": "q", "thinking": "<think>t</think>", "answer": None, "solution": "r"},
        ("t", "", "r"),
    ),
    "whole": ({"question": "q", "thinking": "t", "answer": "a", "solution": 4}, ("t", "a", "4")),
    "turns with a trace": ({"messages": turns("q", R1), "solution": "r"}, ("t", "a", "r")),
    "turns with a field": (
        {"messages": [*turns("q"), {"role": "assistant", "content": "a", "reasoning_content": "t"}]},
        ("t", "a", ""),
    ),
    "solution with a trace": ({"question": "q", "solution": R1}, ("t", "a", "")),
}


@pytest.mark.parametrize("name", POOL)
def test_a_row_of_a_pool_may_lack_trace_and_answer_and_then_the_answer_is_the_reference(name):
    row, (thinking, answer, reference) = POOL[name]
    assert find_pool_parts(row) == ("q", thinking, answer, reference, False)


@pytest.mark.parametrize("name", FITS)
def test_a_training_row_is_a_row_of_a_pool(name):
    reference = FITS[name].get("solution", "")
    assert find_pool_parts(FITS[name]) == ("q", "t", "a", reference, False)


def test_system_prompts_of_a_pool_are_noticed_and_an_input_belongs_to_its_instruction():
    for row in (
        {"messages": [SYSTEM, *turns("q")]},
        {"system": "s", "question": "q"},
        {"system": "s", "messages": turns("q", R1)},
    ):
        assert find_pool_parts(row).has_system_prompt
    assert not find_pool_parts({"messages": [SYSTEM | {"content": ""}, *turns("q", "r")]}).has_system_prompt
    assert find_pool_parts({"instruction": "q", "input": "i", "output": "r"}).question == "q\n\ni"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "a"}, "no question is found: the columns are answer"),
        ({"prompt": None}, "prompt is empty"),
        ({"question": "", "messages": turns("q", "r", "q")}, "messages is not one question and its answer: it has 2 x user"),
        ({"messages": "q"}, "messages is not a list of turns"),
        ({"messages": turns("", "r")}, "the question in messages is empty"),
        ({"messages": turns("q", "<think>t")}, "messages has a trace that is not closed"),
        ({"messages": [{"role": "assistant", "content": "r"}]}, "messages is not one question and its answer: it has 1 x assistant"),
        ({"question": "q", "thinking": 5}, "thinking is not text but a number"),
        ({"question": "q", "thinking": 5, "answer": "a"}, "thinking is not text but a number"),
        ({"question": "q", "answer": ["a"]}, "answer is not text but a list"),
        ({"question": "q", "thinking": "t", "answer": "a", "solution": True}, "solution is not text but a boolean"),
        ({"question": "q", "answer": "B", "options": ["x", "y"]}, "column options would be left out"),
        ({"messages": turns("q", "r"), "context": "c"}, "column context would be left out"),
        ({"question": "q", "input": "i"}, "column input would be left out"),
    ],
)  # fmt: skip
def test_a_row_of_a_pool_whose_parts_are_not_certain_has_a_reason(row, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        find_pool_parts(row)
