"""Compare two conditions on the same problems: two files of sample rows, or two choices of rows from one file.

Every setting that both sides have is compared: accuracies, their difference with its interval, a paired test, thinking tokens, and the
place where the texts begin to differ. Standard output: the tables.

    python launch/compare.py float32.jsonl bfloat16.jsonl
    python launch/compare.py rows.jsonl --a num_ignore=0 max_thinking_tokens=8192 --b num_ignore=2 ignore_text=Wait
"""

import sys

from s1jax.results.compare import CompareConfig, compare
from s1jax.results.token_records import read_tokens
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.terminal import for_stream


def main() -> None:
    """Compare, and print the tables."""
    print(for_stream(sys.stdout, compare(parse_arguments(__doc__, CompareConfig), read_tokens)))


if __name__ == "__main__":
    run_command(main)
