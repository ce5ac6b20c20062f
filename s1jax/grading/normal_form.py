"""The normal form of an answer: two spellings of one answer become the same string, or numbers of the same value.

Only what cannot change the value is dropped: `$`, `%`, degree signs, and the units of `_UNITS` behind an answer. 50% equals 50, not 0.5.

Invariant: no text is ever executed, and every rule takes bounded time on a text of at most 1,000 characters.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

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
        percent percentage pct
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
_FACTORS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
# "18 eggs": any other words in lowercase behind a number name what it counts, except those that may change its value.
_COUNTED = re.compile(r"(\\?\$?[0-9][0-9.,]*) ([a-z]{3,}(?: [a-z]{3,}){0,2})")
_CHANGES_VALUE = re.compile(
    r"\b(?:and|or|not|plus|minus|times|over|divided|more|less|fewer|than|squared|cubed|factorial|degrees?|base|mod|modulo|remainder|"
    r"root|sqrt|infinity|negative|hundreds?|thousands?|dozens?|scores?|pairs?|halves|half|thirds?|quarters?|doubles?|triples?|"
    r"[a-z]+illions?|[a-z]+ths?|[a-z]+(?:teen|ty)|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b"
)

Units = frozenset[tuple[str, int]]
"""Units, each with its power: metres per second squared are (m, 1) and (s, -2)."""
NO_UNITS: Units = frozenset()

_TEXT = r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|operatorname)"
_UNIT_WORD = r"[A-Za-z]+\.?(?:\^?\{?-?[0-9]\}?)?"
_UNIT_WORDS = rf"{_UNIT_WORD}(?:(?: ?[/*] ?| ){_UNIT_WORD})*"
_UNITS_IN_TEXT = re.compile(rf"(?<=\S) ?{_TEXT} ?\{{ ?({_UNIT_WORDS}) ?\}}(\^?\{{?-?[0-9]\}}?)?$")
_UNIT_MARKS = {"dollar": re.compile(r"\\\$"), "percent": re.compile(r"%[\s$.)]*$")}
_UNIT_TERM = re.compile(r"([A-Za-z]+|/)\.?(?:\^?\{?(-?[0-9])\}?)?")
_BARE_UNITS = re.compile(rf"(?<=[0-9}}). ]) ?({_UNIT_WORDS})$")
_SPACED_UNITS = re.compile(rf"(?<=[0-9}}).]) ({_UNIT_WORDS})$")
_SQUARE_METRES = re.compile(r"(?<=[0-9])(?=m[²³])")


def _split_units(text: str, pattern: re.Pattern[str], one_letter: bool) -> tuple[str, Units]:
    """Return an answer without the units at its end, and the units. `one_letter` says whether the first may be a single letter."""
    match = pattern.search(text)
    if match is None:
        return text, NO_UNITS
    powers: Counter[str] = Counter()
    sign = factor = 1
    for word, exponent in _UNIT_TERM.findall("".join(filter(None, match.groups()))):
        if word in ("/", "per"):
            sign = -1
        elif word in _FACTORS:
            factor = _FACTORS[word]
        elif (len(word) > 1 or one_letter or powers) and (unit := _unit(word)):
            powers[unit] += sign * factor * int(exponent or 1)
            sign = factor = 1
        else:
            return text, NO_UNITS
    return text[: match.start()].strip(), frozenset(powers.items())


def _unit(word: str) -> str | None:
    """Return the first spelling of a unit, None for another word. Only in words of three letters or more does case mean nothing."""
    lower = word.lower() if len(word) > 2 else word
    return _UNITS.get(word) or _UNITS.get(lower) or (_UNITS.get(lower.removesuffix("s")) if len(word) > 2 else None)


# ---- spelling ----

# Spellings that mean nothing (`normalise`), and forms of an answer.
_SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "²": "^2", "³": "^3",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ",
    r"\varnothing": r"\emptyset ", r"\{\}": r"\emptyset ", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\$": "", "$": "", "€": "", "£": "", "¥": "", r"\%": "", "%": "", "{,}": ",", ";": ",", r"\;": r"\;",
}  # fmt: skip
_SYMBOL = re.compile("|".join(map(re.escape, sorted(_SYMBOLS, key=len, reverse=True))))
_TEXT_COMMAND = re.compile(rf"(?:{_TEXT}|\\boxed|\\fbox)\s*\{{([^{{}}]*)\}}")
_DEGREES = re.compile(rf"(?:\^\{{?\\circ\}}?|\\degrees?(?![A-Za-z])|°|º)(?:\s*(?:{_TEXT}\{{\s*)?([CF])\}}?$)?")
_NO_SPACE = re.compile(r"(?<!\\)\\!\s*|(?<=[0-9])\\,(?=[0-9]{3})|\\(?:left|right|displaystyle)(?![A-Za-z])")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z(){}])")
_SPACE = re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])")
_BARE_COMMANDS = re.compile(r"(?<![A-Za-z\\])(pi|infinity)(?![A-Za-z])|\\([lg])t(?![A-Za-z])")
_ANY_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_FRAC = re.compile(r"\\frac *(\{[^{}]*\}|[0-9A-Za-z]) *(\{[^{}]*\}|[0-9A-Za-z])")
_SHORT_SQRT = re.compile(r"\\sqrt *([0-9A-Za-z])")
_ONE_IN_BRACES = re.compile(r"([\^_])\{([0-9A-Za-z])\}")
_RELATIONS = re.compile(r"\\(le|ge|ne)q?(?![A-Za-z])")
_MIXED_NUMBER = re.compile(r"(?<![0-9./_^}])([+-]?[0-9]+) +([0-9]+) */ *([0-9]+)")
_BETWEEN_LINES = re.compile(r"(?<=[0-9])[ \t\r]*\n\s*(?=[0-9])")
# A name may follow at once: "x=1orx=2".
_AND = re.compile(
    r",? *(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]) *|(?<=[0-9)}])(?:and|or)(?= *[A-Za-z](?:\([A-Za-z]\))? *=)"
)
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]+(?: +[A-Za-z'-]+)*")
_SPACED_THOUSANDS = re.compile(r"([+-]?[0-9]{1,3}(?: [0-9]{3})+)(\.[0-9]+| [0-9]{1,2} */ *[0-9]+)?")
_ORDINAL = re.compile(r"(?<=[0-9])\^?\{?(?:st|nd|rd|th)\}?$")
_TIME = re.compile(r"([0-9]{1,2}:[0-9]{2}) ?([ap])\.?m\.?", re.IGNORECASE)
# Not a space that ends a command (`\pi r`), nor one between two digits, nor one that tells the list "32, 349" from the number 32,349.
_IDLE_SPACE = re.compile(r"(\\[A-Za-z]+ (?=[A-Za-z]))| (?![0-9])|(?<![0-9,]) |(?<=,) (?![0-9]{3}(?![0-9]))")


_SENTENCE = re.compile(r"[A-Za-z]+,? ")
_IS_VALUE = re.compile(r"\s(?:is|are)(?: equal to)?:?\s+(?=[^a-zA-Z]*[0-9$\\])")
_FORMULA = re.compile(r"\$\$[^$]+\$\$|\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_NO_FRAME = re.compile(r"[0-9\\$]|\b(?:not|no|or|than|least|most|about)\b")


def normalise(answer: str, one_letter: bool = False) -> tuple[str, Units]:
    r"""Return an answer in its normal form, and the units that it had. Prose becomes lowercase.

    In a \text a single letter is always a unit. `one_letter` says whether "5 m" and "5m²" are metres, too, and not a product.
    """
    text = _SQUARE_METRES.sub(" ", _BETWEEN_LINES.sub(", ", _value_in_sentence(answer)))
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    if r"\begin" not in text:  # there it ends a row
        text = _DOUBLED.sub(r"\\", text)
    text = _SPACE.sub(" ", _NO_SPACE.sub("", text)).strip()
    marks = {("celsius" if scale == "C" else "fahrenheit", 1) for scale in _DEGREES.findall(text) if scale}
    marks |= {(unit, 1) for unit, mark in _UNIT_MARKS.items() if mark.search(answer)}
    text = _DEGREES.sub("", text)
    text = _without_end(re.sub(r"^\\[(\[]|\\[)\]]$", "", _without_end(text)))
    text, units = _split_units(" ".join(text.split()), _UNITS_IN_TEXT, one_letter=True)
    for _ in range(2):  # \textbf{\text{x}}
        text = _TEXT_COMMAND.sub(r"\1", text)
    text = " ".join(_ANY_FRAC.sub(r"\\frac", text).split())
    if time := _TIME.fullmatch(text):
        return f"{time[1]} {time[2].lower()}m", NO_UNITS
    if not units:
        text, units = _split_units(text, _BARE_UNITS, one_letter=False)
    if not units and one_letter:
        text, units = _split_units(text, _SPACED_UNITS, one_letter=True)
    if not units and (counted := _COUNTED.fullmatch(text)) and not _CHANGES_VALUE.search(counted[2]):
        text, units = counted[1], frozenset({(counted[2].removesuffix("s"), 1)})
    text = _ORDINAL.sub("", text)
    units |= marks
    text = _BARE_COMMANDS.sub(_command, text)
    if is_prose(text):  # case means nothing in prose (a single letter is a variable or a choice)
        return text.lower(), units
    if thousands := _SPACED_THOUSANDS.fullmatch(text):
        text = thousands[1].replace(" ", "") + (thousands[2] or "")
    text = _MIXED_NUMBER.sub(_mixed_number, _AND.sub(", ", text))
    text = _SHORT_FRAC.sub(lambda m: "\\frac" + "".join("{" + part.strip("{}") + "}" for part in m.groups()), text)
    text = _SHORT_SQRT.sub(r"\\sqrt{\1}", text)
    text = _ONE_IN_BRACES.sub(r"\1\2", _RELATIONS.sub(r"\\\1", text))
    return _without_outer_brackets(_IDLE_SPACE.sub(lambda m: m[1] or "", text)), units


def _value_in_sentence(text: str) -> str:
    """Return the value that a sentence states, such as "The area of the square is 12." or "Thus $x > 3$."; any other text as it is."""
    if not _SENTENCE.match(text):
        return text
    if len(ends := [found.end() for found in _IS_VALUE.finditer(text)]) == 1:
        return text[ends[0] :]
    formulas = _FORMULA.findall(text)
    return formulas[0] if len(formulas) == 1 and not _NO_FRAME.search(_FORMULA.sub("", text)) else text


def _without_end(text: str) -> str:
    """Return a text without the punctuation at its end. The list "1, 2, ..." goes on, so its dots are none."""
    text = text.strip()
    return text if text.endswith((",...", " ...")) else text.rstrip(".,:").rstrip()


def _command(match: re.Match[str]) -> str:
    if match[2]:
        return {"l": "<", "g": ">"}[match[2]]
    return {"pi": r"\pi ", "infinity": r"\infty "}[match[1]]


def _mixed_number(match: re.Match[str]) -> str:
    r"""Return "1 2/3" as 1\frac{2}{3}. Only a fraction below one makes a mixed number."""
    return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}" if int(match[2]) < int(match[3]) else match[0]


def is_prose(text: str) -> bool:
    """Return whether a text is words alone."""
    return _WORDS.fullmatch(text) is not None


def _without_outer_brackets(text: str) -> str:
    """Return a text without brackets around the whole: ((5)), but not (1,2)."""
    for _ in range(3):
        inner = text[1:-1]
        is_matrix = inner.startswith(r"\begin") and inner.count(r"\begin") == 1 and inner.endswith("}")
        around = ("()", "{}", "[]") if is_matrix else ("()", "{}")
        if len(text) > 2 and text[0] + text[-1] in around and split_outside(inner) == [inner]:
            text = inner
    return text


def split_outside(body: str, separator: str = ",") -> list[str] | None:
    """Split at the separators outside all brackets; return None if a bracket closes that was never opened, as in the body of (1)(2)."""
    entries, depth, start = [], 0, 0
    for i, character in enumerate(body):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character == separator and depth == 0:
            entries.append(body[start:i].strip())
            start = i + 1
    return [*entries, body[start:].strip()]


# ---- numbers ----

_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?)"
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>{_WHOLE})?\\frac\{{(?P<top>[+-]?{_DECIMAL})\}}\{{(?P<bottom>[+-]?{_DECIMAL})\}}"
    rf"|(?P<over>{_DECIMAL})/(?P<under>{_DECIMAL})"
    r"|(?P<start>[0-9]*\.[0-9]*)\\(?:overline|bar|dot)\{?(?P<repeated>[0-9]+)\}?"
    rf"|(?P<plain>{_DECIMAL})(?:(?:(?:\\times|\\cdot|\*)10\^\{{?|[eE])(?P<power>[+-]?[0-9]{{1,3}})\}}?)?)"
)
_DECIMALS = re.compile(r"[+-]?[0-9]*\.0*([0-9]*)")
_DECIMAL_COMMA = re.compile(r"[+-]?(?:[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|0,[0-9]+)")
_ENOUGH_DIGITS = 6


def value_of(text: str) -> Fraction | None:
    """Return the exact value of a number in its normal form; None for any other text, and for a zero denominator."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    groups = {name: value.replace(",", "") for name, value in match.groupdict().items() if value and name != "sign"}
    if "repeated" in groups:
        value = _repeating(groups["start"], groups["repeated"])
        return -value if match["sign"] == "-" else value
    part = {name: Fraction(value) for name, value in groups.items()}
    if "plain" in part:
        value = part["plain"] * Fraction(Fraction(10) ** int(part.get("power", 0)))
    else:
        top, bottom = part.get("top", part.get("over")), part.get("bottom", part.get("under"))
        if top is None or not bottom or ("whole" in part and (top < 0 or bottom < 0)):
            return None
        value = part.get("whole", Fraction(0)) + top / bottom
    return -value if match["sign"] == "-" else value


