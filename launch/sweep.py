"""Decode and grade a grid of budgets, ignored stops and samples: CONFIG -> sample rows (JSONL)."""

from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_command


def main() -> None:
    """Parse the config and sweep."""
    from s1jax.evaluate.sweep import SweepConfig, sweep
    from s1jax.results.samples import read_samples
    from s1jax.results.tables import format_thinking_table
    from s1jax.runtime.preemption import Preemption
    from s1jax.runtime.processes import is_first_process, start_processes

    config = parse_command(__doc__, SweepConfig)
    start_processes()
    with Preemption() as preemption, preemption.nothing_to_save("decoding"):  # rows are written as they are finished
        rows = sweep(config)
    if is_first_process():
        print(format_thinking_table(read_samples(rows)))


if __name__ == "__main__":
    run_command(main)
