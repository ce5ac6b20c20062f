"""Choose a small training set from a pool, by the stages of s1K (arXiv 2501.19393, section 2) in a simple form.

In: training rows of any quality, held-out problems, a base model. Out: `--num` training rows; a file with all other rows, each with the
stage and the reason of its rejection; counts per stage on standard error. The stages:

1. validity: a row has a question, a trace and an answer.
2. copies: each question occurs once.
3. decontamination: no question shares a run of `--ngram` words with a held-out question, or equals one (lowercase, whitespace collapsed,
   punctuation kept). The paper uses 8 words. The quickstart's stories come from templates, where nearly every question shares 8 words with
   another, so the default is a run of more than three steps.
4. quality: no missing images, no torn markup, an answer that agrees with the reference, a trace that reaches the answer.
5. difficulty: the base model does not answer the question rightly without thinking.
6. diversity: draw a domain uniformly, then one of its questions with weight 2^-rank, longest trace first, without replacement.

Invariants: the selection does not depend on the order of the pool. Every row of the pool is in one of the two output files.
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from s1jax.checkpoint.source import resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition
from s1jax.data.rows import TrainingRow, read_rows, write_rejects
from s1jax.decode.engine import Engine, load_engine
from s1jax.decode.request import Request
from s1jax.evaluate.problems import read_problems
from s1jax.grading.extract import extract_answer
from s1jax.grading.grade import grade
from s1jax.runtime import jsonl
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.progress import progress

logger = logging.getLogger("data_tools.curation")

Row = TrainingRow
Reason = str | None


@dataclass(frozen=True)
class CurateConfig:
    """Choose a small training set from a pool, by the stages of s1K."""

    pool: str
    """Training rows: a .jsonl or .parquet file, a directory of them, or a hub id."""
    output: Path
    """JSONL file for the chosen rows."""
    model: str
    """Base model of the difficulty stage: a directory, a hub id (ID@REVISION: a branch, tag or commit), or our own checkpoint."""
    heldout: str
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
    rejects: Path | None = None
    """JSONL file for the rejected rows; default: NAME.rejects.jsonl beside the output."""

    @property
    def rejects_path(self) -> Path:
        """The file for the rejected rows."""
        return self.rejects or self.output.with_suffix(".rejects.jsonl")


def check_paths(config: CurateConfig) -> None:
    """Raise UserError if an output is a directory, or would overwrite an input or the other output."""
    for name, path in {"output": config.output, "rejects": config.rejects}.items():
        if path is not None and (not path.name or path.is_dir()):
            raise UserError(f"--{name} {path} is a directory: give a .jsonl file to write")
    output, rejects = config.output.resolve(), config.rejects_path.resolve()
    if output == rejects:
        raise UserError(f"--output and --rejects are the same file, {config.output}")
    for name, read in {"pool": config.pool, "heldout": config.heldout}.items():
        for option, written in {"output": output, "rejects": rejects}.items():
            if Path(read).resolve() in (written, written.parent if name == "pool" else None):
                raise UserError(f"--{option} {written} would change --{name} {read}: write elsewhere")


def curate(config: CurateConfig) -> list[tuple[str, int]]:
    """Run all stages and write the chosen rows; return the number of rows after each stage."""
    if config.num < 1 or config.ngram < 1:
        raise UserError(f"--num {config.num} and --ngram {config.ngram} must be positive")
    check_paths(config)
    questions = [problem.question for problem in read_problems(config.heldout)]
    rows, rejects = read_rows(config.pool)
    counts = [("pool", len(rows) + len(rejects))]
    logger.info(f"{'pool':15} {counts[0][1]:6} rows of {config.pool}")
    rejects = [{"stage": "validity"} | reject for reject in rejects]
    _report(counts, "validity", rows, Counter(reject["reason"] for reject in rejects))

    def drop(stage: str, reason_of: Callable[[Row], Reason]) -> None:
        nonlocal rows
        kept, reasons = [], Counter[str]()
        for row in rows:
            if reason := reason_of(row):
                reasons[reason] += 1
                rejects.append({"stage": stage, "reason": reason, **row})
            else:
                kept.append(row)
        rows = kept
        _report(counts, stage, rows, reasons)

    drop("copies", first_of_copies(rows))
    drop("decontaminated", Decontaminator(questions, config.ngram).reason)
    drop("quality", quality_reason)
    engine, chat = load_engine(resolve_source(config.model), dtype="float32")
    solved = solved_by(engine, chat, rows, config.max_answer_tokens, config.num_rows)
    easy = {row["id"] for row, is_solved in zip(rows, solved, strict=True) if is_solved}
    drop("difficulty", lambda row: "the base model answers it rightly without thinking" if row["id"] in easy else None)
    lengths = {row["id"]: len(chat.encode_text(row["thinking"])) for row in rows}
    chosen = draw_diverse(rows, lengths, config.num, config.seed)
    drawn = {id(row) for row in chosen}
    drop("diversity", lambda row: None if id(row) in drawn else "not drawn")

    write_rejects(config.rejects_path, rejects)
    jsonl.write(config.output, chosen)
    return counts


def _report(counts: list[tuple[str, int]], stage: str, rows: Sequence[Row], reasons: Mapping[str, int]) -> None:
    counts.append((stage, len(rows)))
    listed = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
    logger.info(f"{stage:15} {len(rows):6} rows left" + (f"; gone: {listed}" if listed else ""))


def normalise(question: str) -> str:
    """Return the question in the form in which questions are compared: lowercase, whitespace collapsed (the paper's rule)."""
    return " ".join(question.lower().split())


def first_of_copies(rows: Sequence[Row]) -> Callable[[Row], Reason]:
    """Return the rule that keeps one of several rows with the same question: the row whose content sorts first."""
    kept: dict[str, Row] = {}
    for row in rows:
        key = normalise(row["question"])
        if key not in kept or _content(row) < _content(kept[key]):
            kept[key] = row
    remaining = {key: _content(row) for key, row in kept.items()}

    def reason(row: Row) -> Reason:
        key = normalise(row["question"])
        if remaining.get(key) != _content(row):
            return "copy of another row's question"
        # The first of identical rows stays.
        del remaining[key]
        return None

    return reason


def _content(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("thinking", "answer", "reference", "id", "source", "domain"))  # type: ignore[literal-required]


class Decontaminator:
    """Finds questions that equal a held-out question or share a run of `n` words with one."""

    def __init__(self, questions: Sequence[str], n: int):
        self.n = n
        self.questions = {normalise(question) for question in questions}
        self.runs = {run for question in self.questions for run in self._runs(question)}

    def reason(self, row: Row) -> Reason:
        """Return why the row must not be trained on, None if it may be."""
        question = normalise(row["question"])
        if question in self.questions:
            return "is a held-out question"
        if any(run in self.runs for run in self._runs(question)):
            return f"shares {self.n} words in a row with a held-out question"
        return None

    def _runs(self, question: str) -> Iterator[tuple[str, ...]]:
        words = question.split()
        return (tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1))


