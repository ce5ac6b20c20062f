"""Pretraining texts of the quickstart's tiny base model: seed -> worked arithmetic in prose, and chats with direct answers.

The texts teach what a pretrained model knows: right and wrong sums, looking things up, stories worked through in prose, and answers in a
chat.

Invariants: a text is a function of its seed and index. None shows the format that fine-tuning teaches: no think or answer delimiter, no
trace in lines, no "Wait".
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
    """Return a text as pieces, each with a flag: whether the text before it determines it (not so for questions and drawn numbers)."""
    rng = random.Random(f"text {seed} {index}")
    # A model learns to copy before it learns to look things up, so the first texts are mostly copies.
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
    """Write a chat with direct answers: to several short questions, or to one that a person could hardly answer directly."""
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
    """Write words in a random order, and the same words again."""
    words = " " + " ".join(rng.choices(WORDS, k=rng.randint(15, 45))) + "\n"
    return [(words, False), (words, True)]


def sums(rng: random.Random) -> list[Piece]:
    """Write a few unrelated sums; a wrong sum is called wrong."""
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
    """Write some steps, then repeat them in another order."""
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
    """Work through a problem in prose or in a list; some sums are checked, and some checks correct a slip."""
    separator = rng.choice(["; ", ". ", "\n- ", " | ", "\n\n", ", then "])
    so = rng.choice([", ", ", so ", ". That makes ", ": "])
    again = rng.choice(["again", "check", "once more", "look back"])
    head = rng.choice(["Solution: ", "We count. ", "", "Steps:\n- "])
    is_title = rng.random() < 0.5
    share_checked = rng.choice([0.0, 0.0, 0.1, 0.3])
    max_checks_at_end = rng.choice([0, 0, 1, 4])
    pieces: list[Piece] = [(head, True)]
    for i, step in enumerate(problem.steps):
        name = problem.name(i).title() if is_title else problem.name(i)
        num_checks = int(rng.random() < share_checked)
        if i + 1 == len(problem.steps):
            num_checks = rng.randint(0, max_checks_at_end)
        pieces.append((f"{name}: {step.words}{so}", True))
        verdict = "yes"
        if num_checks and rng.random() < 0.25:
            # The text before a wrong result does not determine it, but determines that it is wrong.
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
    # Pieces are tokenised one by one. Neighbours with the same flag are joined, so that words and numbers keep the space before them.
    return [
        ("".join(text for text, _ in part), kind) for kind, part in itertools.groupby(pieces, lambda piece: piece[1])
    ]
