"""Rejection sampling: draw traces of a prompt until one ends by itself within the budget (paper section 5.1).

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
        self.request = request
        self.budgets = [limits.max_thinking_tokens for limits in request.points or (request.condition.limits,)]
        self.open = set(self.budgets)
        """Budgets for which no trace was short enough so far."""
        self.found: dict[int, Completion] = {}
        self.num_tries = 0

    def next_try(self) -> Request:
        """Return the request for the next trace. Its limit is one token past the largest open budget."""
        condition = replace(self.request.condition, max_thinking_tokens=max(self.open) + 1)
        return replace(
            self.request, condition=condition, points=(), sample=self.request.sample + self.num_tries * SAMPLES
        )

    def is_too_long(self, trace: Completion) -> bool:
        """Return whether a trace that still grows is too long for every open budget."""
        return trace.num_thinking > max(self.open)

    def take(self, trace: Completion) -> bool:
        """Accept or reject a trace that has ended or is too long; return whether another one is needed."""
        self.num_tries += 1
        for budget in sorted(self.open):
            size, num_rejected, result = budget + 1, self.num_tries - 1, trace
            if trace.num_thinking > budget:
                num_rejected += 1
                if self.num_tries < self.request.condition.max_tries:
                    continue
                result = replace(
                    trace,
                    **{name: getattr(trace, name)[:size] for name in PER_TOKEN},
                    num_thinking=size,
                    num_ignored=0,
                    num_answer=0,
                    finish_reason="rejected",
                )
            self.found[budget] = replace(result, num_tries=self.num_tries, num_rejected_tokens=num_rejected * size)
            self.open.remove(budget)
        return bool(self.open)

    def completions(self) -> tuple[Completion, ...]:
        """Return the completion of each budget: the trace that it accepted, or the last one, cut one token past the budget."""
        return tuple(self.found[budget] for budget in self.budgets)
