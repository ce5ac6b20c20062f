"""Decode and grade one condition on one benchmark: CONFIG -> sample rows (JSONL)."""

from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_command


def main() -> None:
    """Parse the config and evaluate."""
    from s1jax.evaluate.conditions import EvaluateConfig
    from s1jax.evaluate.run import evaluate
    from s1jax.results.samples import read_samples
    from s1jax.results.tables import format_thinking_table
    from s1jax.runtime.preemption import Preemption
    from s1jax.runtime.processes import is_first_process, start_processes

    config = parse_command(__doc__, EvaluateConfig)
    start_processes()
    with Preemption() as preemption, preemption.nothing_to_save("decoding"):  # rows are written as they are finished
        rows = evaluate(config)
    if is_first_process():
        print(format_thinking_table(read_samples(rows)))


if __name__ == "__main__":
    run_command(main)
