"""`columns.py`: which values are text."""

import datetime
import math
from decimal import Decimal

import numpy as np
import pytest

from s1jax.data.columns import check_whole_question, filled_text_of, text_of

LONG = Decimal("1" * 5000)
NOT_TEXT = {
    "a boolean": True,
    "an object": {"text": "q"},
    "a list": [1],
    "of type bytes": b"q",
    "of type date": datetime.date(2026, 1, 1),
    "of type int64": np.int64(3),
}


def test_a_string_is_text_and_a_number_only_where_it_can_be_the_value():
    for value, text in (("q", "q"), (" ", " "), (None, ""), (math.nan, ""), (math.inf, ""), (Decimal("NaN"), "")):
        assert text_of("x", value) == text_of("x", value, number=True) == text
    for number, text in (
        (5, "5"),
        (0.5, "0.5"),
        (10**400, "1" + "0" * 400),
        (LONG, "1" * 5000),
        (Decimal("1.50"), "1.50"),
    ):
        assert text_of("x", number, number=True) == text
        with pytest.raises(ValueError, match=r"^x is not text but a number$"):
            text_of("x", number)
    assert text_of("x", ["a", "b"], lines=True) == "a\nb"


@pytest.mark.parametrize("kind", NOT_TEXT)
def test_other_values_are_not_text(kind):
    with pytest.raises(ValueError, match=f"^x is not text but {kind}$"):
        text_of("x", NOT_TEXT[kind], number=True, lines=True)
    with pytest.raises(ValueError, match=r"^x is not text but a list$"):
        text_of("x", ["a"], number=True)


def test_a_value_without_text_says_why():
    for value, reason in (
        (None, "x is empty"), ("\n", "x is empty"), ([], "x is empty"), (math.nan, "x is NaN, a missing value"),
        (-math.inf, "x is infinite, a missing value"), (Decimal("NaN"), "x is NaN, a missing value"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{reason}$"):
            filled_text_of("x", value, lines=True)


def test_a_column_that_belongs_to_the_question_is_not_left_out():
    for name in (
        "context",
        "Passage",
        "images",
        "image_1",
        "input",
        "hint",
        "options",
        "option_a",
        "opa",
        "Body",
        "image_url",
    ):
        with pytest.raises(ValueError, match=f"^column {name} would be left out"):
            check_whole_question({"question": "q", name: "text"})
        for empty in (None, "", " ", [], {}, False, math.nan):
            check_whole_question({name: empty})
        check_whole_question({name: "text"}, used=[name])
    check_whole_question({"solution": "s", "subject": "t", "url": "u", "year": 2024, "metadata": {"a": 1}, "text": "t"})
