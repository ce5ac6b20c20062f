r"""Two answers -> whether they are equal.

The rules, in this order: integers, letters of choices, normal forms, numbers, and then a rule for algebra that is handed in. The worker
processes (`worker.py`) hand in Math-Verify. Without one, `compare` returns None where only algebra can tell, as for `x^2-1` and
`(x-1)(x+1)`. All structure is decided here, because Math-Verify is too lenient with it: units, names ("x = 5"), tuples, intervals, sets,
lists and matrices. So Math-Verify compares only single expressions.

Invariants: no text is ever executed. Only strings of bounded length are analysed, so no text can hang or crash the comparison. Nothing
equals a missing or an empty answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from s1jax.grading.letters import choice_letter, chosen_letter
from s1jax.grading.normal_form import (
    Units,
    equal_numbers,
    is_decimal_comma,
    is_prose,
    normalise,
    split_outside,
    value_of,
)

# Longer answers are compared character by character. No gold answer is nearly as long, and the limit bounds the work of every rule.
_MAX_LENGTH = 1000
_INTEGER = re.compile("-?[0-9]+")

Algebra = Callable[[str, str], bool | None]
"""Returns whether an expression equals the gold one (both in normal form), or None if it cannot tell."""


def no_algebra(ours: str, theirs: str) -> bool | None:
    """Return None: without worker processes there is no rule for algebra."""
    return None


def compare(answer: str | None, gold: str, algebra: Algebra = no_algebra) -> bool | None:
    """Return whether an extracted answer equals the gold answer, or None if these rules cannot tell."""
    if answer is None or not answer.strip() or not gold.strip():
        return False
    if max(len(answer), len(gold)) > _MAX_LENGTH:
        return answer.strip() == gold.strip()
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):  # such as all answers of AIME
        return int(answer) == int(gold)
    if right := choice_letter(gold):
        return chosen_letter(answer) == right
    (ours, our_units), (theirs, their_units) = _normalise_both(answer, gold)
    if not ours or not theirs or (our_units and their_units and our_units != their_units):
        return False
    if ours == theirs or is_decimal_comma(ours, theirs) or is_decimal_comma(theirs, ours):
        return True
    return _compare_lists(_entries(ours), _entries(theirs), algebra)


def _normalise_both(answer: str, gold: str) -> tuple[tuple[str, Units], tuple[str, Units]]:
    """Return the normal forms of two answers with their units. Beside a number, "5 m" is five metres; beside 5m it is a product."""
    ours, theirs = normalise(answer), normalise(gold)
    is_number = [value_of(text) is not None for text, _ in (ours, theirs)]
    if is_number == [False, True]:
        ours = normalise(answer, one_letter=True)
    elif is_number == [True, False]:
        theirs = normalise(gold, one_letter=True)
    return ours, theirs


# ---- lists of named values ----

Entry = tuple[str, str]
"""The name that a value has, as in "x = 5", and the value. The name is empty if there is none."""

_ELEMENT_OF = re.compile(r"(.*?)\\in(?![A-Za-z])(.*)")
_FUNCTION = re.compile(r"([A-Za-z])\(([A-Za-z])\)")
_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_SUBSCRIPTS_AND_ARGUMENTS = re.compile(r"_(?:[0-9A-Za-z]|\{[^{}]*\})|(?<=[A-Za-z}])\([0-9A-Za-z,]*\)")


def _entries(text: str) -> list[Entry]:
    """Return the entries of a list or a set, and any other text as the only entry."""
    parts = [text] if value_of(text) is not None else split_outside(text) or [text]
    entries = [_named(part) for part in parts]
    if len(entries) == 1 and (inner := _set_body(entries[0][1])) is not None:
        entries = [(entries[0][0], part) for part in inner]
    entries = [(name, value) for name, both in entries for value in _both_signs(both)]
    are_points = len(entries) > 1 and all(value.startswith("(") for _, value in entries)
    return list(dict.fromkeys(entries)) if are_points else entries


def _named(text: str) -> Entry:
    r"""Split "x=1+1=2" into "x" and "2". An approximation behind an exact value ("=1/3\approx0.33") is left out."""
    exact, _, approximate = text.partition(r"\approx")
    if approximate:
        text = f"{exact}={approximate}" if _is_name(exact) else exact
    element = _ELEMENT_OF.fullmatch(text)
    sides = [element[1], element[2]] if element else split_outside(text, "=") or [text]
    return (sides[0], sides[-1]) if len(sides) > 1 and _is_name(sides[0]) else ("", text)


def _is_name(text: str) -> bool:
    r"""Return whether a text may be the left side of "= 5": letters without numbers and powers, such as f(2), p+q, |AB| or (x,y)."""
    text = _SUBSCRIPTS_AND_ARGUMENTS.sub("", text)
    return bool(re.search("[A-Za-z]", text)) and not re.search(r"[0-9=<>^]|\\(?:le|ge|ne)(?![A-Za-z])", text)


def _set_body(text: str) -> list[str] | None:
    r"""Return the entries between the braces of a set, \{1,2\} or {1,2}; None for other text."""
    if len(text) > 4 and text.startswith(r"\{") and text.endswith(r"\}"):
        return split_outside(text[2:-2])
    return split_outside(text[1:-1]) if text[0:1] + text[-1:] == "{}" else None


def _both_signs(text: str) -> list[str]:
    return [text.replace(r"\pm", sign) for sign in "+-"] if text.count(r"\pm") == 1 else [text]


def _compare_lists(ours: Sequence[Entry], theirs: Sequence[Entry], algebra: Algebra) -> bool | None:
    """Compare lists in any order. Only if the entries of one list have names of their own, and those of the other none, the order counts.

    So "AB = 4, CD = 5" equals "4, 5" and not "5, 4".
    """
    ours, theirs = _as_points(ours, theirs), _as_points(theirs, ours)
    if len(theirs) == 1:  # an answer in several forms, "15 39/40 or 639/40"
        return _all(_compare_entries(entry, theirs[0], algebra) for entry in ours)
    if len(ours) != len(theirs):
        return False
    has_names = [len({name for name, _ in entries if name}) > 1 for entries in (ours, theirs)]
    if has_names[0] != has_names[1]:
        return _all(_compare_entries(a, b, algebra) for a, b in zip(ours, theirs, strict=True))
    left, is_certain = list(theirs), True
    for entry in ours:
        results = []
        for i, other in enumerate(left):
            results.append(_compare_entries(entry, other, algebra))
            if results[-1]:
                del left[i]
                break
        else:
            if None not in results:
                return False
            is_certain = False
    return True if is_certain else None


def _as_points(entries: Sequence[Entry], points: Sequence[Entry]) -> Sequence[Entry]:
    """Return "x=1, y=2; x=3, y=4" as the points (1,2) and (3,4), if the other answer is points; any other list as it is.

    The coordinates have the order of the other answer's name, as in "(m,b) = (1,2)". Without one, the names must be in alphabetical order.
    """
    names = list(dict.fromkeys(name for name, _ in entries))
    size, has_order = len(names), points[0][0].startswith("(")
    if size < 2 or "" in names or [name for name, _ in entries] != names * (len(entries) // size):
        return entries
    order = (split_outside(points[0][0][1:-1]) or []) if has_order else sorted(names)
    are_points = all((_collection(value) or ("",))[0] == "()" for _, value in points)
    if not are_points or (sorted(order) != sorted(names) if has_order else order != names):
        return entries
    rows = [dict(entries[i : i + size]) for i in range(0, len(entries), size)]
    return [("", "(" + ",".join(row[name] for name in order) + ")") for row in rows]


def _compare_entries(ours: Entry, theirs: Entry, algebra: Algebra) -> bool | None:
    """Compare two values. One may lack its name. Two equations may also be equal as they are, such as y=2x and x=y/2."""
    ours = _with_variable_of(theirs, ours)
    equations = ["=".join(filter(None, entry)) for entry in (ours, theirs)]
    if ours[0] != theirs[0] and all(map(_is_equation, equations)):
        return algebra(*equations)
    return _compare_values(ours[1], theirs[1], algebra)


def _with_variable_of(other: Entry, entry: Entry) -> Entry:
    """Return "f(n) = n+1" as "f(x) = x+1" if the other entry names the same function f(x); any other entry as it is."""
    ours, theirs = _FUNCTION.fullmatch(entry[0]), _FUNCTION.fullmatch(other[0])
    if not ours or not theirs or ours[1] != theirs[1] or theirs[2] in _LETTERS.findall(entry[1]):
        return entry
    return other[0], _LETTERS.sub(lambda found: theirs[2] if found[0] == ours[2] else found[0], entry[1])


# ---- single values ----

_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])")
_UNION = re.compile(r"\\(?:cup|cap|setminus)(?![A-Za-z])")
_MATRIX = re.compile(
    r"\\begin\{[pb]?(?:matrix|array)\}(?:\{[lcr|]*\})?((?:(?!\\begin).)*)\\end\{[pb]?(?:matrix|array)\}"
)
# Times, numbers in other bases (101_2) and numbers side by side (3 4) are equal only if they are spelt alike.
_LITERAL = re.compile(r"[0-9]_|(?<![_^0-9.])[0-9]+ [0-9]|^[0-9]{1,2}:[0-9]{2}(?![0-9])")


def _compare_values(ours: str, theirs: str, algebra: Algebra) -> bool | None:
    if ours == theirs:
        return bool(ours)
    if not ours or not theirs:
        return False
    if (equal := equal_numbers(ours, theirs)) is not None:
        return equal
    first, second = _collection(ours), _collection(theirs)
    is_set = [_is_set(text) for text in (ours, theirs)]
    is_inequality = [bool(_INEQUALITY.search(text)) for text in (ours, theirs)]
    if any(is_inequality):  # -2 < x < 7 is the interval (-2,7)
        return algebra(ours, theirs) if all(a or b for a, b in zip(is_set, is_inequality, strict=True)) else False
    if first and second:
        is_alike = first[0] == second[0] and len(first[1]) == len(second[1])
        return is_alike and _all(_compare_values(a, b, algebra) for a, b in zip(first[1], second[1], strict=True))
    chain, value = (ours, theirs) if _is_equation(ours) else (theirs, ours)
    if _is_equation(chain) and not _is_equation(value):  # 12+3=15 equals 15, since each of its sides does
        return _all(_compare_values(side, value, algebra) for side in split_outside(chain, "=") or ())
    if is_set[0] != is_set[1]:
        return False
    if any(_LITERAL.search(text) or (is_prose(text) and len(text) > 3) for text in (ours, theirs)):
        return False
    return algebra(ours, theirs)


def _is_equation(text: str) -> bool:
    return len(split_outside(text, "=") or ()) > 1


def _is_set(text: str) -> bool:
    """Return whether a text is a tuple, an interval or a union of intervals."""
    return bool(_UNION.search(text)) or (not text.startswith("\\") and _collection(text) is not None)


def _collection(text: str) -> tuple[str, list[str]] | None:
    """Return the kind and the entries of a tuple, interval or matrix; None for other text."""
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in matrix[1].split("\\\\") if row]
        return f"matrix {len(rows)}", [entry for row in rows for entry in row.split("&")]
    if text[:1] in ("(", "[") and text[-1] in ")]":
        entries = split_outside(text[1:-1])
        return (text[0] + text[-1], entries) if entries is not None and len(entries) > 1 else None
    return None


def _all(results: Iterable[bool | None]) -> bool | None:
    """Return False if a result is False, else None if one is None."""
    is_certain = True
    for result in results:
        if result is False:
            return False
        is_certain = is_certain and result is not None
    return True if is_certain else None
