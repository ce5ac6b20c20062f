import json

import pytest

from s1jax.grading.equivalence import is_equivalent
from s1jax.grading.extract import extract_answer
from s1jax.grading.grade import grade


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
    assert extract_answer(rf"{trace}<|im_start|>answer \boxed{{2}}<|im_start|>answer \boxed{{4}}") == "4"


EQUAL = [
    ("033", "33"),
    ("1,450,000", "1450000"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    ("$18.00", "18"),
    (r"\$32,\!348", "32348"),
    ("50%", "50"),
    (r"\frac{3}{2}", "1.5"),
    (r"\dfrac{17}{50}", "0.34"),
    (r"\frac43", "4/3"),
    (r"\frac{270}7\text{ degrees}", "270/7"),
    (r"137 \frac{1}{2}", "137.5"),
    ("1 4/5", "9/5"),
    (r"-\frac{6}{4}", r"\frac{-3}{2}"),
    (".35625", "0.35625"),
    (r"3 \times 10^{4}", "30000"),
    (r"90^\circ", "90"),
    (r"864 \mbox{ inches}^2", "864"),
    ("18 dollars.", "18"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(C)}", "C"),
    ("x = 5", "5"),
    (r"11\sqrt2", r"11 \sqrt{2}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    ("(0.5, -13)", r"\left(\frac{1}{2},-13\right)"),
    ("1, -2", "-2,1"),
    (r"\{2,1\}", r"\{1, 2\}"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix}\frac{1}{5}\\-3.6\end{pmatrix}"),
]
UNEQUAL = [
    ("0.333", "1/3"),
    ("50%", "0.5"),
    ("14/5", "1 4/5"),
    ("(1,2)", "(2,1)"),
    ("(3,4]", "(3,4)"),
    ("1,200", "1,2,0,0"),
    ("(1,200)", "1200"),
    ("x=5", "y=5"),
    ("52", "52_8"),
    ("2k", "2"),
    ("x", "X"),
    ("5/0", "5"),
    ("5 or 6", "5"),
    (None, "None"),
    ("", ""),
    ("$", "%"),
    (" " * 2000, " " * 2000),
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_spellings_of_one_answer_are_equal_both_ways(a, b):
    assert is_equivalent(a, b) and is_equivalent(b, a)


@pytest.mark.parametrize(("a", "b"), UNEQUAL)
def test_different_answers_are_unequal_both_ways(a, b):
    assert not is_equivalent(a, b)
    assert a is None or not is_equivalent(b, a)


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


HOSTILE = [
    "9^{9^{9^9}}",
    "1e999999999",
    r"10\times10^{999999999}",
    "__import__('os').system('exit 1')",
    "1" * 1000,
    "1" * 100_000,
    "(" * 3000,
    "{" * 999,
    r"\frac{" * 160,
    r"\text{" * 160,
    r"\{" * 499,
    "1," * 499,
    "1 " * 499,
    ",111" * 249,
    "\\" * 1000,
    "\x00" * 900,
]


def test_hostile_answers_equal_only_themselves():
    """With an unbounded rule, one of these comparisons takes minutes."""
    for answer in HOSTILE:
        assert not is_equivalent(answer, "5") and not is_equivalent("5", answer)
        assert is_equivalent(answer, answer)
        assert not is_equivalent("C)" + answer[:990], "D") and not is_equivalent(answer, "C")


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
