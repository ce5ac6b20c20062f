"""`letters.py`: which choice a response names."""

import pytest

from s1jax.grading.letters import choice_letter, chosen_letter, extract_letter


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
        (r"**Answer: C**. Check: \boxed{\langle H\rangle \ll \Delta E}", True),
        (r"Answer: B. Or rather \boxed{C}", True),
        (r"\boxed{\textbf{(C)}\ 12}", True),
        ("The correct answer is (C).", True),
        ("the answer is C", True),
        ("C", True),
        ("(C).", True),
        ("Answer: C is correct", True),
        ("The answer is a number", False),
        ("Can it be?", False),
        ("Answer: none. The answer is C", False),
        (r"\boxed{C} or \boxed{D}", False),
        ("I cannot tell.", False),
        ("Answer:", False),
    ],
)
def test_a_choice_is_right_only_by_its_own_letter_which_its_text_may_follow(text, correct):
    assert (extract_letter(text) == "C") is correct


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Answer: A: no. B: yes",
        "Answer: A. Not this, it is B",
        "Answer: A. B. C. D.",
        "I cannot tell.",
        "Answer: 10^-4 eV",
        r"\boxed{x}",
        "Answer: C or D",
        "A cat sat on a mat.",
    ],
)
def test_a_text_without_a_choice_has_no_letter(text):
    assert extract_letter(text) is None


def test_a_gold_answer_is_a_choice_if_it_is_one_capital_letter():
    assert [choice_letter(gold) for gold in ("C", "(C)", r"\text{(C)}", r"\textbf{C}.", "$C$")] == ["C"] * 5
    assert [choice_letter(gold) for gold in ("x", "AB", "C=5", "5", "(1)", "")] == [None] * 6


def test_only_one_letter_is_chosen():
    assert [chosen_letter(text) for text in ("C, D", "C and D", "C) x or D) y", "C - D")] == [None] * 4
