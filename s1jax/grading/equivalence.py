"""Compare an extracted answer with the gold answer.

Two answers are equal if their normalised LaTeX is equal, if both are numbers of exactly equal value, or if both are tuples, lists, sets or
matrices with equal entries. Only what cannot change the value is dropped: `$`, `%`, degree signs, and the units of `_UNITS` behind an
answer. 50% equals 50, not 0.5. If both answers have units, one must have all units of the other. If the gold answer is the letter of a
choice, the extracted answer may add the choice's text ("C) 5 m") but not replace the letter.

Invariants: no text is ever executed. Only strings of bounded length are analysed, so no text can hang or crash the comparison. Nothing
equals a missing or an empty answer.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

# Longer answers are compared character by character. No gold answer is nearly as long, and the limit bounds the work of every rule below.
_MAX_LENGTH = 1000


def is_equivalent(extracted: str | None, gold: str) -> bool:
    """Return whether an extracted answer equals the gold answer. None and empty answers equal nothing."""
    if extracted is None or not extracted.strip() or not gold.strip():
        return False
    if max(len(extracted), len(gold)) > _MAX_LENGTH:
        return extracted.strip() == gold.strip()
    (ours, our_units), (theirs, their_units) = _normalise(extracted), _normalise(gold)
    if _LETTER.fullmatch(theirs) and (letter := _chosen_letter(extracted)):
        return letter == theirs
    if not (our_units <= their_units or their_units <= our_units):
        return False
    # "x = 5" is as good an answer to "what is x" as "5". If both answers name a variable, the names must agree.
    if bool(_LEFT_SIDE.match(ours)) != bool(_LEFT_SIDE.match(theirs)):
        ours, theirs = _LEFT_SIDE.sub("", ours), _LEFT_SIDE.sub("", theirs)
    return (bool(ours) and _value(ours) == _value(theirs)) or _equal_collections(ours, theirs)


# ---- units ----

# The words that are dropped behind an answer: each line holds the spellings of one unit, whose plurals count too.
_UNITS = {
    spelling: line.split()[0]
    for line in """
        mm millimeter millimetre
        cm centimeter centimetre
        m meter metre
        km kilometer kilometre
        nm nanometer nanometre
        in inch inche
        ft foot feet
        yd yard
        mi mile
        acre
        mg milligram
        g gram
        kg kilogram
        lb pound
        oz ounce
        ton tonne
        ml mL milliliter millilitre
        L liter litre
        gal gallon
        cup
        ms millisecond
        s sec second
        min minute
        h hr hour
        day
        week
        month
        yr year
        mph
        dollar usd USD
        cent
        percent
        deg degree
        rad radian
        Hz hertz
        N newton
        J joule
        kJ kilojoule
        eV
        MeV
        W watt
        kW kilowatt
        V volt
        Pa pascal
        kPa kilopascal
        mol mole
        unit
        point
        people person
        time
        way
    """.strip().splitlines()
    for spelling in line.split()
}
_CONNECTING = {"per", "square", "sq", "cubic", "cu"}

_TEXT = r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|operatorname)"
_UNIT_WORD = r"[A-Za-z]+\.?(?:\^?\{?-?[0-9]\}?)?"
_UNIT_WORDS = rf"{_UNIT_WORD}(?:(?: ?[/*] ?| ){_UNIT_WORD})*"
_UNITS_IN_TEXT = re.compile(rf"(?<=\S) ?{_TEXT} ?\{{ ?({_UNIT_WORDS}) ?\}}(?:\^?\{{?-?[0-9]\}}?)?$")
_BARE_UNITS = re.compile(rf"(?<=[0-9}}). ]) ?({_UNIT_WORDS})$")


def _split_units(text: str, pattern: re.Pattern[str]) -> tuple[str, frozenset[str]]:
    r"""Return an answer without the units at its end, and the units. A symbol of one letter is a unit only in a \text or \mathrm."""
    match = pattern.search(text)
    words = re.findall("[A-Za-z]+", match[1]) if match else []
    units = frozenset(
        _unit(word) if len(word) > 1 or pattern is _UNITS_IN_TEXT else None
        for word in words
        if word.lower() not in _CONNECTING
    )
    if match is None or not units or None in units:
        return text, frozenset()
    return text[: match.start()].strip(), frozenset(filter(None, units))


def _unit(word: str) -> str | None:
    """Return the first spelling of a unit, None for another word. Only in words of three letters or more does case mean nothing."""
    lower = word.lower() if len(word) > 2 else word
    return _UNITS.get(word) or _UNITS.get(lower) or (_UNITS.get(lower.removesuffix("s")) if len(word) > 2 else None)


# ---- normal form ----

# Spellings that mean nothing (`_normalise`), and forms of an answer.
_SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "<=": r"\le ", ">=": r"\ge ",
    r"\$": "", "$": "", r"\%": "", "%": "", "{,}": ",",
}  # fmt: skip
_SYMBOL = re.compile("|".join(map(re.escape, sorted(_SYMBOLS, key=len, reverse=True))))
_TEXT_COMMAND = re.compile(rf"(?:{_TEXT}|\\boxed|\\fbox)\s*\{{([^{{}}]*)\}}")
_DEGREES = re.compile(rf"(?:\^\{{?\\circ\}}?|\\degrees?(?![A-Za-z])|°|º)(?:\s*(?:{_TEXT}\{{\s*)?[CF]\}}?$)?")
_NO_SPACE = re.compile(r"(?<!\\)\\!\s*|(?<=[0-9])\\,(?=[0-9]{3})|\\(?:left|right|displaystyle)(?![A-Za-z])")
_SPACE = re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])")
_ANY_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_FRAC = re.compile(r"\\frac *(\{[^{}]*\}|[0-9A-Za-z]) *(\{[^{}]*\}|[0-9A-Za-z])")
_SHORT_SQRT = re.compile(r"\\sqrt *([0-9A-Za-z])")
_ONE_IN_BRACES = re.compile(r"([\^_])\{([0-9A-Za-z])\}")
_RELATIONS = re.compile(r"\\(le|ge|ne)q?(?![A-Za-z])")
_MIXED_NUMBER = re.compile(r"([+-]?[0-9]+) +([0-9]+) */ *([0-9]+)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]+(?: +[A-Za-z'-]+)*")
# Not a space between two digits, nor one that tells the list "32, 349" from the number 32,349.
_IDLE_SPACE = re.compile(r" (?![0-9])|(?<![0-9,]) |(?<=,) (?![0-9]{3}(?![0-9]))")
_LETTER = re.compile("[A-Z]")
_CHOICE_WITH_TEXT = re.compile(
    r"[*\s]*(?:(?:[Oo]ption|[Cc]hoice)\s+)?"
    r"\(?([A-Z]|(?<=\()[a-z](?=\)$))(?:\)|[.:](?=[\s*])|\.?$|,(?= (?!or |and )[a-z])|(?= [-–—] ))(.*)",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(r"(?:^|[\s,;])\(?[A-Z]\)|^ [-–—] [A-Z]\b")
_VARIABLE = r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:[0-9A-Za-z]|\{[^{}]*\}))?(?:\([0-9A-Za-z]+\))?"
_LEFT_SIDE = re.compile(rf"^(?:{_VARIABLE}(?:[+-]{_VARIABLE})*=|[A-Za-z]\\in(?![A-Za-z]))")


def _normalise(answer: str) -> tuple[str, frozenset[str]]:
    """Return an answer in a normal form, in which two spellings of one answer are the same string, and the units that it had."""
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], answer)
    text = _DEGREES.sub("", _SPACE.sub(" ", _NO_SPACE.sub("", text)).strip())
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text.strip().rstrip(".,;:").strip())
    text, units = _split_units(" ".join(text.split()), _UNITS_IN_TEXT)
    for _ in range(2):  # \textbf{\text{x}}
        text = _TEXT_COMMAND.sub(r"\1", text)
    text = " ".join(_ANY_FRAC.sub(r"\\frac", text).split())
    if not units:
        text, units = _split_units(text, _BARE_UNITS)
    if r"\$" in answer:
        units |= {"dollar"}
    if _WORDS.fullmatch(text):  # case means nothing in prose (a single letter is a variable or a choice)
        return text.lower(), units
    text = _MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", text.replace(" and ", ", "))
    text = _SHORT_FRAC.sub(lambda m: "\\frac" + "".join("{" + part.strip("{}") + "}" for part in m.groups()), text)
    text = _SHORT_SQRT.sub(r"\\sqrt{\1}", text)
    text = _ONE_IN_BRACES.sub(r"\1\2", _RELATIONS.sub(r"\\\1", text))
    text = _IDLE_SPACE.sub("", text)
    for _ in range(3):  # ((5)), with brackets around the whole
        if len(text) > 2 and text[0] + text[-1] in ("()", "{}") and _split_commas(text[1:-1]) == [text[1:-1]]:
            text = text[1:-1]
    return text, units


def _chosen_letter(answer: str) -> str | None:
    """Return the letter at the start of an answer such as "C) 5 m" or "Option C"; None if there is none, or if the answer names two."""
    match = _CHOICE_WITH_TEXT.match(_TEXT_COMMAND.sub(r"\1", answer.strip()))
    return match[1].upper() if match and not _OTHER_CHOICE.search(match[2]) else None


_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>[0-9]+)?\\frac\{{(?P<top>[+-]?{_DECIMAL})\}}\{{(?P<bottom>[+-]?{_DECIMAL})\}}"
    rf"|(?P<over>{_DECIMAL})/(?P<under>{_DECIMAL})"
    rf"|(?P<plain>{_DECIMAL})(?:(?:\\times|\\cdot)10\^\{{?(?P<power>[+-]?[0-9]{{1,3}})\}}?)?)"
)


def _value(text: str) -> Fraction | str:
    """Return the exact value of a normalised number, and any other text as it is; so too for a zero denominator."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    groups = {name: value.replace(",", "") for name, value in match.groupdict().items() if value and name != "sign"}
    part = {name: Fraction(value) for name, value in groups.items()}
    if "plain" in part:
        value = part["plain"] * Fraction(Fraction(10) ** int(part.get("power", 0)))
    else:
        top, bottom = part.get("top", part.get("over")), part.get("bottom", part.get("under"))
        if top is None or not bottom or ("whole" in part and (top < 0 or bottom < 0)):
            return text
        value = part.get("whole", Fraction(0)) + top / bottom
    return -value if match["sign"] == "-" else value


