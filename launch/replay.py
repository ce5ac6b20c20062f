"""Replay rules of stopping and voting on a file of sample rows, without a model.

Which accuracy would majority voting, votes weighted by confidence, the first traces to end, or early stopping have had, and after how many
tokens? Several samples per problem replay the rules that vote. Answers under several budgets replay the rules that stop early. Rules of
confidence need rows that were decoded with --record-tokens.
Standard output: a table of the rules, and one of all budgets and votes with its Pareto front.
"""

import json

import numpy as np

from s1jax.results.grid import at_equal_tokens, scaling_grid
from s1jax.results.grid_table import format_grid_table
from s1jax.results.metrics import Point
from s1jax.results.replay_rows import ReplayConfig, replay
from s1jax.results.replay_table import format_replay_table
from s1jax.results.samples import CURVE, SampleRow, read_samples
from s1jax.results.tables import groups
from s1jax.results.token_records import has_records, read_tokens
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import check_writable, write_file


def main() -> None:
    """Read the rows, replay the rules, print the tables, and write the figures."""
    config = parse_arguments(__doc__, ReplayConfig)
    if config.output is not None:
        check_writable(config.output)
        if config.output.exists() and not _is_ours(config.output.read_bytes()):
            raise UserError(f"--output {config.output} is of another program: give another one, or remove it")

    def read_records(row: SampleRow) -> np.ndarray | None:
        return read_tokens(config.rows, row) if has_records(row) else None

    rows = read_samples(config.rows)
    replayed, grid = replay(rows, config, read_records), scaling_grid(rows)
    print(f"{format_replay_table(replayed)}\n\n{format_grid_table(grid)}")
    if config.output is not None:
        equal = [_curve(curve) | {"levels": at_equal_tokens(curve)} for curve in groups(grid, *CURVE)]
        content = {"replay": replayed.points, "left_out": replayed.left_out, "grid": grid, "equal_tokens": equal}
        write_file(config.output, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _curve(points: list[Point]) -> Point:
    return {name: points[0][name] for name in CURVE}


def _is_ours(content: bytes) -> bool:
    """Return whether a file is the output of this command, which may be replaced."""
    try:
        return {"replay", "left_out", "grid", "equal_tokens"} == set(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return False


if __name__ == "__main__":
    run_command(main)
