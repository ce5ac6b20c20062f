"""Decode and grade one condition on one benchmark: CONFIG -> sample rows (JSONL)."""

from s1jax.runtime.command import run_command


def main() -> None:
    """Parse the config and evaluate."""
    from s1jax.evaluate.conditions import EvaluateConfig
    from s1jax.evaluate.run import evaluate
    from s1jax.runtime.config import parse_command

    config = parse_command(__doc__, EvaluateConfig)
    evaluate(config.decoding, [config.condition], config.num_samples)


if __name__ == "__main__":
    run_command(main)
