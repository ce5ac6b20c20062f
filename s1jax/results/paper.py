"""The paper's own points of s1-32B (arXiv 2501.19393), to be drawn beside ours."""

from __future__ import annotations

from collections.abc import Collection

from s1jax.results.metrics import Point
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

NAME = "s1-32B (paper)"

# Figure 1: mean thinking tokens and percent of problems solved, by the name of our benchmark.
_SCALING = {
    "aime24": ((500, 0.0), (1000, 13.3), (2000, 30.0), (3933, 43.3), (5300, 50.0), (6657, 53.3), (7320, 56.7)),
    "math500": ((499, 64.0), (984, 80.0), (1814, 85.6), (2868, 90.6), (3200, 93.2)),
    "gpqa_diamond": ((500, 37.9), (985, 49.5), (1742, 51.0), (3231, 57.6), (4649, 59.6)),
}
_NUM_PROBLEMS = {"aime24": 30, "math500": 500, "gpqa_diamond": 198}
# Figure 4: percent of problems solved under 0, 1, 2, ... ignored stops. The numbers of tokens are not among the published numbers.
_WAITS = {"aime24": (50.0, 53.3, 53.3, 53.3, 56.7, 53.3, 56.7, 53.3, 50.0)}


def paper_points(benchmarks: Collection[str]) -> list[Point]:
    """Return the paper's points of some benchmarks: `accuracy` (a fraction of 1) at `mean_thinking_tokens`.

    The points of figure 4 have `num_ignore`, and None in place of the tokens. Raises UserError if the paper has none of the benchmarks.
    """
    known = [name for name in _SCALING if name in benchmarks]
    if not known:
        names = ", ".join(shortened(name, length=40) for name in sorted(benchmarks)[:3])
        raise UserError(
            f"the paper has points of {', '.join(_SCALING)}, but the rows are of {names}: leave out --paper"
        )
    points: list[Point] = []
    for name in known:
        about: Point = {"benchmark": name, "model": NAME, "weights": None, "tokenizer": None}
        about["num_problems"] = _NUM_PROBLEMS[name]
        for tokens, solved in _SCALING[name]:
            points.append(about | _point(solved, tokens, None))
        for num_ignore, solved in enumerate(_WAITS.get(name, ())):
            points.append(about | _point(solved, None, num_ignore))
    return points


def _point(solved: float, tokens: int | None, num_ignore: int | None) -> Point:
    return {"num_ignore": num_ignore, "mean_thinking_tokens": tokens, "accuracy": round(solved / 100, 4)}