_MATRIX = re.compile(r"\\begin\{[pbvBV]?(?:matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{[pbvBV]?(?:matrix|array)\}")


def _collection(text: str) -> tuple[str, list[str]] | None:
    """Return the kind and the entries of a tuple, interval, set, bare list or matrix; None for other text."""
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in matrix.group(1).split("\\\\") if row]
        return f"matrix {len(rows)}", [entry for row in rows for entry in row.split("&")]
    if len(text) >= 4 and text.startswith("\\{") and text.endswith("\\}"):
        kind, body = "set", text[2:-2]
    elif len(text) >= 2 and text[0] in "([" and text[-1] in ")]":
        kind, body = text[0] + text[-1], text[1:-1]
    else:
        kind, body = "list", text
    entries = _split_commas(body)
    if entries is None:  # (1,2),(3,4)
        kind, entries = "list", _split_commas(text)
    return (kind, entries) if entries is not None and (len(entries) > 1 or kind == "set") else None


def _split_commas(body: str) -> list[str] | None:
    """Split at the commas outside all brackets; return None if a bracket closes that was never opened, as in the body of (1,2)u(3,4)."""
    entries, depth, start = [], 0, 0
    for i, character in enumerate(body):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character == "," and depth == 0:
            entries.append(body[start:i].strip())
            start = i + 1
    return [*entries, body[start:].strip()]


def _equal_collections(ours: str, theirs: str) -> bool:
    """Compare two collections by their entries: in order for tuples, intervals and matrices, in any order for sets and bare lists."""
    first, second = _collection(ours), _collection(theirs)
    if first is None or second is None or first[0] != second[0] or "" in first[1]:  # nothing equals an empty entry
        return False
    values = [_value(entry) for entry in first[1]], [_value(entry) for entry in second[1]]
    if first[0] in ("set", "list"):
        return Counter(values[0]) == Counter(values[1])
    return values[0] == values[1]
