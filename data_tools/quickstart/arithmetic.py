"""A small world of word problems with reasoning traces: seed -> a dirty pool of training rows, and clean held-out problems.

A problem is a story in which one number changes step by step, so more steps need more reasoning. A trace works through the steps, one short
line each. Like the traces of s1K (arXiv 2501.19393, section 2), a trace sometimes checks itself:

    Stop A: 5 get off, 45-5=40
    Stop B: 8 board, 40+8=49
    Wait, 40+8=48, not 49
    Stop C: twice as many, 48*2=96
    Answer: 96
    Wait, 48*2=96, yes
    Answer: 96

The pool is as dirty as a scraped one: it has copies, defects, trivial and held-out problems. `data_tools.curation` must find them.

Invariants: everything is a function of the seed. The trace of a clean row ends in its answer.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from s1jax.runtime import jsonl
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable
from s1jax.runtime.lock import Lock

MAX_VALUE = 99
LABELS = "ABCDEFGH"
MAX_STEPS = 6
MAX_HELDOUT = 60_000
"""Held-out problems at most: there are about 27,000 different ones of one step."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """The words of one domain."""

    name: str
    starts: tuple[str, ...]
    """Sentences with the first number, `{n}`."""
    unit: str
    """Name of a step."""
    more: tuple[str, ...]
    less: tuple[str, ...]
    """Words of a step that changes the number by `{x}`."""
    amount: str
    """What follows "twice" or "half" in the words of a step."""
    ask: str
    """The question, up to the name of the last step."""

    @property
    def changes(self) -> dict[str, tuple[str, ...]]:
        """Words for each operation: `+` and `-` change the number by {x}, `*` and `/` always by 2."""
        return {"+": self.more, "-": self.less, "*": (f"twice {self.amount}",), "/": (f"half {self.amount}",)}


STORIES = (
    Story("bus", ("A bus has {n} passengers.", "There are {n} people on a bus."), "stop",
          ("{x} get on", "{x} board"), ("{x} get off", "{x} leave"), "as many", "How many are there"),
    Story("shop", ("A shop has {n} boxes.", "There are {n} boxes in a shop."), "order",
          ("{x} come in", "{x} arrive"), ("{x} go out", "{x} are sold"), "as many", "How many are there"),
    Story("lift", ("A lift waits on floor {n}.", "Ann calls a lift on floor {n}."), "ride",
          ("{x} up", "{x} floors up"), ("{x} down", "{x} floors down"), "as high", "Which floor is it on"),
    Story("weather", ("A thermometer shows {n} degrees.", "It is {n} degrees outside."), "hour",
          ("{x} warmer", "{x} degrees up"), ("{x} colder", "{x} degrees down"), "as warm", "How many degrees is it"),
    Story("bank", ("Mia has {n} dollars.", "Ben owns {n} dollars."), "week",
          ("{x} paid in", "{x} saved"), ("{x} paid out", "{x} spent"), "as much", "How much is left"),
    Story("game", ("Tom starts with {n} points.", "Eva has {n} points in a game."), "round",
          ("{x} won", "{x} points won"), ("{x} lost", "{x} points lost"), "the score", "What is the score"),
    Story("tank", ("A tank holds {n} litres.", "There are {n} litres in a tank."), "pump",
          ("{x} litres in", "{x} added"), ("{x} litres out", "{x} used"), "as much", "How much is left"),
    Story("library", ("A shelf holds {n} books.", "There are {n} books on a shelf."), "visit",
          ("{x} returned", "{x} brought back"), ("{x} borrowed", "{x} taken out"), "as many", "How many are there"),
)  # fmt: skip
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


@dataclass(frozen=True)
class Step:
    """One change, `before operation operand = after`, and its words."""

    before: int
    operation: str
    operand: int
    words: str

    @property
    def after(self) -> int:
        """The right result."""
        return _OPERATIONS[self.operation](self.before, self.operand)

    def sum(self, after: int | None = None) -> str:
        """Return the step as a sum, with the result `after` if it is given."""
        return f"{self.before}{self.operation}{self.operand}={self.after if after is None else after}"


@dataclass(frozen=True)
class Problem:
    """A story with a number of steps."""

    story: Story
    start: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The number after the last step."""
        return self.steps[-1].after

    @property
    def question(self) -> str:
        """The story and its question."""
        steps = [f"{self.name(i).title()}: {step.words}." for i, step in enumerate(self.steps)]
        return " ".join([self.start, *steps, f"{self.story.ask} after {self.name(len(self.steps) - 1)}?"])

    def name(self, i: int) -> str:
        """Return the name of step `i`, counted from 0."""
        return f"{self.story.unit} {LABELS[i]}"


def make_problem(rng: random.Random, num_steps: int, story: Story | None = None) -> Problem:
    """Draw a problem of `num_steps` steps; all its numbers lie between 0 and 99."""
    story = story or rng.choice(STORIES)
    value = rng.randint(10, 60)
    start = rng.choice(story.starts).format(n=value)
    steps = []
    for _ in range(num_steps):
        choices = []
        for operation in "+-":
            operand = rng.randint(2, 9)
            choices += [(operation, operand)] * 4 if 0 <= _OPERATIONS[operation](value, operand) <= MAX_VALUE else []
        choices += [("*", 2)] if 5 <= value <= MAX_VALUE // 2 else []
        choices += [("/", 2)] if value >= 10 and value % 2 == 0 else []
        operation, operand = rng.choice(choices)
        words = rng.choice(story.changes[operation]).format(x=operand)
        steps.append(Step(value, operation, operand, words))
        value = steps[-1].after
    return Problem(story, start, tuple(steps))


