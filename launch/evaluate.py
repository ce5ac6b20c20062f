"""Decode and grade one condition on one benchmark: CONFIG -> sample rows (JSONL)."""

from s1jax.runtime.command import run_command


def main() -> None:
    """Parse the config and evaluate."""
    from s1jax.evaluate.conditions import EvaluateConfig, Trace
    from s1jax.evaluate.run import write_and_show, write_samples
    from s1jax.runtime.config import parse_command

    config = parse_command(__doc__, EvaluateConfig)
    write_and_show(lambda: write_samples(config.decoding, Trace((config.condition,)), config.num_samples))


if __name__ == "__main__":
    run_command(main)
