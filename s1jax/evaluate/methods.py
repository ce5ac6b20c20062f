"""The conditions of a control method: budgets and amounts of thinking to ask for -> conditions (paper, table 3)."""

from __future__ import annotations

from collections.abc import Sequence

from s1jax.data.condition import Condition, Limits, TraceSettings
from s1jax.data.control_methods import CLASSES, FORCING, Method
from s1jax.runtime.errors import UserError


def conditions_of(
    method: Method, settings: TraceSettings, limits: Sequence[Limits], requested: Sequence[str], max_tries: int
) -> list[Condition]:
    """Return the conditions of a method.

    - Budget forcing and rejection sampling: each of the limits.
    - A conditional method asks for each amount in `requested` that is of its kind; class-conditional control for both classes by default.
      Unforced, its thinking may take the largest budget. Forced, it has each of the limits; token-conditional control has the amount itself
      as its budget.

    A minimum above a budget is left out. Raises UserError if nothing is left, if there is nothing to ask for, if an amount is below a
    minimum, and if a condition is not valid.
    """
    kind, is_forced = method.removesuffix("_forced"), method in FORCING
    if kind == "class_conditional":
        amounts = [amount for amount in requested if amount in CLASSES] or list(CLASSES)
    elif kind in ("token_conditional", "step_conditional"):
        amounts = [amount for amount in requested if amount not in CLASSES]
        if not amounts:
            raise UserError(f"{method} needs numbers in requested: the amounts of thinking to ask for")
    else:
        amounts = [""]
    if kind == "rejection_sampling":
        limits = [Limits(point.max_thinking_tokens) for point in limits]
    elif not is_forced:
        limits = [Limits(max(point.max_thinking_tokens for point in limits))]
    conditions = []
    for amount in amounts:
        for point in limits:
            budget = point.max_thinking_tokens
            if method == "token_conditional_forced" and amount.isdecimal():
                budget = int(amount)
                if point.min_thinking_tokens > budget:
                    raise UserError(f"requested {amount} is below min_thinking_tokens {point.min_thinking_tokens}")
            if point.min_thinking_tokens > budget:
                continue
            conditions.append(
                Condition(
                    **vars(settings),
                    **point._replace(max_thinking_tokens=budget)._asdict(),
                    method=method,
                    requested=amount,
                    max_tries=max_tries if kind == "rejection_sampling" else 1,
                )
            )
    if not conditions:
        raise UserError(f"{method}: every minimum is above every budget")
    return list(dict.fromkeys(conditions))
