"""`grade.py`: grades of whole responses, hostile and real ones."""

import json

import pytest

from s1jax.grading.equivalence import is_equivalent
from s1jax.grading.grade import extract_answer, grade


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("Answer: C", True),
        (r"\boxed{(C)}", True),
        (r"\boxed{\text{C) } 10^{-4} eV}", True),
        ("Final Answer: C) 10^-4 eV", True),
        ("Final Answer: **C.** 10^-4 eV", True),
        ("Final Answer: **C. 10^-4 eV**", True),
        ("Answer: The correct answer is (C) both of them", True),
        ("Answer: Option C.", True),
        ("Answer: C: the Diels-Alder product", True),
        ("Answer: B) Compound C", False),
        ("Answer: C) or D)", False),
        ("Answer: c", False),
        (r"\boxed{(c)}", True),
        ("Answer: C, because it has 2 m", True),
        ("Answer: C - 2 m", True),
        ("Answer: 10^-4 eV", False),
        ("Answer: Cold", False),
        ("Answer: CC(=O)O", False),
        ("Answer: C.5", False),
        ("I cannot tell.", False),
        ("Answer:", False),
    ],
)
def test_a_choice_is_right_only_by_its_own_letter_which_its_text_may_follow(text, correct):
    assert grade(text, "C")[1] is correct


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


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_grades_agree_with_the_labels_of_5276_real_responses(shared):
    rows = read(shared / "data" / "gsm8k_graded_responses.jsonl")
    # These models end with "A: 18", ours with "Answer: 18".
    graded = [grade(row["response"].replace("\nA:", "\nAnswer:"), row["gold"])[1] for row in rows]
    assert [row["problem_id"] for row, g in zip(rows, graded, strict=True) if g != row["is_correct"]] == []
    assert sum(graded) == 2001


def test_every_math500_solution_grades_as_its_own_gold(shared):
    rows = read(shared / "data" / "math500.jsonl")
    assert [row["answer"] for row in rows if not grade(row["solution"], row["answer"])[1]] == []


def test_a_math500_gold_equals_no_other_gold_of_its_neighbourhood(shared):
    golds = sorted({row["answer"].replace(" ", "") for row in read(shared / "data" / "math500.jsonl")})
    equal = {(a, b) for i, a in enumerate(golds) for b in golds[i + 1 : i + 6] if is_equivalent(a, b)}
    units = {
        ("15", r"15\mbox{cm}^2"),
        ("30", r"30^\circ"),
        ("36", r"36^\circ"),
        ("90", r"90^\circ"),
        ("120", r"120^\circ"),
    }
    assert equal == units | {(r"10,\!080", "10080")}


@pytest.mark.parametrize("name", ["aime24", "aime25", "aime_1983_2023", "gsm8k_test"])
def test_integer_golds_equal_themselves_boxed_and_no_neighbour(shared, name):
    for row in read(shared / "data" / f"{name}.jsonl"):
        gold = str(row["answer"])
        assert grade(rf"so \boxed{{{gold}}}.", gold) == (gold, True)
        assert not is_equivalent(str(int(gold.replace(",", "")) + 1), gold)
