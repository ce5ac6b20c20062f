"""Choose a small training set from a pool, by the stages of s1K (arXiv 2501.19393, section 2) in a simple form.

In: training rows of any quality, held-out problems, a base model. Out: `--num` training rows; a file with all other rows, each with the
stage and the reason of its rejection; counts per stage on standard error. The stages:

1. validity: a row has a question, a trace and an answer.
2. copies: each question occurs once.
3. decontamination: no question shares a run of `--ngram` words with a held-out question, or equals one (lowercase, whitespace collapsed,
   punctuation kept). The paper uses 8 words. The quickstart's stories come from templates, where nearly every question shares 8 words with
   another, so the default is a run of more than three steps.
4. quality: no missing images, no torn markup, an answer that agrees with the reference, a trace that reaches the answer (`quality.py`).
5. difficulty: the base model does not answer the question rightly without thinking.
6. diversity: draw a domain uniformly, then one of its questions with weight 2^-rank, longest trace first, without replacement.

Invariants: the selection does not depend on the order of the pool. Every row of the pool is in one of the two output files. An id
never identifies a row, because two sources may number their rows alike.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.curation.quality import agrees, quality_reason
from s1jax.checkpoint.source import resolve_source
from s1jax.data.chat import ChatFormat, with_label
from s1jax.data.condition import Condition
from s1jax.data.rows import TrainingRow, read_rows
from s1jax.decode.engine import Engine, load_engine
from s1jax.decode.request import Request
from s1jax.evaluate.problems import read_problems
from s1jax.grading.pool import Grader
from s1jax.runtime import jsonl
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath
from s1jax.runtime.files import check_writable
from s1jax.runtime.lock import Lock
from s1jax.runtime.preemption import Preemption
from s1jax.runtime.progress import progress

logger = logging.getLogger("data_tools.curation")


@dataclass(frozen=True)
class CurateConfig:
    """Choose a small training set from a pool, by the stages of s1K."""

    pool: InputPath
    """Training rows: a .jsonl or .parquet file, a directory of them, or a hub id."""
    output: Path
    """JSONL file for the chosen rows. The rejected rows go to NAME.rejects.jsonl beside it."""
    model: InputPath
    """Base model of the difficulty stage: a directory, a hub id (ID@REVISION: a branch, tag or commit), or our own checkpoint."""
    heldout: InputPath
    """Problems that must not be trained on: a JSONL file, or the name of a benchmark."""
    num: int = 2000
    """Number of rows to choose."""
    ngram: int = 16
    """Number of consecutive words that a question may not share with a held-out one; 8 in the paper."""
    seed: int = 0
    """Seed of the draw in the diversity stage."""
    max_answer_tokens: int = 12
    """Maximum tokens of the base model's direct answers."""
    num_rows: int = 256
    """Rows decoded together; a finished row takes the next question."""

    def __post_init__(self) -> None:
        if self.num < 1 or self.ngram < 1:
            raise UserError(f"--num {self.num} and --ngram {self.ngram} must be positive")
        pool, heldout = Path(self.pool).resolve(), Path(self.heldout).resolve()
        for written in (self.output.resolve(), self.rejects.resolve()):
            if pool == written or (pool.is_dir() and written.is_relative_to(pool)):
                raise UserError(f"--output {written} would change --pool {pool}: write elsewhere")
            if heldout == written:
                raise UserError(f"--output {written} would change --heldout {heldout}: write elsewhere")

    @property
    def rejects(self) -> Path:
        """The file for the rejected rows: NAME.rejects.jsonl beside the output."""
        return self.output.parent / f"{self.output.stem}.rejects.jsonl"


def curate(config: CurateConfig) -> list[tuple[str, int]]:
    """Run all stages and write the chosen rows; return the number of rows after each stage.

    A signal ends the process at once, since the files are written at the end.
    """
    check_output(config)
    with (
        Preemption() as preemption,
        preemption.nothing_to_save("curating"),
        Lock(config.output),
        Lock(config.rejects),
        Grader() as grader,
    ):
        return _curate(config, grader)


def check_output(config: CurateConfig) -> None:
    """Raise UserError if the files cannot be written, or would replace a file that no curation wrote."""
    for path in (config.output, config.rejects):
        check_writable(path)
    ours = {config.rejects: {"stage", "reason"}, config.output: set(TrainingRow.__required_keys__)}
    for path, columns in ours.items():
        if path.exists() and not _holds_only(path, columns):
            raise UserError(f"--output {config.output} would replace {path}, which no curation wrote: write elsewhere")


def _holds_only(path: Path, columns: set[str]) -> bool:
    """Return whether a file is one of rows that have these columns."""
    try:
        rows = [row for _, row in jsonl.read(path)]
    except UserError:  # it is no JSON
        return False
    return all(isinstance(row, dict) and columns <= {*row} for row in rows)


