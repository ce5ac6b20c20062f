"""Fine-tune a model: CONFIG -> checkpoints, metrics.jsonl and a Hugging Face export in the output directory."""

import sys

from s1jax.runtime.command import run_command


def main() -> None:
    """Parse the config and train."""
    from s1jax.runtime.config import parse_command
    from s1jax.runtime.processes import is_first_process, start_processes
    from s1jax.runtime.terminal import for_stream
    from s1jax.train.config import TrainConfig
    from s1jax.train.run import train

    config = parse_command(__doc__, TrainConfig)
    start_processes()
    directory = train(config)
    if is_first_process():
        print(for_stream(sys.stdout, str(directory)))


if __name__ == "__main__":
    run_command(main)
