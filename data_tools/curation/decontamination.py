"""The stage decontamination of curation: no question of the pool is one that a model will be evaluated on.

A question is rejected by the first of these rules that holds:

1. It equals a held-out question, apart from spelling (`spelling.py`). The length of the question does not matter.
2. It shares `ngram` words in a row with a held-out question: the paper's rule (arXiv 2501.19393, section 2.1), lowercase, white space
   collapsed, punctuation kept. A question of fewer words never matches (`ngrams.py`).
3. It is nearly a held-out question: one word differs, or the two are similar (`near_questions.py`).

With `between_sources`, the questions that a source keeps join the list that later sources are checked against, by rules 1 and 2.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import pyarrow as pa

from data_tools.curation.near_questions import NearQuestions
from data_tools.curation.ngrams import NgramIndex, Ngrams
from data_tools.curation.spelling import check_installed, check_threshold, spell
from data_tools.curation.stage import Result, Rows, Stage, in_parts, verdicts
from s1jax.evaluate.problems import Problem, read_problems
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types

VERSION = 1


@dataclass(frozen=True)
class DecontaminationConfig:
    """Which questions must not be trained on, and what counts as one of them."""

    heldout: tuple[InputPath, ...] = ()
    """Held-out problems: names of benchmarks (aime24, math500, ...), JSONL or Parquet files, or hub datasets (ORG/NAME)."""
    ngram: int = 8
    """Number of consecutive words that a question may not share with a held-out one."""
    between_sources: bool = False
    """Also check each source against the questions that earlier sources keep, in the order in which sources first occur in the pool."""
    boilerplate: tuple[str, ...] = ()
    """Phrases that many questions share, such as "where * and * are relatively prime positive integers. Find *". Shared words do not
    count if more than half of them lie inside such phrases. `*` is any one word. Case and punctuation at the ends of words are ignored."""
    near_threshold: float = 0.8
    """Similarity from which a question is nearly a held-out one: the Jaccard index of their runs of five characters. 0: near equality
    does not count, not even where only one word differs."""

    def __post_init__(self) -> None:
        check_types(self)
        check_threshold("near_threshold", self.near_threshold)
        if self.ngram < 1:
            raise UserError(f"ngram is {self.ngram}: it must be at least 1")
        if not all(phrase.strip() for phrase in self.boilerplate):
            raise UserError("boilerplate has an empty phrase: each needs a word")


class Rules(NamedTuple):
    """The settings of the rules."""

    ngram: int
    boilerplate: tuple[str, ...]
    near_threshold: float


class Match(NamedTuple):
    """Why a question is one of the known questions."""

    rank: tuple[int, int]
    """Smaller for a stronger match: the rule, then minus the number of shared words."""
    reason: str
    detail: str


def stage(config: DecontaminationConfig) -> Stage:
    """Return the stage. It adds no columns; `detail` names the counterpart.

    Raises UserError if it has nothing to check against, if two held-out sets have one name, or if datasketch is missing.
    """
    if not config.heldout and not config.between_sources:
        raise UserError("the stage decontamination needs --decontamination.heldout: the problems of your evaluation")
    if config.near_threshold:
        check_installed("decontamination.near_threshold")
    sets = [read_problems(source) for source in config.heldout]
    names = [problems[0].benchmark for problems in sets]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"heldout has two sets that are called {twice[0]}: rename one of the files")
    settings = asdict(config) | {"heldout": [*zip(names, map(_digest, sets), strict=True)]}
    rules = Rules(config.ngram, config.boilerplate, config.near_threshold)
    known = tuple(problem for problems in sets for problem in problems)
    return Stage("decontamination", VERSION, settings, partial(_check, known, rules, config.between_sources))


def _digest(problems: Sequence[Problem]) -> str:
    content = json.dumps([(problem.problem_id, problem.question) for problem in problems])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check(heldout: tuple[Problem, ...], rules: Rules, between_sources: bool, rows: Rows) -> Iterable[pa.Table]:
    parts = rows.map(partial(_check_part, heldout, rules), "question")
    return in_parts(_check_between(pa.concat_tables(parts), rules, rows), rows) if between_sources else parts


def _check_part(heldout: tuple[Problem, ...], rules: Rules, rows: pa.Table) -> pa.Table:
    questions = rows["question"].to_pylist()
    known, near = _indexes(heldout, rules)
    matches = [known.match(Question(question, rules.ngram)) for question in questions]
    reasons = [match and match.reason for match in matches]
    details = [match and match.detail for match in matches]
    if near is not None:
        rest = [i for i, match in enumerate(matches) if match is None]
        for i, found in zip(rest, near.of([questions[i] for i in rest]), strict=True):
            if found is not None:
                reasons[i], details[i] = "is nearly a held-out question", _name(heldout[found])
    return verdicts(rows, reasons, details)


def _name(problem: Problem) -> str:
    return f"{problem.benchmark} {problem.problem_id}"


@lru_cache(1)
def _indexes(heldout: tuple[Problem, ...], rules: Rules) -> tuple[KnownQuestions, NearQuestions | None]:
    """Return the indexes of the held-out questions. They are made once per process."""
    texts = [problem.question for problem in heldout]
    questions = [Question(text, rules.ngram) for text in texts]
    known = KnownQuestions("a held-out question", list(map(_name, heldout)), questions, rules)
    threshold = rules.near_threshold
    return known, NearQuestions(texts, 2 * rules.ngram, threshold) if threshold else None


def _check_between(found: pa.Table, rules: Rules, rows: Rows) -> pa.Table:
    """Return verdicts on all rows: those found so far, and those on rows that share words with a source before theirs."""
    table = rows.table("question", "source", "id")
    texts, sources, ids = (table[name].to_pylist() for name in ("question", "source", "id"))
    reasons, details = found["reason"].to_pylist(), found["detail"].to_pylist()
    of_source: dict[str, list[int]] = defaultdict(list)
    for i, source in enumerate(sources):
        of_source[source].append(i)
    earlier: list[KnownQuestions] = []
    for source, places in of_source.items():
        kept: dict[int, Question] = {}
        for i in places:
            if reasons[i] is not None:
                continue
            question = Question(texts[i], rules.ngram)
            matches = [match for known in earlier if (match := known.match(question))]
            if matches:
                best = min(matches, key=lambda match: match.rank)
                reasons[i], details[i] = best.reason, best.detail
            else:
                kept[i] = question
        names = [f"{source} {ids[i]}" for i in kept]
        earlier.append(KnownQuestions("a question of an earlier source", names, list(kept.values()), rules))
    return verdicts(table, reasons, details)


class Question:
    """What the first two rules compare of a question."""

    def __init__(self, text: str, ngram: int):
        self.identity = spell(text).identity
        self.ngrams = Ngrams(text, ngram)


class KnownQuestions:
    """An index of questions that must not occur again."""

    def __init__(self, noun: str, names: Sequence[str], questions: Sequence[Question], rules: Rules):
        """`noun` says in reasons what the questions are; `names` say in details which one it is."""
        self._noun, self._names, self._rules = noun, names, rules
        self._by_spelling: dict[tuple[str, ...], int] = {}
        for i, question in enumerate(questions):
            self._by_spelling.setdefault(question.identity, i)
        self._ngrams = NgramIndex([question.ngrams for question in questions])

    def match(self, question: Question) -> Match | None:
        """Return how a question equals a known one or shares words with one, or None."""
        if (same := self._by_spelling.get(question.identity)) is not None:
            return Match((0, 0), f"equals {self._noun}", self._names[same])
        run = self._ngrams.longest_run(question.ngrams, self._rules.boilerplate)
        if run is None:
            return None
        reason = f"shares {self._rules.ngram} words with {self._noun}"
        return Match((1, -len(run.words)), reason, f'{self._names[run.known]}: "{" ".join(run.words)}"')


def overlap_counts(rows: Rows, result: Result) -> Counter[tuple[str, str]]:
    """Return the number of rejected rows for each (source, held-out set), where a set may also be an earlier source.

    `result` is what the stage gave for `rows`. A row counts for the set of the question that its detail names.
    """
    table = rows.table("source")
    sources = table["source"].to_pylist()
    sets = sorted({*(name for name, _ in result.summary["settings"]["heldout"]), *sources}, key=len, reverse=True)
    counts: Counter[tuple[str, str]] = Counter()
    for source, detail in zip(sources, result.verdicts()["detail"].to_pylist(), strict=True):
        if detail is not None:
            # A name may begin like another one, as in "aime" and "aime 2024".
            counts[source, next(name for name in sets if detail.startswith(f"{name} "))] += 1
    return counts
