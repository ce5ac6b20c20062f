"""Methods that control the amount of thinking, what each asks for in the prompt, and how its traces are written (paper, table 3).

- Budget forcing asks for nothing. It ends the thinking at a limit, or keeps it going.
- Token-, step- and class-conditional control ask the model for an amount of thinking. The forms with `_forced` force it, too.
- Rejection sampling draws traces until one is short enough.

A model learns token- and step-conditional control from labelled training rows. The label is the amount that the prompt
asks for: the length of the trace in tokens or steps, rounded up to a power of two.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from s1jax.data.encoder import Segment
from s1jax.data.thinking_format import IM_START
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

Method = Literal[
    "budget_forcing",
    "token_conditional",
    "token_conditional_forced",
    "step_conditional",
    "step_conditional_forced",
    "class_conditional",
    "class_conditional_forced",
    "rejection_sampling",
]
METHODS: tuple[Method, ...] = get_args(Method)
FORCING = ("budget_forcing", *(method for method in METHODS if method.endswith("_forced")))
"""Methods under which budget forcing acts: only these have a minimum and ignored stops."""

TrainedMethod = Literal["token_conditional", "step_conditional"]
"""Methods that a model must be trained on: the methods of labelled training rows."""
TRAINED_METHODS: tuple[TrainedMethod, ...] = get_args(TrainedMethod)

# With budget forcing, a step that is counted as 0 ends the thinking.
METHOD_FORMATS = {"step_conditional": "steps", "step_conditional_forced": "steps_forced"}
"""The thinking format of each method that needs one of its own."""

CLASSES = {
    "short": "Answer after a short amount of thinking. Do not spend excessive time double-checking your work.",
    "long": (
        "Answer after a long amount of thinking. If you feel like you are finished early, spend the extra time trying to double-check "
        "your work until you are absolutely sure that you have the correct answer."
    ),
}


def control_prompt(method: Method, requested: str) -> str:
    """Return the text behind the question with which a method asks for an amount of thinking, "" if it asks for nothing.

    `requested` is a number of tokens or steps, or one of `CLASSES`. Raises UserError if it is not what the method needs.
    """
    kind = method.removesuffix("_forced")
    if kind == "class_conditional":
        if requested not in CLASSES:
            raise UserError(f"requested is {shortened(requested)}: {method} needs {' or '.join(CLASSES)}")
        return CLASSES[requested]
    if kind in ("token_conditional", "step_conditional"):
        unit = f"{kind.partition('_')[0]}s"
        if not (requested.isascii() and requested.isdecimal() and requested[0] != "0" and len(requested) < 10):
            raise UserError(f"requested is {shortened(requested)}: {method} needs a number of {unit}, such as 64")
        return f"Think for up to {requested} {unit}."
    if requested:
        raise UserError(f"requested is {shortened(requested)}: {method} asks the model for nothing, so leave it out")
    return ""


def check_label(method: str, requested: str, thinking: str) -> TrainedMethod | None:
    """Return the method of a training row's label, None for a row without one: its method is budget forcing, or is not given.

    Raises UserError if a row cannot have this label, or if its trace has more steps than the label.
    """
    if method in ("", "budget_forcing"):
        control_prompt("budget_forcing", requested)
        return None
    for trained in TRAINED_METHODS:
        if method == trained:
            control_prompt(trained, requested)
            if trained == "step_conditional" and (num_steps := len(split_steps(thinking))) > int(requested):
                raise UserError(f"requested is {requested}, but the trace has {num_steps} steps")
            return trained
    raise UserError(
        f"method is {shortened(method)}: a training row has budget_forcing or {' or '.join(TRAINED_METHODS)}"
    )


def label_of(amount: int) -> str:
    """Return the label of a trace with so many tokens or steps, at least 1: the smallest power of two that is not below."""
    return str(1 << (amount - 1).bit_length())


def split_steps(thinking: str) -> list[str]:
    """Return the steps of a trace: its parts between blank lines."""
    return re.split(r"\n\s*\n", thinking.strip())


def numbered_steps(thinking: str, requested: str) -> list[Segment]:
    """Return a trace in the format `steps`: each step under a header, which counts down from the label.

    The `<|im_start|>` of the first header is missing, because it ends the prompt.
    """
    segments: list[Segment] = []
    for index, step in enumerate(split_steps(thinking)):
        before = f"\n{IM_START}" if index else ""
        segments += [(f"{before}{int(requested) - index} steps left\n", True), (step, False)]
    return segments


def count_steps(thinking: str) -> int:
    """Return the number of step headers in a trace of the format `steps`. The prompt ends in the `<|im_start|>` of the first one."""
    return len(re.findall(r"(?:\A\s*|<\|im_start\|>)\d+ steps? left", thinking))
