"""What the quickstart's tiny base model is pretrained on: seed -> plain texts of worked arithmetic, and chats that answer at once.

The base shall know what a pretrained model knows: sums, and that they can be wrong; how to look things up; how stories are told
and worked through in prose; how to answer in a chat. It never sees the format that fine-tuning teaches: no think delimiter, no
trace in lines, no "Wait".

Invariant: a text is a function of its seed and index, and none holds the delimiters `<|im_start|>think` and `<|im_start|>answer`.
"""

from __future__ import annotations

import itertools
import random

from data_tools.quickstart.arithmetic import LABELS, STORIES, Problem, make_problem, slip_of

SYSTEM_PROMPT = "You are a helpful assistant."
END_OF_TEXT = "<|endoftext|>"
Piece = tuple[str, bool]
NUM_FIRST_TEXTS = 10_000
_PHRASES = [phrase for story in STORIES for phrases in story.changes.values() for phrase in phrases]
WORDS = (
    *sorted({word for phrase in _PHRASES for word in phrase.format(x=0).split()} - {"0"}),
    *"0123456789",
    *(f"{label}:" for label in LABELS),
)


def make_text(seed: int, index: int) -> list[Piece]:
    """Return a text in pieces, each with whether it can be told from what stands before (questions and drawn numbers cannot)."""
    rng = random.Random(f"text {seed} {index}")
    # Looking things up grows out of copying, so the run begins with much of it.
    if rng.random() < (0.6 if index < NUM_FIRST_TEXTS else 0.1):
        return copied(rng)
    kind = rng.random()
    if kind < 0.18:
        return sums(rng)
    if kind < 0.34:
        return notes(rng)
    if kind < 0.80:
        problem = make_problem(rng, rng.randint(1, len(LABELS)))
        return [(problem.question + "\n", False), *worked(problem, rng)]
    return chat(rng)


def chat(rng: random.Random) -> list[Piece]:
    """Write a chat whose questions are answered directly: short ones, or one that a person could hardly answer so."""
    if rng.random() < 0.2:
        problems = [make_problem(rng, rng.randint(2, len(LABELS)))]
    else:
        problems = [make_problem(rng, 1) for _ in range(rng.randint(1, 4))]
    pieces = [(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n", False)]
    for problem in problems:
        pieces += [
            (f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n", False),
            (f"Answer: {problem.answer}<|im_end|>\n", True),
        ]
    return pieces


def copied(rng: random.Random) -> list[Piece]:
    """Write words in a random order, twice."""
    words = " " + " ".join(rng.choices(WORDS, k=rng.randint(15, 45))) + "\n"
    return [(words, False), (words, True)]


def sums(rng: random.Random) -> list[Piece]:
    """Write a few unrelated sums, right ones, and wrong ones said to be wrong."""
    pieces = []
    for _ in range(rng.randint(5, 10)):
        step = make_problem(rng, rng.randint(1, 4)).steps[-1]
        right, result = f"{step.before}{step.operation}{step.operand}=", str(step.after)
        wrong = slip_of(step, rng)
        kind = rng.random()
        if kind < 0.3:
            pieces += [(f" {right}", False), (f"{result}.", True)]
        elif kind < 0.6:
            pieces += [(f" {step.before} and {step.words} makes", False), (f" {result}.", True)]
        elif kind < 0.8:
            pieces += [(f" {right}{wrong}", False), (f" is wrong, {right}{result}, not {wrong}.", True)]
        else:
            pieces += [(f" {right}{result}", False), (" is right, yes.", True)]
    return pieces


def notes(rng: random.Random) -> list[Piece]:
    """Write down some steps, then look them up in another order."""
    story = rng.choice(STORIES)
    labels = rng.sample(LABELS, rng.randint(3, len(LABELS)))
    if rng.random() < 0.5:
        labels.sort()
    noted = {label: make_problem(rng, 1, story).steps[0].words for label in labels}
    pieces = [(" ".join(f"{story.unit.title()} {label}: {words}." for label, words in noted.items()) + "\n", False)]
    for i, label in enumerate(rng.choices(labels, k=rng.randint(6, 14))):
        unit = rng.choice([story.unit, story.unit.title()])
        pieces += [(f"{' ' if i else ''}{unit} {label}:", False), (f" {noted[label]}{rng.choice('.,;')}", True)]
    return pieces


def worked(problem: Problem, rng: random.Random) -> list[Piece]:
    """Work through a problem in prose or in a list, with sums done again here and there, and some slips found."""
    separator = rng.choice(["; ", ". ", "\n- ", " | ", "\n\n", ", then "])
    so = rng.choice([", ", ", so ", ". That makes ", ": "])
    again = rng.choice(["again", "check", "once more", "look back"])
    head = rng.choice(["Solution: ", "We count. ", "", "Steps:\n- "])
    is_title = rng.random() < 0.5
    share_checked = rng.choice([0.0, 0.0, 0.1, 0.3])
    most_checks_at_end = rng.choice([0, 0, 1, 4])
    pieces: list[Piece] = [(head, True)]
    for i, step in enumerate(problem.steps):
        name = problem.name(i).title() if is_title else problem.name(i)
        num_checks = int(rng.random() < share_checked)
        if i + 1 == len(problem.steps):
            num_checks = rng.randint(0, most_checks_at_end)
        pieces.append((f"{name}: {step.words}{so}", True))
        verdict = "yes"
        if num_checks and rng.random() < 0.25:
            # A wrong result cannot be told from what stands before; that it is wrong can.
            wrong = slip_of(step, rng)
            pieces += [(f"{step.before}{step.operation}{step.operand}=", True), (str(wrong), False)]
            verdict = f"not {wrong}"
        else:
            pieces.append((step.sum(), True))
        for _ in range(num_checks):
            pieces.append((f"{separator}{again}, {step.sum()}, {verdict}", True))
            verdict = "yes"
        if i + 1 < len(problem.steps):
            pieces.append((separator, True))
    said = rng.choice(["The answer is", "Final Answer:", "Answer:", "So we get"])
    pieces.append((f"{separator}{said} {problem.answer}.\n", True))
    # Pieces are tokenised one by one: parts of one kind are joined, so that words and numbers keep their space.
    return [
        ("".join(text for text, _ in part), kind) for kind, part in itertools.groupby(pieces, lambda piece: piece[1])
    ]