def quality_reason(row: Row) -> Reason:
    """Return the fault of a row's text, None if it has none."""
    text = f"{row['question']}\n{row['thinking']}\n{row['answer']}"
    if "![Image]" in text or "[asy]" in text:
        return "refers to an image"
    if any(part.count("**") % 2 for part in (row["question"], row["thinking"], row["answer"])):
        return "torn bold markup"
    if not row["reference"].strip():
        return "no reference to grade against"
    if not grade(_with_label(row["answer"]), row["reference"])[1]:
        return "the answer disagrees with the reference"
    answer = extract_answer(_with_label(row["answer"])) or ""
    if not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", row["thinking"]):
        return "the trace does not reach the answer"
    return None


def _with_label(answer: str) -> str:
    return answer if "Answer:" in answer else f"Answer: {answer}"


def solved_by(
    engine: Engine, chat: ChatFormat, rows: Sequence[Row], max_answer_tokens: int, num_rows: int
) -> list[bool]:
    """Return, for each row, whether the model answers its question rightly by greedy decoding without thinking."""
    condition = Condition(0, max_answer_tokens=max_answer_tokens)
    requests = [Request(tuple(chat.encode_chat(row["question"])), condition, thinks=False) for row in rows]
    solved = [False] * len(rows)
    with progress(len(rows), "difficulty", "row") as bar:
        for i, (completion,) in engine.stream(requests, num_rows=num_rows):
            text = chat.tokenizer.decode(list(completion.tokens))
            solved[i] = grade(_with_label(str(text)), rows[i]["reference"])[1]
            bar.update()
    return solved


def draw_diverse(rows: Sequence[Row], lengths: Mapping[str, int], num: int, seed: int) -> list[Row]:
    """Draw `num` rows as the diversity stage does (algorithm 1 of the paper); `lengths` holds trace lengths by row id.

    A domain without rows is dropped. Raises UserError if there are fewer than `num` rows.
    """
    if len(rows) < num:
        raise UserError(f"only {len(rows)} rows are left to draw {num} from: give a larger pool or a smaller --num")
    domains: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["domain"], -lengths[row["id"]], row["id"])):
        domains[row["domain"]].append(row)
    names = sorted(domains)
    rng = random.Random(f"diversity {seed}")
    chosen = []
    for _ in range(num):
        name = rng.choice(names)
        chosen.append(domains[name].pop(_draw_rank(rng, len(domains[name]))))
        if not domains[name]:
            names.remove(name)
    return chosen


def _draw_rank(rng: random.Random, n: int) -> int:
    """Return a rank in 0..n-1 drawn with weight 2^-rank, by inverting the cumulative weights 2 (1 - 2^-(rank + 1))."""
    u = rng.random() * (1 - 2.0**-n)
    return min(int(-math.log2(1 - u)), n - 1)


def main() -> None:
    """Run the command line."""
    curate(parse_arguments(__doc__ or "", CurateConfig))


if __name__ == "__main__":
    run_command(main)
