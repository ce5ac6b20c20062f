"""A small world of word problems with worked reasoning traces: seed -> a dirty pool of training rows and clean held-out problems.

A problem is a story (a bus, a bank, a lift ...) whose one number changes step by step, so that it needs as much reasoning as it has
steps. A trace works through the steps, one short line each. Like the traces of s1K (arXiv 2501.19393, section 2) it checks itself now
and then: a "Wait" after which the last sum is done again, or a slip that is found and mended:

    Stop A: 5 get off, 45-5=40
    Stop B: 8 board, 40+8=49
    Wait, 40+8=48, not 49
    Stop C: twice as many, 48*2=96
    Answer: 96
    Wait, 48*2=96, yes
    Answer: 96

The pool is as dirty as scraped ones are: copies, rows that lack a part, images that are not there, answers that contradict their
trace, problems too easy to teach anything, and some of the held-out problems themselves. `data_tools.curation.curate` has to find them.

Invariant: everything is a function of the seed; every clean row's trace ends in its answer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from s1jax.runtime import jsonl
from s1jax.runtime.command import run_command
from s1jax.runtime.errors import UserError

LARGEST_VALUE = 99
LABELS = "ABCDEFGH"
MOST_STEPS = 6
Row = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """The words of one domain; `{n}` is the first number, `{x}` what a step changes, `{label}` the last step's letter."""

    name: str
    starts: tuple[str, ...]
    unit: str
    """What a step is called."""
    changes: dict[str, tuple[str, ...]]
    """By operation: `+` and `-` by {x}, `*` and `/` always by 2."""
    ask: str


STORIES = (
    Story(
        "bus",
        ("A bus has {n} passengers.", "There are {n} people on a bus."),
        "stop",
        {
            "+": ("{x} get on", "{x} board"),
            "-": ("{x} get off", "{x} leave"),
            "*": ("twice as many",),
            "/": ("half as many",),
        },
        "How many are there after stop {label}?",
    ),
    Story(
        "shop",
        ("A shop has {n} boxes.", "There are {n} boxes in a shop."),
        "order",
        {
            "+": ("{x} come in", "{x} arrive"),
            "-": ("{x} go out", "{x} are sold"),
            "*": ("twice as many",),
            "/": ("half as many",),
        },
        "How many are there after order {label}?",
    ),
    Story(
        "lift",
        ("A lift waits on floor {n}.", "Ann calls a lift on floor {n}."),
        "ride",
        {
            "+": ("{x} up", "{x} floors up"),
            "-": ("{x} down", "{x} floors down"),
            "*": ("twice as high",),
            "/": ("half as high",),
        },
        "Which floor is it on after ride {label}?",
    ),
    Story(
        "weather",
        ("A thermometer shows {n} degrees.", "It is {n} degrees outside."),
        "hour",
        {
            "+": ("{x} warmer", "{x} degrees up"),
            "-": ("{x} colder", "{x} degrees down"),
            "*": ("twice as warm",),
            "/": ("half as warm",),
        },
        "How many degrees is it after hour {label}?",
    ),
    Story(
        "bank",
        ("Mia has {n} dollars.", "Ben owns {n} dollars."),
        "week",
        {
            "+": ("{x} paid in", "{x} saved"),
            "-": ("{x} paid out", "{x} spent"),
            "*": ("twice as much",),
            "/": ("half as much",),
        },
        "How much is left after week {label}?",
    ),
    Story(
        "game",
        ("Tom starts with {n} points.", "Eva has {n} points in a game."),
        "round",
        {
            "+": ("{x} won", "{x} points won"),
            "-": ("{x} lost", "{x} points lost"),
            "*": ("twice the score",),
            "/": ("half the score",),
        },
        "What is the score after round {label}?",
    ),
    Story(
        "tank",
        ("A tank holds {n} litres.", "There are {n} litres in a tank."),
        "pump",
        {
            "+": ("{x} litres in", "{x} added"),
            "-": ("{x} litres out", "{x} used"),
            "*": ("twice as much",),
            "/": ("half as much",),
        },
        "How much is left after pump {label}?",
    ),
    Story(
        "library",
        ("A shelf holds {n} books.", "There are {n} books on a shelf."),
        "visit",
        {
            "+": ("{x} returned", "{x} brought back"),
            "-": ("{x} borrowed", "{x} taken out"),
            "*": ("twice as many",),
            "/": ("half as many",),
        },
        "How many are there after visit {label}?",
    ),
)


@dataclass(frozen=True)
class Step:
    """One change: `before operation operand = after`, and the words that tell it."""

    before: int
    operation: str
    operand: int
    words: str

    @property
    def after(self) -> int:
        """The right result."""
        if self.operation == "+":
            return self.before + self.operand
        if self.operation == "-":
            return self.before - self.operand
        return self.before * self.operand if self.operation == "*" else self.before // self.operand

    def sum(self, after: int | None = None) -> str:
        """The step as a sum, with another result where one is given."""
        return f"{self.before}{self.operation}{self.operand}={self.after if after is None else after}"


