"""Rejection sampling: draw traces of a prompt until one ends by itself within the budget (paper, table 3).

A request has a point per budget. One series of traces serves all of them: each budget accepts the first trace that is short enough. So
the result equals that of each budget alone.

Invariant: trace number t of a sample is a function of (seed, problem, sample, t). The first is the trace that the sample has without
rejection.
"""

from dataclasses import replace

from s1jax.data.condition import MAX_TRIES
from s1jax.decode.request import PER_TOKEN, Completion, Request
from s1jax.runtime.errors import UserError

SAMPLES = 2**31 // MAX_TRIES
"""Samples that a problem may have, so that the number of a sample and a trace is an int32."""


class Search:
    """The search for a trace within each budget of one request."""

    def __init__(self, request: Request):
        if request.sample >= SAMPLES:
            raise UserError(f"sample {request.sample} is too large for rejection sampling: at most {SAMPLES - 1}")
        self.request, self.max_tries = request, request.condition.max_tries
        self.budgets = [limits.max_thinking_tokens for limits in request.points or (request.condition.limits,)]
        self.open = set(self.budgets)
        """Budgets for which no trace was short enough so far."""
        self.found: dict[int, Completion] = {}
        self.num_tries = 0

    def next_try(self) -> Request:
        """Return the request for the next trace. Its limit is one token past the largest budget: a longer trace is too long for all."""
        condition = replace(
            self.request.condition,
            max_thinking_tokens=max(self.budgets) + 1,
            method="budget_forcing",
            max_tries=1,
        )
        sample = self.request.sample + self.num_tries * SAMPLES
        return replace(self.request, condition=condition, points=(), sample=sample)

    def is_too_long(self, num_thinking: int) -> bool:
        """Return whether a trace with so many thinking tokens is too long for every open budget."""
        return num_thinking > max(self.open)

    def take(self, trace: Completion) -> bool:
        """Accept or reject a trace that has ended or is too long; return whether another one is needed."""
        self.num_tries += 1
        for budget in sorted(self.open):
            if trace.num_thinking <= budget:
                self._close(budget, trace, num_rejected=self.num_tries - 1)
            elif self.num_tries == self.max_tries:
                self._close(budget, _cut(trace, budget + 1), num_rejected=self.num_tries)
        return bool(self.open)

    def _close(self, budget: int, result: Completion, num_rejected: int) -> None:
        # Alone, each rejected trace would have been stopped one token past the budget.
        num_tokens = num_rejected * (budget + 1)
        self.found[budget] = replace(result, num_tries=self.num_tries, num_rejected_tokens=num_tokens)
        self.open.remove(budget)

    def completions(self) -> tuple[Completion, ...]:
        """Return the completion of each budget: the trace that it accepted, or the last one, cut one token past the budget."""
        return tuple(self.found[budget] for budget in self.budgets)


def _cut(trace: Completion, size: int) -> Completion:
    """Return the first thinking tokens of a trace, as a rejected one."""
    return replace(
        trace,
        **{name: getattr(trace, name)[:size] for name in PER_TOKEN},
        num_thinking=size,
        num_ignored=0,
        num_answer=0,
        finish_reason="rejected",
    )
