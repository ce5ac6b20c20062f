"""Sample rows -> points of the stopping and voting rules of `replay.py`: accuracy against the tokens that each rule would have taken.

A family is the settings that differ only in their budget, so that they share their traces. Rules that vote replay the traces under the
largest budget. Rules that stop early take the answers under the smaller budgets as answers that were forked from these traces.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from s1jax.data.condition import check_integer
from s1jax.results.confidence import MEASURES, answer_probability, measure
from s1jax.results.grid import doublings, num_tokens
from s1jax.results.metrics import Point, by_setting, with_interval
from s1jax.results.replay import (
    Outcome,
    Probe,
    Trace,
    draw_subsets,
    stop_at_agreement,
    stop_at_confidence,
    vote,
    vote_by_confidence,
    vote_of_shortest,
    vote_online,
    whole_tokens,
)
from s1jax.results.samples import SETTING, SampleRow, pick
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types

Rule = Literal["votes", "shortest", "agreement", "confidence", "online", "answer_confidence"]
RULES: tuple[Rule, ...] = ("votes", "shortest", "agreement", "confidence", "online", "answer_confidence")

ReadRecords = Callable[[SampleRow], np.ndarray | None]
"""Returns the per-token figures of a row (`confidence.measure`, and `logprob`), one per emitted token; None if none were recorded."""


@dataclass(frozen=True)
class ReplayConfig:
    """The rows to replay, the rules, and their parameters."""

    rows: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROWS")]
    """Sample rows (JSONL) that evaluate.py and sweep.py wrote."""
    output: Path | None = None
    """JSON file for all figures. Default: none is written."""
    rules: tuple[Rule, ...] = RULES
    """votes: plain majority voting. shortest: the first traces to end vote. agreement: stop when answers repeat. confidence: votes weighted
    by confidence. online: stop traces of low confidence. answer_confidence: stop when an answer is confident."""
    votes: tuple[int, ...] = ()
    """Numbers of traces that vote. Default: the largest power of two that the samples allow, and for plain votes all below it, too."""
    shortest: tuple[int, ...] = (1, 3)
    """How many traces must end before the others are stopped."""
    equal_answers: tuple[int, ...] = (2, 3)
    """How many successive answers must be equal to stop a trace."""
    threshold: tuple[float, ...] = (0.8, 0.9, 0.95)
    """Probabilities of an answer (geometric mean over its tokens) above which a trace stops."""
    window: int = 2048
    """Tokens of a group, and of the tail, whose confidence is taken."""
    keep: tuple[float, ...] = (0.1, 0.9)
    """Shares of the most confident traces that may vote. Online they set the threshold."""
    warm_up: int = 16
    """Traces from which the online rule learns its threshold."""
    draws: int = 1000
    """Random subsets of the samples of a problem, for rules that have no formula. All subsets are taken if they are no more."""
    seed: int = 0
    """Seed of these draws."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("votes", "shortest", "equal_answers", "window", "warm_up", "draws"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                check_integer(name, number, least=2 if name == "equal_answers" else 1)
        check_integer("seed", self.seed)
        for name in ("rules", "shortest", "equal_answers", "threshold", "keep"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; give at least one")
        for name in ("keep", "threshold"):
            for share in getattr(self, name):
                if not 0 < share < 1:
                    raise UserError(f"{name} is {share}; it must be above 0 and below 1")


class Replayed(NamedTuple):
    """The points of all families, and which rules are missing where."""

    points: list[Point]
    """A point has the columns of a `_Family`'s setting, `rule`, `parameters` (a dict), `k`, `num_problems`, `accuracy` with its interval,
    and means over problems: `tokens`, `longest_trace` (both as in `Outcome`), and `share`, its tokens over those of k plain votes.
    `draws` is the number of random subsets, or None if it is over all subsets."""
    left_out: list[Point]
    """The columns of a `_Family`'s setting, `rule`, and the reason as `why`."""


@dataclass(frozen=True)
class _Problem:
    """The samples of one problem under one family."""

    seed: tuple[int, int]
    traces: list[Trace]
    probes: list[list[Probe]]
    """For each trace, the answers that were forked from it, and then its own answer."""


@dataclass
class _Family:
    setting: dict[str, Any]
    """The columns of the setting with the largest budget, `num_samples` (the fewest of any problem) and `num_budgets`."""
    problems: list[_Problem]
    missing: dict[Rule, str] = field(default_factory=dict)
    """Rules that cannot be replayed, and why."""


def replay(rows: Sequence[SampleRow], config: ReplayConfig, read_records: ReadRecords) -> Replayed:
    """Replay the rules of a config on all families of rows. The order of the rows changes nothing.

    Raises UserError if no problem has as many samples as votes are asked for.
    """
    points, left_out, most = [], [], 0
    for setting, groups in _families(rows):
        family = _read(setting, groups, config, read_records)
        num_samples = family.setting["num_samples"]
        most = max(most, num_samples)
        for rule in dict.fromkeys(config.rules):
            numbers = [] if rule in family.missing else _numbers_of_votes(rule, config, num_samples)
            found = [
                _point(family, rule, variant, k, config.draws)
                for k in numbers
                for variant in _variants(rule, config, k)
            ]
            points += found
            if not found:
                why = family.missing.get(rule) or _too_few(rule, config, num_samples)
                left_out.append(family.setting | {"rule": rule, "why": why})
    if config.votes and min(config.votes) > most:
        raise UserError(f"votes is {min(config.votes)}; the rows hold at most {counted(most, 'sample')} per problem")
    return Replayed(points, left_out)


def _numbers_of_votes(rule: Rule, config: ReplayConfig, num_samples: int) -> Sequence[int]:
    if config.votes:
        return sorted({k for k in config.votes if k <= num_samples})
    return doublings(num_samples) if rule == "votes" else doublings(num_samples)[-1:]


def _too_few(rule: Rule, config: ReplayConfig, num_samples: int) -> str:
    need = {"shortest": min(config.shortest) + 1, "online": config.warm_up + 1, "confidence": 2}.get(rule, 1)
    if need <= num_samples:
        return f"it needs at least {need} votes: raise --votes, up to {counted(num_samples, 'sample')} of each problem"
    return f"it needs at least {need} votes, and the problems have {counted(num_samples, 'sample')} each"


# ---- families ----


def _families(rows: Sequence[SampleRow]) -> Iterator[tuple[dict[str, Any], dict[str, list[list[SampleRow]]]]]:
    """Yield (setting with the largest budget, rows of each trace of each problem). A trace's rows have ascending budgets."""
    families: dict[tuple[Any, ...], list[tuple[dict[str, Any], list[list[SampleRow]]]]] = {}
    for setting, problems in by_setting(rows):
        # Under rejection sampling another budget accepts another trace.
        shared = [
            name for name in SETTING if name != "max_thinking_tokens" or setting["method"] == "rejection_sampling"
        ]
        families.setdefault(pick(setting, shared), []).append((setting, problems))
    for budgets in families.values():
        budgets.sort(key=lambda member: member[0]["max_thinking_tokens"])
        setting = budgets[-1][0]
        traces: dict[str, dict[tuple[int, int], list[SampleRow]]] = {}
        for _, problems in reversed(budgets):
            for row in (row for group in problems for row in group):
                draw = pick(row, ("seed", "sample_index")) if row["temperature"] else (0, 0)
                if row["max_thinking_tokens"] == setting["max_thinking_tokens"]:
                    traces.setdefault(row["problem_id"], {})[draw] = [row]
                elif draw in traces.get(row["problem_id"], {}):
                    traces[row["problem_id"]][draw].insert(0, row)
        yield setting, {name: [draws[draw] for draw in sorted(draws)] for name, draws in sorted(traces.items())}


def _read(
    setting: dict[str, Any], groups: dict[str, list[list[SampleRow]]], config: ReplayConfig, read_records: ReadRecords
) -> _Family:
    """Read the figures of a family, as far as a rule of the config needs them."""
    chains = [chain for group in groups.values() for chain in group]
    budgets = {row["max_thinking_tokens"] for chain in chains for row in chain}
    missing: dict[Rule, str] = {}
    if len(budgets) < 2:
        missing |= dict.fromkeys(("agreement", "answer_confidence"), "it needs answers under several budgets")
    elif short := sum(len(chain) < len(budgets) for chain in chains):
        why = f"{short} of {counted(len(chains), 'trace')} lack the answers under some of the {len(budgets)} budgets"
        missing |= dict.fromkeys(("agreement", "answer_confidence"), why)
    reads_traces = bool({"confidence", "online"} & {*config.rules})
    reads_answers = "answer_confidence" in config.rules and "answer_confidence" not in missing
    problems = []
    for name, group in groups.items():
        traces = [_trace(chain[-1], read_records if reads_traces else None, config.window) for chain in group]
        probes = [_probes(chain, read_records if reads_answers else None) for chain in group]
        problems.append(_Problem((config.seed, zlib.crc32(name.encode(errors="backslashreplace"))), traces, probes))
    lacking = sum(trace.confidence is None for problem in problems for trace in problem.traces)
    if lacking:
        why = f"{lacking} of {counted(len(chains), 'trace')} have no per-token figures"
        missing |= dict.fromkeys(("confidence", "online"), why)
    forks = [probe for problem in problems for chain in problem.probes for probe in chain[:-1]]
    if reads_answers and (lacking := sum(probe.probability is None for probe in forks)):
        missing["answer_confidence"] = f"{lacking} of {counted(len(forks), 'forked answer')} have no per-token figures"
    counts = {"num_samples": min(map(len, groups.values())), "num_budgets": len(budgets)}
    return _Family(setting | counts, problems, missing)


def _trace(row: SampleRow, read_records: ReadRecords | None, window: int) -> Trace:
    records = read_records(row) if read_records is not None else None
    confidence = None if records is None else measure(records[: row["num_thinking_tokens"]], window)
    return Trace(row["extracted"], row["correct"], row["num_thinking_tokens"], num_tokens(row), confidence)


def _probes(chain: Sequence[SampleRow], read_records: ReadRecords | None) -> list[Probe]:
    """Return the answers of a trace up to the first budget that it did not reach: all larger ones give the same answer again."""
    probes = []
    for row in chain:
        is_last = row["num_thinking_tokens"] < row["max_thinking_tokens"] or row is chain[-1]
        records = None if is_last or read_records is None else read_records(row)
        probability = None if records is None else answer_probability(_answer_logprobs(row, records))
        probe = Probe(
            row["extracted"], row["correct"], row["num_thinking_tokens"], row["num_answer_tokens"], probability
        )
        probes.append(probe)
        if is_last:
            break
    return probes


def _answer_logprobs(row: SampleRow, records: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of an answer's tokens. They are the last ones, up to an id that ended the answer."""
    end = len(records) - (row["finish_reason"] == "stop")
    return records["logprob"][end - row["num_answer_tokens"] : end]


# ---- points ----


class _Variant(NamedTuple):
    """A rule with its parameters."""

    parameters: dict[str, Any]
    stop: Callable[[Sequence[Probe]], Trace] | None = None
    """Where each trace stops. None: at its end."""
    elect: Callable[[Sequence[Trace], np.ndarray], Outcome] | None = None
    """How subsets of the traces vote. None: plain majority voting, which has a formula."""
    in_order: bool = False
    """Whether the order of the traces counts."""


def _variants(rule: Rule, config: ReplayConfig, k: int) -> list[_Variant]:
    """Return a rule of k traces with all its parameters; nothing if it needs more traces."""
    if rule == "votes":
        return [_Variant({})]
    if rule == "shortest":
        return [_Variant({"m": m}, elect=partial(vote_of_shortest, m=m)) for m in config.shortest if m < k]
    if rule == "agreement":
        return [_Variant({"equal": n}, partial(stop_at_agreement, num_equal=n)) for n in config.equal_answers]
    if rule == "answer_confidence":
        return [_Variant({"above": t}, partial(stop_at_confidence, threshold=t)) for t in config.threshold]
    if rule == "confidence":
        return [
            _Variant({"measure": name, "keep": keep}, elect=partial(vote_by_confidence, measure=name, keep=keep))
            for name in MEASURES
            for keep in (None, *config.keep)
            if k > 1
        ]
    return [
        _Variant(
            {"warm_up": config.warm_up, "keep": keep},
            elect=partial(vote_online, warm_up=config.warm_up, keep=keep),
            in_order=True,
        )
        for keep in config.keep
        if k > config.warm_up
    ]


def _point(family: _Family, rule: Rule, variant: _Variant, k: int, draws: int) -> Point:
    """Return a point of `Replayed`."""
    problems = family.problems
    outcomes = [_outcome(problem, variant, k, draws) for problem in problems]
    num_samples = [len(problem.traces) for problem in problems]
    tokens, longest = (statistics.fmean(getattr(o, name) for o in outcomes) for name in ("tokens", "longest"))
    plain = statistics.fmean(whole_tokens(problem.traces, k)[0] for problem in problems)
    count = math.perm if variant.in_order else math.comb
    return {
        **family.setting,
        "rule": rule,
        "parameters": variant.parameters,
        "k": k,
        "num_problems": len(problems),
        # Rounding may push a mean of chances past 1.
        **with_interval("accuracy", [min(o.accuracy, 1.0) for o in outcomes], sum(n // k for n in num_samples)),
        "tokens": tokens,
        "longest_trace": longest,
        "share": tokens / plain if plain else None,
        "draws": None if variant.elect is None or all(count(n, k) <= draws for n in num_samples) else draws,
    }


def _outcome(problem: _Problem, variant: _Variant, k: int, draws: int) -> Outcome:
    traces = problem.traces if variant.stop is None else [variant.stop(chain) for chain in problem.probes]
    if variant.elect is None:
        return vote(traces, k)
    # All rules see the same subsets, so that their differences are not those of the draws.
    rng = np.random.default_rng(problem.seed)
    return variant.elect(traces, draw_subsets(len(traces), k, draws, rng, variant.in_order))
