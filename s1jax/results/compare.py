"""Paired comparison of two conditions of one file of sample rows, or of two files.

Columns whose values on the two sides have nothing in common set the sides apart. Settings that are equal in all other columns are compared,
over the problems that both have.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from s1jax.results.divergence import TokenReader, compare_texts
from s1jax.results.metrics import by_setting
from s1jax.results.paired import DRAWS, compare_answers, explain_test
from s1jax.results.run_tables import p_text
from s1jax.results.samples import COLUMNS, SETTING, SampleRow, distinct_samples, pick, read_samples, row_key
from s1jax.results.tables import CurveNames, percent, setting_text
from s1jax.results.turns import trace_key
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable, write_file
from s1jax.runtime.terminal import shortened
from s1jax.runtime.text_table import Table

logger = logging.getLogger(__name__)

Comparison = dict[str, Any]
"""The settings `a` and `b` (columns of `SETTING`), the result of `compare_answers`, `mean_thinking_tokens_a` and `_b`, the numbers of
problems that only one side has (`num_only_a`, `num_only_b`), and `texts`, the result of `compare_texts` for the answers of equal draws."""

_CHOICES = (*SETTING, "seed")
_SHOWN = 3
"""The earliest divergences, each of another problem, that stand below a table."""


@dataclass(frozen=True)
class CompareConfig:
    """The rows to compare, and which of them are A and B."""

    rows: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="A [B]")]
    """Sample rows (JSONL) that evaluate.py and sweep.py wrote: the file of A, and that of B. One file may hold both: choose with --a and
    --b."""
    a: tuple[str, ...] = ()
    """Which rows are A: values of columns, such as num_ignore=0 dtype=float32. Default: all rows of the file."""
    b: tuple[str, ...] = ()
    """Which rows are B."""
    output: Path | None = None
    """JSON file for the comparisons, with all places where texts begin to differ."""
    draws: int = DRAWS
    """Random draws of tests and intervals over problems with several answers."""
    seed: int = 0
    """Seed of these draws."""

    def __post_init__(self) -> None:
        if len(self.rows) not in (1, 2):
            raise UserError(f"give one file of sample rows or two, not {len(self.rows)}")
        if not 100 <= self.draws <= 10**6:
            raise UserError(f"draws is {self.draws}; it must be from 100 to 1000000")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative")


def compare(config: CompareConfig, read_tokens: TokenReader | None = None) -> str:
    """Return the tables of all comparisons as text, and write them to `config.output` as JSON.

    `read_tokens` reads recorded tokens; without it, only texts are compared. Raises UserError for a bad row or choice, if no row is chosen,
    and if nothing can be paired.
    """
    if config.output is not None:
        check_writable(config.output)
        if config.output.exists() and not _holds_comparisons(config.output):
            raise UserError(f"--output {config.output} is of another program: give another one, or remove it")
    files = (config.rows[0], config.rows[-1])
    if files[0].resolve() == files[1].resolve() and (not config.a or not config.b or config.a == config.b):
        raise UserError(
            f"A and B are of one file: choose rows with --a and --b, by {_varying(distinct_samples(read_samples(files[0])))}"
        )
    sides = tuple(
        _choose(distinct_samples(read_samples(file)), choices, f"--{name}", file)
        for file, choices, name in zip(files, (config.a, config.b), "ab", strict=True)
    )
    if files[0].resolve() == files[1].resolve() and (both := set(map(row_key, sides[0])) & set(map(row_key, sides[1]))):
        raise UserError(
            f"{counted(len(both), 'row')} would be in A and in B: choose with --a and --b what sets them apart"
        )
    comparisons = compare_sides(sides[0], sides[1], files, config.draws, config.seed, read_tokens)
    if config.output is not None:
        write_file(config.output, json.dumps(comparisons, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return _format(comparisons, files, config.draws, config.seed)


def _holds_comparisons(path: Path) -> bool:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, list) and all(isinstance(c, dict) and {"a", "b", "p_value"} <= c.keys() for c in content)


def _text_of(value: Any) -> str:
    """Return a value of a column as a choice writes it."""
    return "+".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _varying(rows: Sequence[SampleRow]) -> str:
    """Name the columns of which the rows have several values, with the first few values."""
    values = {name: list(dict.fromkeys(_text_of(row[name]) for row in rows)) for name in _CHOICES}
    several = {name: texts for name, texts in values.items() if len(texts) > 1}
    if not several:
        return "nothing: all its rows have one setting, so give a second file"
    return "; ".join(
        f"{name} ({', '.join(shortened(text, 30) for text in texts[:6])}{', ...' if len(texts) > 6 else ''})"
        for name, texts in several.items()
    )


def _choose(rows: Sequence[SampleRow], choices: Sequence[str], flag: str, file: Path) -> list[SampleRow]:
    """Return the rows with the chosen values of columns."""
    chosen = list(rows)
    for choice in choices:
        name, equals, text = choice.partition("=")
        if not equals or name not in _CHOICES:
            raise UserError(f"{flag} {shortened(choice)}: give column=value; columns: {', '.join(_CHOICES)}")
        if COLUMNS[name] is float and (number := _number(text)) is not None:
            text = _text_of(number)
        values = dict.fromkeys(_text_of(row[name]) for row in chosen)
        chosen = [row for row in chosen if _text_of(row[name]) == text]
        if not chosen:
            known = ", ".join(shortened(value, 40) for value in list(values)[:8])
            raise UserError(f"{flag} {shortened(choice)}: no row of {file} has this value; its values: {known}")
    return chosen


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def compare_sides(
    a_rows: Sequence[SampleRow],
    b_rows: Sequence[SampleRow],
    files: tuple[Path, Path],
    draws: int = DRAWS,
    seed: int = 0,
    read_tokens: TokenReader | None = None,
) -> list[Comparison]:
    """Return a comparison for each pair of settings that differ only in the columns that set the sides apart, in the order of B.

    Raises UserError if there is none, or if a problem has another question or answer on the other side.
    """
    a_side, b_side = list(by_setting(a_rows)), list(by_setting(b_rows))
    values = [{name: {setting[name] for setting, _ in side} for name in SETTING} for side in (a_side, b_side)]
    apart = [name for name in SETTING if name != "benchmark" and not values[0][name] & values[1][name]]
    alike = [name for name in SETTING if name not in apart]
    alike_pairs = [(a, b) for b in b_side for a in a_side if pick(a[0], alike) == pick(b[0], alike)]
    comparisons = [
        comparison
        for a, b in alike_pairs
        for comparison in _compare_settings(a[0], a[1], b[0], b[1], files, draws, seed, read_tokens)
    ]
    if not comparisons:
        why = "they have no problem in common" if alike_pairs else "no setting is in both; choose with --a and --b"
        if not values[0]["benchmark"] & values[1]["benchmark"]:
            why = "they have no benchmark in common"
        raise UserError(f"nothing of A and B can be paired: {why}")
    lone = [
        len(side) - len({pick(c[name], SETTING) for c in comparisons}) for side, name in ((a_side, "a"), (b_side, "b"))
    ]
    if any(lone):
        logger.info("%s only in A and %d only in B: left out", counted(lone[0], "setting"), lone[1])
    return comparisons


def _compare_settings(
    a: dict[str, Any],
    a_problems: Sequence[Sequence[SampleRow]],
    b: dict[str, Any],
    b_problems: Sequence[Sequence[SampleRow]],
    files: tuple[Path, Path],
    draws: int,
    seed: int,
    read_tokens: TokenReader | None,
) -> list[Comparison]:
    """Return the comparison of two settings, none if they have no problem in common."""
    of_a, of_b = ({group[0]["problem_id"]: group for group in side} for side in (a_problems, b_problems))
    common = [problem for problem in of_a if problem in of_b]
    for problem in common:
        digests = {row["problem"] for row in (*of_a[problem], *of_b[problem])} - {None}
        if len(digests) > 1:
            raise UserError(f"problem {shortened(problem)} has another question or answer in B than in A")
    if not common:
        return []
    sides = [[of_side[problem] for problem in common] for of_side in (of_a, of_b)]
    verdicts = [[[row["correct"] for row in group] for group in side] for side in sides]
    tokens = [
        statistics.fmean(statistics.fmean(row["num_thinking_tokens"] for row in group) for group in side)
        for side in sides
    ]
    pairs = []
    if bool(a["temperature"]) == bool(b["temperature"]):
        drawn = {trace_key(row): row for group in sides[0] for row in group}
        pairs = [(drawn[trace_key(row)], row) for group in sides[1] for row in group if trace_key(row) in drawn]
    return [
        {"a": a, "b": b, **compare_answers(verdicts[0], verdicts[1], draws, seed)}
        | {"mean_thinking_tokens_a": tokens[0], "mean_thinking_tokens_b": tokens[1]}
        | {"num_only_a": len(of_a) - len(common), "num_only_b": len(of_b) - len(common)}
        | {"texts": compare_texts(pairs, files, read_tokens)}
    ]


def _format(comparisons: Sequence[Comparison], files: tuple[Path, Path], draws: int, seed: int) -> str:
    """Return the tables of comparisons, one per pair of curves."""
    names = CurveNames([c[side] for c in comparisons for side in "ab"])
    by_title: dict[str, list[Comparison]] = {}
    for c in comparisons:
        by_title.setdefault(
            "\n".join(f"{s.upper()}: {names.title(c[s])} ({f})" for s, f in zip("ab", files, strict=True)), []
        ).append(c)
    blocks = []
    for title, group in by_title.items():
        header = (
            "setting", "problems", "A %", "95% interval", "B %", "95% interval", "B - A", "95% interval", "A better", "B better", "p",
            "A tokens", "B tokens",
        )  # fmt: skip
        cells = [
            (
                _label(c), str(c["num_problems"]), *percent(c, "accuracy_a"), *percent(c, "accuracy_b"), *_difference(c),
                str(c["num_a_better"]), str(c["num_b_better"]), p_text(c),
                f"{c['mean_thinking_tokens_a']:,.1f}", f"{c['mean_thinking_tokens_b']:,.1f}",
            )
            for c in group
        ]  # fmt: skip
        notes = ["A better, B better: problems on which that side has more right answers; tokens: of thinking, mean"]
        notes += explain_test({c["test"] for c in group}, draws, seed)
        if any(c["num_only_a"] or c["num_only_b"] for c in group):
            only = (max(c[f"num_only_{side}"] for c in group) for side in "ab")
            notes.append(
                "warning: up to {} only in A and {} only in B: left out".format(*(counted(n, "problem") for n in only))
            )
        blocks += [Table(title, header, cells, notes).text(), *_texts(group)]
    return "\n\n".join(blocks)


def _label(comparison: Comparison) -> str:
    a, b = setting_text(comparison["a"]), setting_text(comparison["b"])
    return a if a == b else f"{a} against {b}"


def _difference(comparison: Comparison) -> tuple[str, str]:
    middle, low, high = (100 * comparison[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{middle:+.1f}", f"{low:+.1f} to {high:+.1f}"


def _texts(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the table of where texts begin to differ, and the earliest places; nothing if no draw is on both sides."""
    if not any(c["texts"]["num_pairs"] for c in comparisons):
        return []
    header = ("where texts begin to differ", "answers", "equal", "first character", "median character")
    cells: list[tuple[str, ...]] = []
    earliest: dict[str, tuple[Comparison, dict[str, Any]]] = {}
    for c in comparisons:
        texts = c["texts"]
        places = (texts["first_character"], texts["median_character"])
        first, median = ("-" if place is None else f"{place:,.0f}" for place in places)
        cells.append((_label(c), str(texts["num_pairs"]), str(texts["num_equal"]), first, median))
        for found in texts["divergences"]:
            known = earliest.setdefault(found["problem_id"], (c, found))
            if found["character"] < known[1]["character"]:
                earliest[found["problem_id"]] = c, found
    notes = []
    for c, found in sorted(earliest.values(), key=lambda pair: pair[1]["character"])[:_SHOWN]:
        where = f"{_label(c)}, problem {shortened(found['problem_id'])}, character {found['character']:,}"
        if found.get("token") is not None:
            where += f", token {found['token']:,}"
        notes += [f"{where}:", *(f"  {side.upper()} {_side_text(found, side)}" for side in "ab")]
    return [Table("", header, cells, notes).text().lstrip("\n")]


def _side_text(found: dict[str, Any], side: str) -> str:
    token = found.get(f"token_{side}")
    logprob = found.get(f"logprob_{side}")
    drawn = "forced" if logprob is None else f"log-probability {logprob:.3f}"
    figures = "" if token is None else f"  (token id {token}, {drawn})"
    return f'"{found[f"text_{side}"]}"{figures}'
