"""Decode and grade a grid of budgets, ignored stops, control methods and samples: CONFIG -> sample rows (JSONL)."""

from s1jax.runtime.command import run_command


def main() -> None:
    """Parse the config and sweep."""
    from s1jax.evaluate.run import evaluate
    from s1jax.evaluate.sweep import SweepConfig, grid
    from s1jax.runtime.config import parse_command

    config = parse_command(__doc__, SweepConfig)
    evaluate(config.decoding, grid(config), config.num_samples)


if __name__ == "__main__":
    run_command(main)
