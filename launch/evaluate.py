"""Decode and grade one point on one benchmark: CONFIG -> sample rows (JSONL)."""

from s1jax.config import parse_command, run_command


def main() -> None:
    """Parse the config and evaluate."""
    from s1jax.evaluate import EvaluateConfig, evaluate
    from s1jax.preemption import Preemption
    from s1jax.processes import is_first_process, start_processes
    from s1jax.samples import read_samples
    from s1jax.tables import format_thinking_table

    config = parse_command(__doc__, EvaluateConfig)
    start_processes()
    with Preemption() as preemption, preemption.nothing_to_save("decoding"):  # rows are written as they finish
        rows = evaluate(config)
    if is_first_process():
        print(format_thinking_table(read_samples(rows)))


if __name__ == "__main__":
    run_command(main)
