"""`math_verify.py`: which expressions are equal by algebra, and that no text is ever evaluated."""

import pytest

from s1jax.grading.equivalence import compare
from tests.support.answers import EQUAL, EQUAL_BY_ALGEBRA, UNEQUAL

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def equal_expressions():
    """The rule of the worker processes, in this process."""
    from s1jax.grading.math_verify import equal_expressions, warm_up

    warm_up()
    return equal_expressions


def test_equal_answers_are_equal_both_ways(equal_expressions):
    missed = [
        pair
        for a, b in [*EQUAL, *EQUAL_BY_ALGEBRA]
        for pair in ((a, b), (b, a))
        if not compare(*pair, equal_expressions)
    ]
    assert missed == []


def test_different_answers_are_unequal_both_ways(equal_expressions):
    pairs = [(a, b) for a, b in UNEQUAL if a is not None]
    found = [pair for a, b in pairs for pair in ((a, b), (b, a)) if compare(*pair, equal_expressions)]
    assert found == []


def test_code_in_an_answer_leaves_no_trace(equal_expressions, tmp_path):
    """The last lines show that the code would leave one: `eval` stands behind sympy's parser of plain text."""
    trace = tmp_path / "trace"
    code = f"__import__('pathlib').Path('{trace}').touch()"
    texts = [
        code,
        f"${code}$",
        rf"\text{{{code}}}",
        rf"\operatorname{{{code}}}",
        rf"x_{{{code}}}",
        f"5+{code}",
        f"f({code})",
    ]
    for text in texts:
        for gold in ("5", "x+5", text[:-1], r"\frac{a}{b}"):
            equal_expressions(text, gold)
            equal_expressions(gold, text)
            compare(text, gold, equal_expressions)
            assert not trace.exists(), text

    from sympy.parsing.sympy_parser import parse_expr

    parse_expr(code)
    assert trace.exists()


def test_text_that_is_no_mathematics_equals_nothing(equal_expressions):
    for text in (
        "(" * 400,
        r"\frac{1}{" * 80 + "}" * 80,
        "{{{",
        "5}{",
        "\0",
        "‮5",
        "lambda: 5",
        r"\frac{1}{0}",
        "x" * 900,
    ):
        assert not equal_expressions(text, "5") and not equal_expressions("5", text)
