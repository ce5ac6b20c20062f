"""Methods that control the amount of thinking, and what each of them asks for in the prompt (paper, table 3).

- Budget forcing asks for nothing. It ends the thinking at a limit, or keeps it going.
- Token-, step- and class-conditional control ask the model for an amount of thinking. The forms with `_forced` force it, too.
- Rejection sampling draws traces until one is short enough.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

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


def count_steps(thinking: str) -> int:
    """Return the number of step headers in a trace of the format `steps`. The prompt ends in the `<|im_start|>` of the first one."""
    return len(re.findall(r"(?:\A\s*|<\|im_start\|>)\d+ steps? left", thinking))
