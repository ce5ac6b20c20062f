"""The stage selection of curation: all rows that the earlier stages kept -> the rows of the training set.

The method `s1k` is algorithm 1 of s1 (arXiv 2501.19393). First it takes every row of the benchmark sources that has a correct trace, and of
the long sources every row that has a correct and long trace. Then it draws one row at a time, without replacement: a domain, each equally
likely, then a row of it. The row of rank r has the weight 2^-r; the longest trace has rank 0. A domain without rows is dropped.

Invariant: the selection is a function of the rows and the seed. It does not depend on the order of the pool.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from typing import Literal, NamedTuple

import pyarrow as pa

from data_tools.curation.stage import Rows, Stage, in_parts, verdicts
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types
from s1jax.runtime.terminal import shortened

logger = logging.getLogger("data_tools.curation")

VERSION = 1
SelectionMethod = Literal["s1k", "s1k_released", "diverse", "random", "longest", "full"]
_PRESELECTING = ("s1k", "s1k_released")
# The cumulative weights of the ranks. A rank past 64 is never drawn: its weight is below the resolution of the random number.
_RANK_WEIGHTS = list(accumulate(2.0**-rank for rank in range(64)))


@dataclass(frozen=True)
class SelectionConfig:
    """Which of the remaining rows are chosen."""

    method: SelectionMethod = "s1k"
    """`s1k`: algorithm 1 of the paper. `s1k_released`: the same, but once 70% of `num` are chosen, domains are drawn in proportion to
    their rows of `benchmark_sources`, as in the released code. `diverse`: algorithm 1 without the preselected rows. `random`: each row is
    equally likely. `longest`: the longest traces. `full`: all rows."""
    num: int = 1000
    """Number of rows to choose; `full` ignores it."""
    seed: int = 0
    """Seed of the random draws."""
    benchmark_sources: tuple[str, ...] = ("AIME", "GPQA")
    """Sources whose names begin so: `s1k` chooses each of their rows that has a correct trace."""
    long_sources: tuple[str, ...] = ("MATH",)
    """Sources whose names begin so: `s1k` chooses each of their rows that has a correct and long trace."""
    min_long_tokens: int = 5600
    """A trace is long if it has more tokens than this."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.num < 1:
            raise UserError(f"num is {self.num}: it must be at least 1")
        if self.min_long_tokens < 0:
            raise UserError(f"min_long_tokens is {self.min_long_tokens}: it must be 0 or more")
        if "" in (*self.benchmark_sources, *self.long_sources):
            raise UserError("benchmark_sources and long_sources hold an empty name, with which every source begins")


class Candidate(NamedTuple):
    """What the selection knows of a row."""

    id: str
    question: str
    source: str = ""
    domain: str = ""
    num_thinking_tokens: int = 0
    correct: bool | None = None


def check_stages(config: SelectionConfig, before: Sequence[str]) -> None:
    """Raise UserError if a stage that the method needs is not among those before the selection."""
    needs: list[tuple[str, ...]] = [] if config.method in ("random", "full") else [("lengths",)]
    needs += [("quality", "traces")] if config.method in _PRESELECTING else []
    for stages in needs:
        if not any(name in before for name in stages):
            raise UserError(f"the selection {config.method} needs the stage {' or '.join(stages)} before it")


def stage(config: SelectionConfig) -> Stage:
    """Return the stage. Its run raises UserError if there are too few rows. The stages before it must be those of `check_stages`."""
    return Stage("selection", VERSION, asdict(config), partial(_run, config))


def _run(config: SelectionConfig, rows: Rows) -> Iterator[pa.Table]:
    columns = ["id", "question", "source", "domain"]
    if config.method not in ("random", "full"):
        columns.append("num_thinking_tokens")
    if config.method in _PRESELECTING:
        columns.append("correct")
    table = rows.table(*columns)
    candidates = [Candidate(**row) for row in table.drop_columns("row").to_pylist()]
    chosen = select(candidates, config)
    num_candidates = Counter(row.domain for row in candidates)
    num_chosen = Counter(candidates[i].domain for i in chosen)

    def detail(domain: str) -> str:
        return f"{num_chosen[domain]:,} of {num_candidates[domain]:,} rows of domain {_name(domain)} are chosen"

    reasons = [None if i in chosen else "not drawn" for i in range(len(candidates))]
    details = [chosen.get(i) or detail(row.domain) for i, row in enumerate(candidates)]
    yield from in_parts(verdicts(table, reasons, details), rows)