@dataclass(frozen=True)
class Problem:
    """A story told step by step."""

    story: Story
    start: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The number after the last step."""
        return self.steps[-1].after

    @property
    def question(self) -> str:
        """The story and what it asks."""
        told = [f"{self.name(i).title()}: {step.words}." for i, step in enumerate(self.steps)]
        return " ".join([self.start, *told, self.story.ask.format(label=LABELS[len(self.steps) - 1])])

    def name(self, i: int) -> str:
        """What step `i`, from 0, is called."""
        return f"{self.story.unit} {LABELS[i]}"


def make_problem(rng: random.Random, num_steps: int, story: Story | None = None) -> Problem:
    """Draw a problem of `num_steps` steps whose numbers stay within 0 and 99."""
    story = story or rng.choice(STORIES)
    value = rng.randint(10, 60)
    start = rng.choice(story.starts).format(n=value)
    steps = []
    for _ in range(num_steps):
        choices = []
        for operation, operand in [("+", rng.randint(2, 9)), ("-", rng.randint(2, 9))]:
            after = value + operand if operation == "+" else value - operand
            choices += [(operation, operand)] * 4 if 0 <= after <= LARGEST_VALUE else []
        choices += [("*", 2)] if 5 <= value <= LARGEST_VALUE // 2 else []
        choices += [("/", 2)] if value >= 10 and value % 2 == 0 else []
        operation, operand = rng.choice(choices)
        words = rng.choice(story.changes[operation]).format(x=operand)
        steps.append(Step(value, operation, operand, words))
        value = steps[-1].after
    return Problem(story, start, tuple(steps))


def slip_of(step: Step, rng: random.Random) -> int:
    """Return a wrong result of the step, near the right one."""
    wrong = [step.after + error for error in (-10, -2, -1, 1, 2, 10)]
    return rng.choice([value for value in wrong if 0 <= value <= LARGEST_VALUE])


def write_trace(problem: Problem, rng: random.Random) -> str:
    """Work through the problem in lines up to its answer, some of them checked in the next; one check in eight finds a slip and mends it.

    Half of the traces look back once they have the answer, some again and again: there a forced "Wait" will stand.
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
    """Return the training row of a problem, with a trace written for it."""
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
    """Return the key of a question: the first 16 hex digits of its sha256, as s1K has it."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def _without_trace(row: Row, rng: random.Random) -> Row:
    return row | {"thinking": rng.choice(["", "  \n", None])}


def _without_question(row: Row, rng: random.Random) -> Row:
    return row | {"question": ""}


def _without_reference(row: Row, rng: random.Random) -> Row:
    return {name: value for name, value in row.items() if name != "reference"}


def _with_wrong_answer(row: Row, rng: random.Random) -> Row:
    return row | {"answer": f"Final Answer: {int(row['reference']) + rng.choice([-10, -1, 1, 10])}"}


def _with_cut_trace(row: Row, rng: random.Random) -> Row:
    thinking = row["thinking"]
    return row | {"thinking": thinking[: rng.randint(1, max(1, len(thinking) // 2))]}


def _with_image(row: Row, rng: random.Random) -> Row:
    return row | {"question": "![Image](figure-1.png) " + row["question"]}


def _with_torn_bold(row: Row, rng: random.Random) -> Row:
    head, tail = row["thinking"][:3], row["thinking"][3:]
    return row | {"thinking": f"**{head}{tail}"}


DEFECTS: dict[str, Callable[[Row, random.Random], Row]] = dict(
    no_trace=_without_trace,
    no_question=_without_question,
    no_reference=_without_reference,
    wrong_answer=_with_wrong_answer,
    cut_trace=_with_cut_trace,
    image=_with_image,
    torn_bold=_with_torn_bold,
)


def make_heldout(num: int, seed: int) -> list[Problem]:
    """Return `num` different problems, of 1 to 6 steps in equal shares."""
    rng = random.Random(f"heldout {seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < num:
        problem = make_problem(rng, len(problems) % MOST_STEPS + 1)
        problems[problem.question] = problem
    return list(problems.values())


def make_pool(num: int, seed: int, heldout: list[Problem]) -> list[Row]:
    """Return `num` rows in random order, of which a tenth are copies, a tenth are spoilt and a fiftieth are held-out problems."""
    rng = random.Random(f"pool {seed}")
    num_copies, num_spoilt, num_leaked = num // 10, num // 10, min(num // 50, len(heldout))
    num_fresh = num - num_copies - num_spoilt - num_leaked
    rows = [to_row(make_problem(rng, rng.randint(1, MOST_STEPS)), rng) for _ in range(num_fresh)]
    rows += [to_row(problem, rng) for problem in rng.sample(heldout, num_leaked)]
    # A copy is of the same question; its trace may be another one, as in scraped pools.
    rows += [dict(row) for row in rng.choices(rows, k=num_copies)]
    for i in range(num_spoilt):
        spoil = list(DEFECTS.values())[i % len(DEFECTS)]
        rows.append(spoil(to_row(make_problem(rng, rng.randint(2, MOST_STEPS)), rng), rng))
    rng.shuffle(rows)
    return rows


def main(out: tyro.conf.Positional[Path], num: int = 3600, num_heldout: int = 120, seed: int = 0) -> None:
    """Generate a pool of training rows and held-out problems.

    Args:
        out: Folder for pool.jsonl (training rows, with copies, defects, trivial problems and leaks) and heldout.jsonl.
        num: Rows of the pool.
        num_heldout: Held-out problems, of 1 to 6 steps in equal shares.
        seed: Everything generated is a function of it.
    """
    if num < 1 or num_heldout < 1:
        raise UserError(f"--num {num} and --num-heldout {num_heldout} must be positive")
    heldout = make_heldout(num_heldout, seed)
    jsonl.write(out / "pool.jsonl", make_pool(num, seed, heldout))
    problems = [
        dict(id=question_id(p.question), question=p.question, answer=str(p.answer), num_steps=len(p.steps))
        for p in heldout
    ]
    jsonl.write(out / "heldout.jsonl", problems)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
