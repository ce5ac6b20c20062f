"""Compare an extracted answer with the gold answer.

Two answers are equal if their normalised LaTeX is equal, if both are numbers of exactly equal value, or if both are tuples, lists, sets or
matrices with equal entries. Units, `$`, `%` and degree signs are dropped: 50% equals 50, not 0.5. If the gold answer is the letter of a
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
    ours, theirs = _normalise(extracted), _normalise(gold)
    if _LETTER.fullmatch(theirs) and (letter := _chosen_letter(extracted)):
        return letter == theirs
    # "x = 5" is as good an answer to "what is x" as "5". If both answers name a variable, the names must agree.
    if bool(_LEFT_SIDE.match(ours)) != bool(_LEFT_SIDE.match(theirs)):
        ours, theirs = _LEFT_SIDE.sub("", ours), _LEFT_SIDE.sub("", theirs)
    return (bool(ours) and _value(ours) == _value(theirs)) or _equal_collections(ours, theirs)


# Spellings that mean nothing (`_normalise`), and forms of an answer.
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname|boxed|fbox)\s*\{([^{}]*)\}")
_UNIT_TEXT = re.compile(
    r"(?<=\S)\\?\s*\\(?:text|textrm|mbox|mathrm)\s*\{\s*[A-Za-z][A-Za-z. /]*\}(?:\^\{?[0-9]\}?)?\s*$"
)
_DEGREES = re.compile(r"\^\{?\\circ\}?|\\degrees?(?![A-Za-z])|°|º")
_SPACING = re.compile(r"(?<!\\)\\[!,;: ]|~|\\q?quad(?![A-Za-z])|\\(?:left|right|displaystyle)(?![A-Za-z])")
_ANY_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_FRAC = re.compile(r"\\frac *(\{[^{}]*\}|[0-9A-Za-z]) *(\{[^{}]*\}|[0-9A-Za-z])")
_SHORT_SQRT = re.compile(r"\\sqrt *([0-9A-Za-z])")
_ONE_IN_BRACES = re.compile(r"([\^_])\{([0-9A-Za-z])\}")
_RELATIONS = re.compile(r"\\(le|ge|ne)q?(?![A-Za-z])")
_MIXED_NUMBER = re.compile(r"([+-]?[0-9]+) +([0-9]+) */ *([0-9]+)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]+(?: +[A-Za-z'-]+)*")
_CHOICE = re.compile(r"\(([A-Za-z])\)")
_LETTER = re.compile("[A-Z]")
_CHOICE_WITH_TEXT = re.compile(
    r"[*\s]*(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?([A-Z])(?:\)|[.:](?=[\s*])|\.?$)(.*)", re.DOTALL
)
_OTHER_CHOICE = re.compile(r"(?:^|[\s,;])\(?[A-Z]\)")
_LEFT_SIDE = re.compile(r"^[A-Za-z](?:=|\\in(?![A-Za-z]))")
_UNIT_WORD = re.compile(
    r"(?<=[0-9} .])\s*(?:(?:square|cubic|sq\.?|cu\.?)\s+)?"
    r"(?:dollars?|usd|cents?|percent|degrees?|radians?|units?|points?|people|times|ways"
    r"|inch(?:es)?|f(?:oo|ee)t|ft|yards?|miles?|mm|cm|km|(?:centi|milli|kilo)?met(?:er|re)s?|acres?"
    r"|mg|kg|(?:kilo|milli)?grams?|pounds?|lbs?|ounces?|oz|tons?|ml|(?:milli)?lit(?:er|re)s?|gallons?|cups?"
    r"|seconds?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|mph|(?:miles?|km) per hour)"
    r"(?:\s*\^?\s*\{?[23]\}?)?$",
    re.IGNORECASE,
)


def _normalise(answer: str) -> str:
    """Return an answer in a normal form: two spellings of one answer become the same string."""
    text = answer.strip().replace("−", "-").replace("–", "-").replace("\n", " ")
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "").replace("{,}", ",")
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text.strip().rstrip(".,;:").strip()).strip()
    text = _DEGREES.sub("", text)
    text = _UNIT_TEXT.sub("", text)
    for _ in range(2):  # \textbf{\text{x}}
        text = _TEXT_COMMAND.sub(r"\1", text)
    text = _ANY_FRAC.sub(r"\\frac", _SPACING.sub("", text)).strip()
    text = _UNIT_WORD.sub("", text).strip()
    if _WORDS.fullmatch(text):  # case and spacing mean nothing in prose (a single letter is a variable or a choice)
        return " ".join(text.lower().split())
    text = _MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", text)  # before spaces are removed: "1 4/5" is not 14/5
    text = _SHORT_FRAC.sub(lambda m: "\\frac" + "".join("{" + part.strip("{}") + "}" for part in m.groups()), text)
    text = _SHORT_SQRT.sub(r"\\sqrt{\1}", text)
    text = _ONE_IN_BRACES.sub(r"\1\2", _RELATIONS.sub(r"\\\1", text))
    text = re.sub(r"\s+", "", text)
    return _CHOICE.sub(r"\1", text) if _CHOICE.fullmatch(text) else text


def _chosen_letter(answer: str) -> str | None:
    """Return the letter at the start of an answer such as "C) 5 m" or "Option C"; None if there is none, or if the answer names two."""
    match = _CHOICE_WITH_TEXT.match(_TEXT_COMMAND.sub(r"\1", answer))
    return match[1] if match and not _OTHER_CHOICE.search(match[2]) else None


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
    return (kind, entries) if entries is not None and (len(entries) > 1 or kind == "set") else None


def _split_commas(body: str) -> list[str] | None:
    """Split at the commas outside all brackets; return None if a bracket closes that was never opened, as in the body of (1,2)u(3,4)."""
    entries, depth, start = [], 0, 0
    for i, character in enumerate(body):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character == "," and depth == 0:
            entries.append(body[start:i])
            start = i + 1
    return [*entries, body[start:]]


def _equal_collections(ours: str, theirs: str) -> bool:
    """Compare two collections by their entries: in order for tuples, intervals and matrices, in any order for sets and bare lists."""
    first, second = _collection(ours), _collection(theirs)
    if first is None or second is None or first[0] != second[0] or "" in first[1]:  # nothing equals an empty entry
        return False
    values = [_value(entry) for entry in first[1]], [_value(entry) for entry in second[1]]
    if first[0] in ("set", "list"):
        return Counter(values[0]) == Counter(values[1])
    return values[0] == values[1]
