"""Grade a file of sample rows again, without a model: after a change of the grader, or of a time limit that was hit.

The gold answers come from the problems, since rows hold only a hash of them. The rows are replaced, unless --output names another file.
With --judge, a language model compares the answers that the rules do not find equal (docs/grading.md).
Standard output: the file. Standard error: how many verdicts changed, and the first few.
"""

import os

from s1jax.runtime.command import run_command


def main() -> None:
    """Grade the rows again."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # a run may be using the accelerator
    from s1jax.evaluate.regrade import RegradeConfig, regrade
    from s1jax.runtime.config import parse_arguments

    print(regrade(parse_arguments(__doc__, RegradeConfig)))


if __name__ == "__main__":
    run_command(main)
