"""What the quickstart's tiny base model is pretrained on: seed -> plain texts of worked arithmetic, and chats that answer at once.

The base shall know what a pretrained model knows: sums, and that they can be wrong; how to look things up; how stories are told
and worked through in prose; how to answer in a chat. It never sees the format that fine-tuning teaches: no think delimiter, no
trace in lines, no "Wait".

Invariant: a text is a function of its seed and index, and none holds the delimiters `<|im_start|>think` and `<|im_start|>answer`.
"""

from __future__ import annotations

import random

from data_tools.arithmetic import LABELS, MOST_STEPS, STORIES, Problem, make_problem, slip_of

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
    if kind < 0.20:
        return sums(rng)
    if kind < 0.45:
        return notes(rng)
    if kind < 0.85:
        problem = make_problem(rng, min(rng.randint(1, MOST_STEPS), rng.randint(1, MOST_STEPS)))
        return [(problem.question + "\n", False), (worked(problem, rng), True)]
    # Direct answers: mostly to what can be answered directly.
    problem = make_problem(rng, rng.choice([1, 1, 1, 2, rng.randint(3, MOST_STEPS)]))
    return [(chat_prompt(problem.question), False), (f"Answer: {problem.answer}<|im_end|>\n", True)]


def chat_prompt(question: str) -> str:
    """Return the ChatML text that stands before an assistant's reply."""
    system = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
    return f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


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
        if kind < 0.6:
            pieces += [(right, False), (f"{result}. ", True)]
        elif kind < 0.8:
            pieces += [(f"{right}{wrong}", False), (f" is wrong, {right}{result}, not {wrong}. ", True)]
        else:
            pieces += [(f"{right}{result}", False), (" is right, yes. ", True)]
    return pieces


def notes(rng: random.Random) -> list[Piece]:
    """Write down some steps, then look them up in another order."""
    story = rng.choice(STORIES)
    labels = rng.sample(LABELS, rng.randint(3, len(LABELS)))
    if rng.random() < 0.5:
        labels.sort()
    noted = {label: make_problem(rng, 1, story).steps[0].words for label in labels}
    pieces = [(" ".join(f"{story.unit.title()} {label}: {words}." for label, words in noted.items()) + "\n", False)]
    for label in rng.choices(labels, k=rng.randint(6, 14)):
        unit = rng.choice([story.unit, story.unit.title()])
        pieces += [(f"{unit} {label}:", False), (f" {noted[label]}{rng.choice(['. ', ', ', '; '])}", True)]
    return pieces


def worked(problem: Problem, rng: random.Random) -> str:
    """Work through a problem in prose."""
    names = [problem.name(i) for i in range(len(problem.steps))]
    told = list(zip(names, problem.steps, strict=True))
    style = rng.randrange(3)
    if style == 0:
        said = "; ".join(f"{name}: {step.words}, {step.sum()}" for name, step in told)
        return f"Solution: {said}. The answer is {problem.answer}.\n"
    if style == 1:
        said = " ".join(f"At {name}: {step.words}, so {step.sum()}." for name, step in told)
        return f"{said} Final Answer: {problem.answer}\n"
    said = " ".join(f"{name.title()}: {step.words}. That makes {step.sum()}." for name, step in told)
    return f"{said} Answer: {problem.answer}\n"
