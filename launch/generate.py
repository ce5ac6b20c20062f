"""Answer one question (--prompt), those of a file (--prompts FILE), or those that you type, and stream the budget-forced answers.

On a terminal, thinking is dim, an injected "Wait" yellow and a forced "Final Answer:" green. Elsewhere, injected text stands in [[ ]].
The model is loaded once. With --json each answer is a JSON line.
"""

import sys

from s1jax.runtime.command import run_command


def main() -> None:
    """Parse the arguments and stream the answer to standard output."""
    from s1jax.decode.generate import GenerateConfig, generate
    from s1jax.runtime.config import parse_arguments

    generate(parse_arguments(__doc__, GenerateConfig), sys.stdout)


if __name__ == "__main__":
    run_command(main)
