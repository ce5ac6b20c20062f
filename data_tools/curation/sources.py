"""The sixteen sources of s1's pool (arXiv 2501.19393, table 7): datasets on the hub -> rows of a pool.

An entry of the table says where the rows of a source are, which columns are question, reference and domain, and which rows its rule takes.
Layouts and rules are those of the released code (simplescaling/s1, data/collect_data.py). Three things differ:

- AIME ends in 2021, as in the paper. The released code ends in 2022.
- A question of OlympiadBench has its context before it, and one of AQuA-RAT its options below it. The released code leaves these out.
- A draw is a function of the seed. The draws of the released code also keep some questions by name.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from s1jax.data.columns import columns_of, filled_text_of, is_empty, text_of
from s1jax.data.row_files import hub_rows
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

logger = logging.getLogger("data_tools.curation")

Row = dict[str, Any]


class HubRows(NamedTuple):
    """The rows of a split of a hub dataset."""

    dataset: str
    split: str = "train"
    subset: str = ""
    files: tuple[str, ...] = ()
    """The JSON files that are the split, where the dataset does not say so itself."""

    @property
    def name(self) -> str:
        """What an entry of a pool calls them: `ORG/NAME`, `ORG/NAME:SUBSET` or `ORG/NAME:SUBSET:SPLIT`."""
        return f"{self.dataset}:{self.subset}:{self.split}".removesuffix(":train").removesuffix(":")

    def read(self, revision: str | None) -> Iterator[tuple[int, Row]]:
        """Yield the number of each row, from 1, and its columns. Raises FileNotFoundError if the hub does not give them."""
        rows = hub_rows(self.dataset, self.split, self.subset or None, files=self.files, revision=revision)
        yield from ((number, row) for _, number, row, _ in rows)


class SourceRow(NamedTuple):
    """A row of a source: its place, its columns in the dataset, and those of the pool, or why it has none."""

    file: str
    line: int
    original: Row
    columns: Row | UserError


Rule = Callable[[Row, bool], bool]
Reader = str | Callable[[Row], Any]
"""The column that holds something, or a function that makes it from a row."""


@dataclass(frozen=True)
class Source:
    """How the rows of a source become rows of the pool."""

    parts: tuple[HubRows, ...]
    question: Reader
    reference: Reader = lambda row: None
    domain: Reader = lambda row: None
    takes: Rule = lambda row, is_listed: True
    """The rule of the source. It is given a row, and whether its question is listed."""
    listed: tuple[HubRows, str] | None = None
    """Rows, and their column, that list questions for the rule."""
    draw: Callable[[list[SourceRow], random.Random], list[SourceRow]] | None = None
    """Chooses some of the rows that the rule takes."""

    @property
    def datasets(self) -> list[str]:
        """The datasets that are read."""
        parts = (*self.parts, *([self.listed[0]] if self.listed else []))
        return list(dict.fromkeys(part.dataset for part in parts))


def source_rows(name: str, revisions: dict[str, str | None], seed: int) -> Iterator[SourceRow]:
    """Yield the rows of a source of s1: those that its rule takes and its draw chooses, and all bad rows.

    `revisions` is the commit of each dataset, None if it is not known. Raises FileNotFoundError if the hub does not give a dataset.
    """
    source = SOURCES[name]
    listed: set[str] = set()
    if source.listed is not None:
        part, column = source.listed
        listed = {_key(row, column) for _, row in part.read(revisions[part.dataset])}
    num_rows = num_dropped = 0
    drawable: list[SourceRow] = []
    for part in source.parts:
        for line, original in part.read(revisions[part.dataset]):
            num_rows += 1
            row = SourceRow(part.name, line, original, _read(source, name, original, listed))
            if not row.columns:
                num_dropped += 1
            elif source.draw is None or isinstance(row.columns, UserError):
                yield row
            else:
                drawable.append(row)
    drawn = []
    if source.draw is not None:
        drawn = source.draw(drawable, random.Random(f"source {name} {seed}"))
        yield from drawn
    of_drawn = f"; {len(drawn):,} of {len(drawable):,} are drawn" if source.draw else ""
    logger.info("s1:%s: %s rows, its rule leaves out %s%s", name, f"{num_rows:,}", f"{num_dropped:,}", of_drawn)


def _read(source: Source, name: str, row: Row, listed: set[str]) -> Row | UserError:
    """Return the columns of the pool, none if the rule drops the row, or why the row is bad."""
    try:
        is_listed = source.listed is not None and _key(row, source.question) in listed
        if not source.takes(row, is_listed):
            return {}
        question, reference, domain = (
            _get(row, reader) for reader in (source.question, source.reference, source.domain)
        )
        return {"question": question, "reference": reference, "domain": domain, "source": name}
    except UserError as error:
        return error


def _get(row: Row, reader: Reader) -> Any:
    """Return what a reader finds in a row. Raises UserError if the row lacks the column."""
    if not isinstance(reader, str):
        return reader(row)
    if reader not in row:
        raise UserError(f"no column {reader}: the columns are {columns_of(row)}")
    return row[reader]


def _key(row: Row, reader: Reader) -> str:
    return text_of("question", _get(row, reader)).strip()


def _is(**values: Any) -> Rule:
    """Return a rule that takes the rows with these values."""
    return lambda row, is_listed: all(_get(row, column) == value for column, value in values.items())


def _stripped(column: str) -> Reader:
    return lambda row: text_of(column, _get(row, column)).strip()


def _first(column: str) -> Reader:
    """Return a reader of the first item of a list."""

    def read(row: Row) -> Any:
        items = _get(row, column)
        if not is_empty(items) and not isinstance(items, list):
            raise UserError(f"{column} is not a list: it is {shortened(items)}")
        return items[0] if items else None

    return read


def _takes_aime(row: Row, is_listed: bool) -> bool:
    year = str(_get(row, "ID")).partition("-")[0]
    if not year.isdecimal():
        raise UserError(f"no year begins the ID: it is {shortened(row['ID'])}")
    return int(year) <= 2021


def _agieval_question(row: Row) -> str:
    """Return the passage, a blank line, the question, and a line for each option. Only the question is in every subset."""
    passage = text_of("passage", row.get("passage")).strip()
    question = filled_text_of("question", _get(row, "question"))
    options = text_of("options", row.get("options"), lines=True)
    return "\n".join(filter(None, (passage and f"{passage}\n", question, options)))


def _agieval_reference(row: Row) -> Any:
    """Return the solution; for the subsets without solutions the letter of the right option, or the answer."""
    return next((row[name] for name in ("solution", "label", "answer") if not is_empty(row.get(name))), None)


def _takes_agieval(row: Row, is_listed: bool) -> bool:
    """Only the subset `math_agieval` has levels."""
    return is_empty(row.get("level")) or str(row["level"]).removesuffix(".0") == "5"


def _olympiad_question(row: Row) -> str:
    question = filled_text_of("question", _get(row, "question"))
    context = text_of("context", row.get("context")).strip()
    return f"{context}\n\n{question}" if context else question


def _clue(row: Row) -> str:
    before, marker, clue = text_of("input", _get(row, "input")).partition("### Clue: ")
    if not marker or not clue.strip():
        raise UserError(f"no clue in the column input: it is {shortened(before)}")
    return (
        "Solve the crossword puzzle. You are presented with a clue as input and the number of letters in brackets."
        f"\n\n{clue}"
    )


def _scieval_question(row: Row) -> str:
    question = text_of("question", _get(row, "question")).partition("\n\nAnswer:")[0]
    for sought in ("solvent", "ligand", "reactant"):
        question = question.replace(f"\nOptimal {sought}:", f"\nWhat is the optimal {sought}?")
    return question


def _draw_any(num: int) -> Callable[[list[SourceRow], random.Random], list[SourceRow]]:
    """Return a draw of `num` rows, each equally likely, which keeps their order."""
    return lambda rows, rng: [rows[i] for i in sorted(rng.sample(range(len(rows)), min(num, len(rows))))]


def _draw_spread(rows: list[SourceRow], rng: random.Random) -> list[SourceRow]:
    """Return 250 rows: the tasks take turns, and in each task its topics."""
    tasks: dict[str, dict[str, list[SourceRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rng.sample(rows, len(rows)):
        task, topic = (json.dumps(row.original.get(name)) for name in ("task_name", "topic"))
        tasks[task][topic].append(row)
    by_task = [_turns([tasks[task][topic] for topic in sorted(tasks[task])]) for task in sorted(tasks)]
    return _turns(by_task)[:250]


def _turns(lists: list[list[SourceRow]]) -> list[SourceRow]:
    """Return the items of lists that take turns, as long as they last."""
    return [row for turn in itertools.zip_longest(*lists) for row in turn if row is not None]


_ARENA = ("Math", "Physics", "Chemistry", "Biology", "Geography", "Astronomy", "CS")
_OLYMPIAD = ("OE_TO_maths_en_COMP", "OE_TO_physics_en_COMP", "TP_TO_maths_en_COMP", "TP_TO_physics_en_COMP")
_AGIEVAL = ("sat_en", "sat_math", "lsat_ar", "lsat_lr", "lsat_rc", "logiqa", "aqua_rat", "math_agieval")
# Release 3, which holds releases 1 and 2.
_LIVE_CODE = ("test.jsonl", "test2.jsonl", "test3.jsonl")

SOURCES: dict[str, Source] = {
    "MATH": Source((HubRows("simplescaling/openaimath"),), "problem", "solution", "subject"),
    "OlympicArena": Source(
        tuple(HubRows("GAIR/OlympicArena", split, subject) for split in ("test", "val") for subject in _ARENA),
        "problem",
        "solution",
        "subject",
        _is(language="EN", modality="text-only"),
    ),
    "TheoremQA": Source(
        (HubRows("TIGER-Lab/TheoremQA", "test"),),
        "Question",
        "Answer",
        takes=lambda row, _: _get(row, "Picture") is None,
    ),
    "NuminaMATH": Source(
        (HubRows("AI-MO/NuminaMath-CoT"),),
        "problem",
        "solution",
        "source",
        lambda row, is_listed: is_listed or _get(row, "source") == "aops_forum",
        (HubRows("simplescaling/numinamath_500"), "problem"),
    ),
    "OmniMath": Source((HubRows("KbsdJames/Omni-MATH", "test"),), "problem", "solution", _first("domain")),
    "SciEval": Source(
        (HubRows("OpenDFM/SciEval", "test"), HubRows("OpenDFM/SciEval", "validation")),
        _scieval_question,
        _first("answer"),
        "category",
        lambda row, _: not is_empty(_get(row, "answer")),
        draw=_draw_spread,
    ),
    "OlympiadBench": Source(
        tuple(HubRows("Hothan/OlympiadBench", subset=subset) for subset in _OLYMPIAD),
        _olympiad_question,
        _first("solution"),
        "subject",
    ),
    "JEEBench": Source((HubRows("daman1209arora/jeebench", "test"),), "question", "gold", "subject"),
    "AGIEval": Source(
        tuple(HubRows("baber/agieval", split, subset) for subset in _AGIEVAL for split in ("test", "few_shot")),
        _agieval_question,
        _agieval_reference,
        takes=_takes_agieval,
    ),
    "s1-prob": Source((HubRows("simplescaling/s1-prob"),), "question", "solution"),
    "GPQA": Source(
        (HubRows("Idavidrein/gpqa", subset="gpqa_extended"),),
        "Question",
        "Explanation",
        "High-level domain",
        lambda row, is_listed: not is_listed,
        (HubRows("Idavidrein/gpqa", subset="gpqa_diamond"), "Question"),
    ),
    "xword": Source((HubRows("0xharib/xword1"),), _clue, "output", draw=_draw_any(1000)),
    "USACO": Source((HubRows("codegenning/usacobench_formatted", "test"),), _stripped("question")),
    "s1-teasers": Source((HubRows("simplescaling/s1-teasers"),), _stripped("Question"), "Answer"),
    "LiveCodeBench": Source(
        (HubRows("livecodebench/code_generation_lite", "test", files=_LIVE_CODE),),
        _stripped("question_content"),
        takes=_is(difficulty="hard"),
    ),
    "AIME": Source((HubRows("qq8933/AIME_1983_2024"),), "Question", "Answer", takes=_takes_aime),
}
"""The sources by name, in the order in which the released code collects them. Decontamination depends on it."""