def slip_of(step: Step, rng: random.Random) -> int:
    """Return a wrong result of the step, near the right one."""
    wrong = [step.after + error for error in (-10, -2, -1, 1, 2, 10)]
    return rng.choice([value for value in wrong if 0 <= value <= MAX_VALUE])


def write_trace(problem: Problem, rng: random.Random) -> str:
    """Return a trace: a line for each step, then the answer.

    One step in ten is checked in the next line; one check in eight corrects a slip. Half of the traces check the answer up to three times:
    there budget forcing will put its "Wait".
    """
    lines = []
    for i, step in enumerate(problem.steps):
        is_checked = rng.random() < 0.1
        wrong = slip_of(step, rng) if is_checked and rng.random() < 0.125 else None
        lines.append(f"{problem.name(i).title()}: {step.words}, {step.sum(after=wrong)}")
        if is_checked:
            lines.append(f"Wait, {step.sum()}, {'yes' if wrong is None else f'not {wrong}'}")
    lines.append(f"Answer: {problem.answer}")
    for _ in range(rng.choices([0, 1, 2, 3], [50, 25, 15, 10])[0]):
        lines += [f"Wait, {problem.steps[-1].sum()}, yes", f"Answer: {problem.answer}"]
    return "\n".join(lines)


def to_row(problem: Problem, rng: random.Random) -> Row:
    """Return the training row of a problem, with a new trace."""
    return dict(
        id=question_id(problem.question),
        question=problem.question,
        thinking=write_trace(problem, rng),
        answer=f"Final Answer: {problem.answer}",
        reference=str(problem.answer),
        source="arithmetic",
        domain=f"{problem.story.name}/{len(problem.steps)}",
    )


def question_id(question: str) -> str:
    """Return the id of a question: the first 16 hex digits of its SHA-256, as in s1K."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


DEFECTS: dict[str, Callable[[Row, random.Random], Row]] = dict(
    no_trace=lambda row, rng: row | {"thinking": rng.choice(["", "  \n", None])},
    no_question=lambda row, rng: row | {"question": ""},
    no_reference=lambda row, rng: {name: value for name, value in row.items() if name != "reference"},
    wrong_answer=lambda row, rng: (
        row | {"answer": f"Final Answer: {int(row['reference']) + rng.choice([-10, -1, 1, 10])}"}
    ),
    cut_trace=lambda row, rng: row | {"thinking": row["thinking"][: rng.randint(1, max(1, len(row["thinking"]) // 2))]},
    image=lambda row, rng: row | {"question": "![Image](figure-1.png) " + row["question"]},
    torn_bold=lambda row, rng: row | {"thinking": "**" + row["thinking"]},
)
"""What spoils a row: a function of a clean row and a random source."""


def make_heldout(num: int, seed: int) -> list[Problem]:
    """Return `num` different problems; equal shares of them have 1 to 6 steps."""
    rng = random.Random(f"heldout {seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < num:
        problem = make_problem(rng, len(problems) % MAX_STEPS + 1)
        problems[problem.question] = problem
    return list(problems.values())


def make_pool(num: int, seed: int, heldout: list[Problem]) -> list[Row]:
    """Return `num` rows in random order: a tenth are copies, a tenth have a defect, and a fiftieth are held-out problems."""
    rng = random.Random(f"pool {seed}")
    num_copies, num_defective, num_leaked = num // 10, num // 10, min(num // 50, len(heldout))
    num_fresh = num - num_copies - num_defective - num_leaked
    rows = [to_row(make_problem(rng, rng.randint(1, MAX_STEPS)), rng) for _ in range(num_fresh)]
    rows += [to_row(problem, rng) for problem in rng.sample(heldout, num_leaked)]
    # Copies share the question. A held-out problem may be copied too.
    rows += [dict(row) for row in rng.choices(rows, k=num_copies)]
    for i in range(num_defective):
        spoil = list(DEFECTS.values())[i % len(DEFECTS)]
        rows.append(spoil(to_row(make_problem(rng, rng.randint(2, MAX_STEPS)), rng), rng))
    rng.shuffle(rows)
    return rows


@dataclass(frozen=True)
class ArithmeticConfig:
    """Number of rows and problems, and the folder for them."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder for pool.jsonl (training rows with copies, defects, trivial problems and held-out problems) and heldout.jsonl."""
    num: int = 3600
    """Rows of the pool."""
    num_heldout: int = 120
    """Held-out problems; equal shares of them have 1 to 6 steps."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        if self.num < 1 or not 1 <= self.num_heldout <= MAX_HELDOUT:
            raise UserError(
                f"--num {self.num} must be positive, and --num-heldout {self.num_heldout} from 1 to {MAX_HELDOUT}"
            )


def main() -> None:
    """Write the pool and the held-out problems."""
    config = parse_arguments(__doc__ or "", ArithmeticConfig)
    heldout = make_heldout(config.num_heldout, config.seed)
    problems = [dict(id=question_id(p.question), question=p.question, answer=str(p.answer)) for p in heldout]
    files = {"pool.jsonl": make_pool(config.num, config.seed, heldout), "heldout.jsonl": problems}
    with Lock(config.out / "pool.jsonl"):
        for name, rows in files.items():
            check_writable(config.out / name)
            if (config.out / name).exists() and [row for _, row in jsonl.read(config.out / name)] != rows:
                raise UserError(f"{config.out / name} holds other rows: remove it, or give another folder")
        for name, rows in files.items():
            jsonl.write(config.out / name, rows)


if __name__ == "__main__":
    run_command(main)
