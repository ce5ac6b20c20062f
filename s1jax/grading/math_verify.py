"""Whether two expressions are equal by Math-Verify, a parser of LaTeX and a set of comparisons with sympy. Imported only by workers.

Math-Verify is asked about single expressions in the normal form of this package (`equivalence.py`), with its own rules for units and
boxes off. Its pattern for plain text is never used, since it hands the text to `eval`. Its time limits are off, since a worker has one.

`verify` is not symmetric: the gold answer comes first. There it turns an inequality into an interval if the other answer is one.
"""

from __future__ import annotations

import re

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify.grader import should_treat_as_complex, verify

_NORMALISATION = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
_CONVERSION = ConversionConfig(lowercase_symbols=False)

_MAX_DEPTH = 30
# Math-Verify rounds to six digits behind the point, so 0.0000001 would be 0.
_RELATIVE_TOLERANCE = 1e-5


def equal_expressions(ours: str, theirs: str) -> bool:
    """Return whether an expression equals the gold one. One that cannot be parsed or evaluated equals nothing."""
    if max(map(_depth, (ours, theirs))) > _MAX_DEPTH:
        return False
    is_real = None if should_treat_as_complex(ours) or should_treat_as_complex(theirs) else True
    try:
        answer, gold = _parse(ours, is_real), _parse(theirs, is_real)
        if isinstance(gold, sympy.Eq) and not gold.free_symbols:  # there is nothing to solve for, as in f(2)=9
            return str(answer) == str(gold)
        is_different = _differ_at_a_point(answer, gold)
        return not is_different and verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None)
    except Exception:  # the parser and sympy raise errors of many kinds for text that is no mathematics
        return False


def _parse(text: str, is_real: bool | None) -> sympy.Basic:
    text = normalize_latex(text, _NORMALISATION)
    value = latex2sympy(text, is_real=is_real, normalization_config=None, conversion_config=_CONVERSION)
    # The parser takes the imaginary unit for a variable.
    return value.subs({symbol: sympy.I for symbol in value.free_symbols if symbol.name == "i"})


def _depth(text: str) -> int:
    """Return an upper bound on how deeply the brackets of a text are nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[(\[{}\])]", text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _differ_at_a_point(answer: sympy.Basic, gold: sympy.Basic) -> bool:
    """Return whether two expressions have different values where their variables are some numbers between 1 and 2.

    This settles most pairs of unequal answers long before `verify` has tried to simplify them.
    """
    if not (isinstance(answer, sympy.Expr) and isinstance(gold, sympy.Expr)):
        return False
    variables = sorted(answer.free_symbols | gold.free_symbols, key=str)
    point = {variable: 1 + sympy.Rational(i + 1, len(variables) + 2) for i, variable in enumerate(variables)}
    try:
        ours, theirs = (complex(sympy.N(number.subs(point), 20)) for number in (answer, gold))
    except TypeError:  # it is no number even then: a function f(x), infinity times something
        return False
    return abs(ours - theirs) > _RELATIVE_TOLERANCE * max(abs(ours), abs(theirs))


def warm_up() -> None:
    """Let sympy import what it imports late, and fill the caches of the parser."""
    for pair in (
        (r"\frac{1}{2}\sqrt{8}", r"\sqrt{2}"),
        (r"\tan^2(y)+1", r"\sec^2(y)"),
        (r"\ln 8+\log_{2}x", r"\log_2{x}+3\ln 2"),
        ("y=2x+1", "2x-y+1=0"),
        (r"-2\le x<7", "[-2,7)"),
        (r"(-\infty,1)\cup(2,3)", r"(2,3)\cup(-\infty,1)"),
        (r"2\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}2&4\\6&8\end{pmatrix}"),
        ("(1+i)^2", "2i"),
        ("2^{10}5!", r"\binom{5}{2}"),
    ):
        equal_expressions(*pair)