def _repeating(start: str, repeated: str) -> Fraction:
    r"""Return 0.1\overline{6}, given as "0.1" and "6", as a fraction."""
    whole, _, decimals = start.partition(".")
    before = int((whole + decimals) or "0")
    after = int(whole + decimals + repeated)
    return Fraction(after - before, 10 ** len(decimals) * (10 ** len(repeated) - 1))


def equal_numbers(ours: str, theirs: str) -> bool | None:
    """Return whether two texts are numbers of one value; None unless both are numbers.

    A decimal with six significant digits behind its point, or more, also equals a fraction that it rounds or cuts off.
    """
    first, second = value_of(ours), value_of(theirs)
    if first is None or second is None:
        return None
    return first == second or _is_cut_off(ours, first, second) or _is_cut_off(theirs, second, first)


def _is_cut_off(text: str, value: Fraction, exact: Fraction) -> bool:
    decimals = _DECIMALS.fullmatch(text)
    if decimals is None or len(decimals[1]) < _ENOUGH_DIGITS or exact.denominator == 1:
        return False
    terminates = 10**30 % exact.denominator == 0
    return not terminates and abs(value - exact) < Fraction(1, 10 ** len(text.partition(".")[2]))


def is_decimal_comma(text: str, point: str) -> bool:
    """Return whether a text is the decimal number `point`, with a comma in the place of the point."""
    return bool(_DECIMAL_COMMA.fullmatch(text)) and text.replace(",", ".") == point