def select(rows: Sequence[Candidate], config: SelectionConfig) -> dict[int, str]:
    """Return the index of each chosen row, and how it was chosen: "preselected" or the method.

    If more rows are preselected than wanted, the draw of `diverse` decides among them. Raises UserError if there are too few rows.
    """
    if config.method == "full":
        return dict.fromkeys(range(len(rows)), "full")
    check_enough(rows, config.num)
    # Questions are unique only after the stage duplicates.
    order = sorted(range(len(rows)), key=lambda i: (rows[i].id, rows[i].question, rows[i].source))
    if config.method == "random":
        return dict.fromkeys(random.Random(f"random {config.seed}").sample(order, config.num), "random")
    order.sort(key=lambda i: -rows[i].num_thinking_tokens)  # equal lengths keep their order
    if config.method == "longest":
        return dict.fromkeys(order[: config.num], "longest")

    rng = random.Random(f"diversity {config.seed}")
    chosen: dict[int, str] = {}
    if config.method in _PRESELECTING:
        chosen = {i: "preselected" for i in order if is_preselected(rows[i], config)}
        if len(chosen) > config.num:
            logger.warning("%d rows are preselected: %d of them are drawn", len(chosen), config.num)
            return dict.fromkeys(_draw(rows, chosen, rng, config.num, Counter(), 0), "preselected")
        if not chosen:
            sources = ", ".join(sorted({*config.benchmark_sources, *config.long_sources}))
            logger.warning("no row is preselected: none of %s has a correct trace that the rule takes", sources)
    histogram: Counter[str] = Counter()
    if config.method == "s1k_released":
        histogram.update(row.domain for row in rows if row.source.startswith(config.benchmark_sources))
    late = -(-7 * config.num // 10)  # 700 of 1,000
    rest = [i for i in order if i not in chosen]
    num_uniform = max(0, late - len(chosen))
    drawn = _draw(rows, rest, rng, config.num - len(chosen), histogram, num_uniform)
    return chosen | dict.fromkeys(drawn, config.method)


def is_preselected(row: Candidate, config: SelectionConfig) -> bool:
    """Return whether algorithm 1 takes a row without a draw."""
    is_long = row.num_thinking_tokens > config.min_long_tokens
    takes = row.source.startswith(config.benchmark_sources) or (row.source.startswith(config.long_sources) and is_long)
    return bool(row.correct and takes)


def _draw(
    rows: Sequence[Candidate],
    order: Iterable[int],
    rng: random.Random,
    num: int,
    histogram: Counter[str],
    num_uniform: int,
) -> list[int]:
    """Draw `num` of the rows in `order`, whose traces become shorter. After `num_uniform` draws `histogram` weighs the domains.

    A domain that the histogram lacks has the weight 0. If only such domains are left, each is equally likely again.
    """
    domains: dict[str, list[int]] = defaultdict(list)
    for i in order:
        domains[rows[i].domain].append(i)
    names = sorted(domains)
    drawn: list[int] = []
    while len(drawn) < num:
        weights = [histogram[name] for name in names] if len(drawn) >= num_uniform else []
        name = rng.choices(names, weights)[0] if any(weights) else rng.choice(names)
        domain = domains[name]
        ranks = range(min(len(domain), len(_RANK_WEIGHTS)))
        (rank,) = rng.choices(ranks, cum_weights=_RANK_WEIGHTS[: len(ranks)])
        drawn.append(domain.pop(rank))
        if not domain:
            names.remove(name)
    return drawn


def check_enough(rows: Sequence[Candidate], num: int) -> None:
    """Raise UserError if there are fewer than `num` rows."""
    if len(rows) >= num:
        return
    counts = sorted(Counter(row.domain for row in rows).items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{_name(name)} {count:,}" for name, count in counts[:12])
    more = f", and {len(counts) - 12:,} more domains" if len(counts) > 12 else ""
    raise UserError(
        f"the selection cannot choose {num:,} rows: only {len(rows):,} are left (by domain: {shown or 'none'}{more}). Give a larger pool,"
        f" loosen the stages before (the funnel shows what each rejects), or lower --selection.num"
    )


def _name(domain: str) -> str:
    return shortened(domain, 60, quotes=False) if domain else "(none)"
