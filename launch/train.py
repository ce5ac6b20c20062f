"""Fine-tune a model: CONFIG -> checkpoints, metrics.jsonl and a Hugging Face export in its output directory."""

from s1jax.config import parse_command, run_command


def main() -> None:
    """Parse the config and train."""
    from s1jax.sharding import start_processes
    from s1jax.train import TrainConfig, train

    config = parse_command(__doc__, TrainConfig)
    start_processes()
    print(train(config))


if __name__ == "__main__":
    run_command(main)
