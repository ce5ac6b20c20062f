"""`extract.py`: which part of a response is its answer."""

import random
import time

import pytest

from s1jax.grading.extract import extract_answer
from s1jax.grading.letters import extract_letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\left\{ x \right.} or }", r"\left\{ x \right."),
        (r"first \boxed{7}, then cut off in \boxed{\frac{1}{", "7"),
        (r"\boxed{5} and nothing in \boxed{}", "5"),
        (r"\boxed{x} Answer: 9", "x"),
        ("Answer: 1\nFinal Answer: 42\nbecause", "42"),
        ("**Final Answer:**\n\n**42**", "42"),
        ("Answer: The final answer is 12.5", "12.5"),
        ("**Answer**: 8", "8"),
        ("Final answer: 8", "8"),
        ("Final Answer: So, the final answer is $8$. I hope it is correct.", "$8$."),
        ("Final Answer: The final answer is $8$. I hope it is correct. [Note: I checked it.]", "$8$."),
        ("Final Answer: The correct option is B.", "B."),
        ("Final Answer:\n\\[\n64\n\\]", "64"),
        ("Answer: $$\n64\n$$", "64"),
        (r"first \boxed{1}, then $\boxed 12$", "12"),
        (r"\boxed{1}, not \boxed", "1"),
        (r"\boxed{(2,2)} \quad \text{and} \quad \boxed{(6,2)}", "(2,2), (6,2)"),
        (r"$\boxed{2}$, $\boxed{3}$ and $\boxed{2}$", "2, 3"),
        (r"\boxed{2} is wrong, so \boxed{3}", "3"),
        (r"\boxed{2} \boxed{3}", "3"),
        (r"\framebox{49}", "49"),
        ("2 + 2 = 4\nA: 4", "4"),
        ("2 + 2 = 4\n#### 4\n", "4"),
        ("A: 4\nno more", None),
        ("it is 42", None),
        ("Answer:", None),
        ("", None),
    ],
)
def test_the_last_box_else_the_line_after_the_last_answer_is_extracted(text, answer):
    assert extract_answer(text) == answer


def test_only_text_after_the_last_answer_delimiter_and_before_the_end_counts():
    trace = r"I guess \boxed{1}. Answer: 1"
    assert extract_answer(f"{trace}\n<|im_start|>answer\nNo idea.<|im_end|>") is None
    assert extract_answer(f"{trace}\n<|im_start|>answer\nFinal Answer: 2<|im_end|>\nAnswer: 3") == "2"
    assert extract_answer(f"{trace}\n<|im_start|>answer\nFinal Answer: 2\n<|im_start|>user\nAnswer: 3") == "2"
    assert extract_answer(rf"{trace}<|im_start|>answer \boxed{{2}}<|im_start|>answer \boxed{{4}}") == "4"


@pytest.mark.parametrize("delimiter", ["<|im_start|>answer", "</think>", "<|end_of_thought|>"])
def test_the_last_delimiter_of_any_thinking_format_begins_the_answer(delimiter):
    assert extract_answer(f"Answer: 1{delimiter}no idea") is None
    assert extract_answer(f"</think>Answer: 1{delimiter}\nAnswer: 2") == "2"


def test_hostile_text_is_read_to_its_end():
    """With an extraction of quadratic time, this takes minutes."""
    parts = [
        r"\boxed{",
        r"\boxed{1}",
        "\\",
        r"\boxed   ",
        "{",
        "Answer:",
        "* ",
        r"\boxed{1},",
        " ",
        "<|im_start|>answer",
        "<|im_end|>",
    ]
    for part in parts:
        extract_answer("Answer:" + part * 20_000)
        extract_answer(r"\boxed" + part * 20_000 + "}")
    for text in ("Answer: the", "Answer: so", "Answer: the answer is", "Answer: the final", "Final answer: $$"):
        extract_answer(text + " " * 1_000_000 + "x")
    extract_answer(r"\boxed{" * 100_000 + "1" + "}" * 100_000)


PIECES = (
    " ", "\n", "{", "}", "$", "$$", "\\boxed{", "\\boxed", "\\fbox{", "\\", "Answer:", "The answer is", "**", "5", ",", "and", "</think>",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_random_texts_of_up_to_a_megabyte_are_read_to_their_end(seed):
    """A pattern that reads text twice would take hours here. `pytest -s` shows the slowest of the long texts."""
    rng = random.Random(seed)
    slowest = (0.0, "")
    for _ in range(1000):
        length = int(10 ** rng.uniform(0, 6))
        some = rng.sample(PIECES, rng.randint(1, 4))
        period = "".join(rng.choices(some, k=rng.randint(1, 6)))
        start, end = "".join(rng.choices(some, k=rng.randint(0, 50))), rng.choice(["", "x", "}", "7"])
        text = start + period * (length // len(period)) + end
        started = time.perf_counter()
        for read in (extract_answer, extract_letter):
            assert len(read(text) or "") <= len(text)
        if len(text) > 10_000:
            slowest = max(slowest, ((time.perf_counter() - started) / len(text), text[:60]))
    print(f"seed {seed}: at most {slowest[0] * 1e6:.2f} µs per character, in {slowest[1]!r}...")