def _curate(config: CurateConfig, grader: Grader) -> list[tuple[str, int]]:
    questions = [problem.question for problem in read_problems(config.heldout)]
    rows, rejects = read_rows(config.pool)
    counts = [("pool", len(rows) + len(rejects))]
    logger.info("%-15s %6d rows of %s", "pool", counts[0][1], config.pool)
    rejects = [{"stage": "validity"} | reject for reject in rejects]

    def report(stage: str) -> None:
        counts.append((stage, len(rows)))
        reasons = Counter(reject["reason"] for reject in rejects if reject["stage"] == stage).most_common()
        gone = "; gone: " + ", ".join(f"{count} x {reason}" for reason, count in reasons) if reasons else ""
        logger.info("%-15s %6d rows left%s", stage, len(rows), gone)

    def drop(stage: str, reason_of: Callable[[TrainingRow], str | None]) -> None:
        nonlocal rows
        reasons = [reason_of(row) for row in rows]
        rejects.extend({"stage": stage, "reason": why, **row} for row, why in zip(rows, reasons, strict=True) if why)
        rows = [row for row, why in zip(rows, reasons, strict=True) if not why]
        report(stage)

    report("validity")
    first = {id(row) for row in first_of_copies(rows)}
    drop("copies", lambda row: None if id(row) in first else "copy of another row's question")
    drop("decontaminated", contamination_rule(questions, config.ngram))
    drop("quality", lambda row: quality_reason(row, grader))
    engine, chat = load_engine(resolve_source(config.model), dtype="float32")
    solved = solved_by(engine, chat, rows, config.max_answer_tokens, config.num_rows, grader)
    easy = {id(row) for row, is_solved in zip(rows, solved, strict=True) if is_solved}
    drop("difficulty", lambda row: "the base model answers it rightly without thinking" if id(row) in easy else None)
    lengths = [len(chat.encode_text(row["thinking"])) for row in rows]
    chosen = draw_diverse(rows, lengths, config.num, config.seed)
    drawn = {id(row) for row in chosen}
    drop("diversity", lambda row: None if id(row) in drawn else "not drawn")

    jsonl.write(config.rejects, rejects)
    jsonl.write(config.output, chosen)
    return counts


def normalise(question: str) -> str:
    """Return the question in the form in which questions are compared: lowercase, whitespace collapsed (the paper's rule)."""
    return " ".join(question.lower().split())


def first_of_copies(rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """Return one row for each question: of its rows the one whose content sorts first, and of identical rows the first."""
    first: dict[str, TrainingRow] = {}
    columns = ("thinking", "answer", "reference", "id", "source", "domain", "method", "requested")
    for row in sorted(rows, key=lambda row: [str(row.get(name, "")) for name in columns]):
        first.setdefault(normalise(row["question"]), row)
    return list(first.values())


def contamination_rule(heldout: Sequence[str], n: int) -> Callable[[TrainingRow], str | None]:
    """Return a rule for rows whose question equals a held-out question or shares a run of `n` words with one."""

    def runs(question: str) -> set[tuple[str, ...]]:
        words = question.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    questions = {normalise(question) for question in heldout}
    heldout_runs = {run for question in questions for run in runs(question)}

    def reason(row: TrainingRow) -> str | None:
        question = normalise(row["question"])
        if question in questions:
            return "is a held-out question"
        if heldout_runs.isdisjoint(runs(question)):
            return None
        return f"shares {n} words in a row with a held-out question"

    return reason


def solved_by(
    engine: Engine,
    chat: ChatFormat,
    rows: Sequence[TrainingRow],
    max_answer_tokens: int,
    num_rows: int,
    grader: Grader,
) -> list[bool]:
    """Return, for each row, whether the model answers its question rightly by greedy decoding without thinking."""
    condition = Condition(0, max_answer_tokens=max_answer_tokens)
    requests = [Request(tuple(chat.encode_chat(row["question"])), condition, thinks=False) for row in rows]
    solved = [False] * len(rows)
    with progress(len(rows), "difficulty", "row", estimate_after=min(num_rows, len(rows) // 2)) as bar:
        for i, (completion,) in engine.stream(requests, num_rows=num_rows, show_tokens=bar.show_tokens):
            solved[i] = agrees(with_label(chat.decode(completion.tokens)), rows[i]["answer"], grader)
            bar.update()
    return solved


def draw_diverse(rows: Sequence[TrainingRow], lengths: Sequence[int], num: int, seed: int) -> list[TrainingRow]:
    """Draw `num` rows as the diversity stage does (algorithm 1 of the paper); `lengths` are those of the rows' traces.

    A domain without rows is dropped. Raises UserError if there are fewer than `num` rows.
    """
    if len(rows) < num:
        raise UserError(f"only {len(rows)} rows are left to draw {num} from: give a larger pool or a smaller --num")
    domains: dict[str, list[TrainingRow]] = defaultdict(list)
    order = sorted(zip(lengths, rows, strict=True), key=lambda pair: (-pair[0], pair[1]["id"], pair[1]["question"]))
    for _, row in order:
        domains[row["domain"]].append(row)
    names = sorted(domains)
    rng = random.Random(f"diversity {seed}")
    chosen = []
    for _ in range(num):
        name = rng.choice(names)
        weights = [2.0**-rank for rank in range(min(len(domains[name]), 64))]  # a later rank is never drawn
        (rank,) = rng.choices(range(len(weights)), weights)
        chosen.append(domains[name].pop(rank))
        if not domains[name]:
            names.remove(name)
    return chosen


def main() -> None:
    """Run the command line."""
    curate(parse_arguments(__doc__ or "", CurateConfig))


if __name__ == "__main__":
    run_command(main)
