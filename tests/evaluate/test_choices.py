"""`choices.py`: multiple-choice problems."""

import math

import pytest

from s1jax.evaluate.choices import find_choices

PLANETS = ["Mars", "Jupiter", "Venus"]
BELOW = "Which?\n\nA) Mars\nB) Jupiter\nC) Venus"


@pytest.mark.parametrize(
    "row",
    [
        {"choices": PLANETS, "answer": 1},
        {"choices": PLANETS, "answer": 1.0},
        {"options": PLANETS, "answer": "B"},
        {"options": PLANETS, "answer": "(b)"},
        {"options": PLANETS, "answer": "Jupiter"},
        {"options": PLANETS, "answer": "B) Jupiter"},
        {"options": PLANETS, "answer": "Jupiter", "answer_idx": "B", "answer_index": 1},
        {"options": [" (A) Mars", "(B) Jupiter", "(C) Venus "], "label": "B"},
        {"options": dict(zip("ABC", PLANETS, strict=True)), "answer": "B"},
        {"options": dict(zip("ABCD", [*PLANETS, None], strict=True)), "answer": "B"},
        {"choices": {"text": PLANETS, "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"choices": {"text": PLANETS, "label": ["1", "2", "3"]}, "answerKey": "2"},
        dict(zip("ABC", PLANETS, strict=True), answer="B"),
    ],
)
def test_the_choices_stand_below_the_question_and_the_answer_is_a_letter(row):
    choices = find_choices(row, "Which?")
    assert choices.below("Which?") == BELOW and choices.right == "B"
    assert choices.below(BELOW) == BELOW


def test_the_row_s_own_labels_come_before_an_index_and_an_index_before_a_text():
    numbers = {"text": ["4", "2", "3", "1"], "label": ["1", "2", "3", "4"]}
    assert find_choices({"choices": numbers, "answerKey": "4"}, "q").right == "D"
    assert find_choices({"choices": ["0", "2", "1", "3"], "answer": 1}, "q").right == "B"


def test_columns_that_are_often_used_for_other_things_need_not_name_a_choice():
    row = {"choices": PLANETS, "answer": "B", "correct": True, "label": "train"}
    assert find_choices(row, "q").right == "B"


def test_numbers_are_choices_and_other_rows_have_none():
    assert find_choices({"choices": [6, 8, 10], "answer": "8"}, "q").below("q") == "q\n\nA) 6\nB) 8\nC) 10"
    assert find_choices({"choices": [6, 8, 10], "answer": 2}, "q").right == "C"
    assert find_choices({"choices": [6, 8, 10], "answer": 8}, "q").right == "B"
    for row in (
        {"answer": "B"},
        {"answer": 1, "choices": []},
        {"answer": 1, "choices": None},
        {"A": "x", "answer": "B"},
    ):
        assert find_choices(row, "q") is None


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"choices": PLANETS}, "no answer or .* says which of the choices is right"),
        ({"choices": PLANETS, "answer": math.nan}, "no answer or .* says which"),
        ({"choices": PLANETS, "answer": "1"}, "answer '1' names none of the choices: give a letter, or a number that counts from 0"),
        ({"choices": PLANETS, "answer": 3}, "answer '3' names none of the choices"),
        ({"choices": PLANETS, "answer": -1}, "answer '-1' names none of the choices"),
        ({"choices": PLANETS, "answer": "D"}, "answer 'D' names none of the choices"),
        ({"choices": PLANETS, "answer": "x" * 999}, r"answer 'x{59}\.\.\.x{16}' names none"),
        ({"choices": PLANETS, "answer": True}, "answer is not text but a boolean"),
        ({"choices": PLANETS, "answer": ["B"]}, "answer is not text but a list"),
        ({"choices": [1, 2, 3], "answer": 2}, "answer '2' names several of the choices"),
        ({"choices": ["B", "A"], "answer": "A"}, "answer 'A' names several of the choices"),
        ({"choices": ["x", "x"], "answer": "x"}, "answer 'x' names several of the choices"),
        ({"choices": PLANETS, "answer": "Mars", "answer_idx": "B"}, "columns answer, answer_idx name different choices"),
        ({"choices": {"B": "x", "A": "y"}, "answer": "A"}, "not lettered A, B, and so on in order"),
        ({"choices": ["x"], "answer": "A"}, "choices has fewer than two choices"),
        ({"choices": ["x", " "], "answer": "A"}, "a choice of choices is empty"),
        ({"choices": ["x", {"text": "y"}], "answer": "A"}, "a choice of choices is not text but an object"),
        ({"choices": "A) x B) y", "answer": "A"}, "choices is not a list of at most 26 choices"),
        ({"choices": ["x"] * 27, "answer": "A"}, "choices is not a list of at most 26 choices"),
    ],
)  # fmt: skip
def test_uncertain_choices_are_refused(row, fault):
    with pytest.raises(ValueError, match=fault):
        find_choices(row, "q")
